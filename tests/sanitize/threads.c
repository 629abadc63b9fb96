/* OpenMP's entry points on plain threads, in the place of libgomp, which ThreadSanitizer cannot see through. */
#include "team.h"
#include <pthread.h>
#include <unistd.h>

int team_limit = 1 << 30, team_processors = 1 << 30, team_late;

static _Thread_local int rank, count = 1;

typedef struct { void (*work)(void *); void *data; int rank, count; pthread_t thread; } member_t;

static void *begin(void *given) {
    member_t *m = given;
    rank = m->rank, count = m->count;
    if (rank && team_late) usleep((useconds_t)team_late * 1000);
    m->work(m->data);
    return NULL;
}

int omp_get_thread_num(void) { return rank; }
int omp_get_num_threads(void) { return count; }
int omp_get_num_procs(void) { return team_processors; }

void GOMP_parallel(void (*work)(void *), void *data, unsigned threads, unsigned flags) {
    (void)flags;
    enum { MOST = 128 };
    member_t members[MOST];
    int n = (int)threads < team_limit ? (int)threads : team_limit;
    for (int i = 0; i < n; i++) members[i] = (member_t){ work, data, i, n, 0 };
    for (int i = 1; i < n; i++) pthread_create(&members[i].thread, NULL, begin, &members[i]);
    begin(&members[0]);
    rank = 0, count = 1;
    for (int i = 1; i < n; i++) pthread_join(members[i].thread, NULL);
}
