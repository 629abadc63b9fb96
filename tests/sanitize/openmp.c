/* OpenMP's own threads, as few and as late as those of threads.c: linked with --wrap for both names. */
#include "team.h"
#include <unistd.h>

int team_limit = 1 << 30, team_processors = 1 << 30, team_late;

int omp_get_thread_num(void);
void __real_GOMP_parallel(void (*work)(void *), void *data, unsigned threads, unsigned flags);

typedef struct { void (*work)(void *); void *data; } member_t;

static void begin(void *given) {
    member_t *m = given;
    if (omp_get_thread_num() && team_late) usleep((useconds_t)team_late * 1000);
    m->work(m->data);
}

void __wrap_GOMP_parallel(void (*work)(void *), void *data, unsigned threads, unsigned flags) {
    member_t m = { work, data };
    __real_GOMP_parallel(begin, &m, (int)threads < team_limit ? threads : (unsigned)team_limit, flags);
}

int __wrap_omp_get_num_procs(void) { return team_processors; }
