/* OpenMP's own threads, no more than those of threads.c: linked with --wrap=GOMP_parallel. */
#include "team.h"

int team_limit = 1 << 30;

void __real_GOMP_parallel(void (*work)(void *), void *data, unsigned threads, unsigned flags);

void __wrap_GOMP_parallel(void (*work)(void *), void *data, unsigned threads, unsigned flags) {
    __real_GOMP_parallel(work, data, (int)threads < team_limit ? threads : (unsigned)team_limit, flags);
}
