/* OpenMP's entry points: those of the runtime that torch calls, GNU's or LLVM's, which has the same.
 *
 * Nothing is linked.  Where torch has its runtime visible to the whole process, weak references find what torch's own do.
 * Where not, as in its wheels for Arm, and on macOS, where every library's names are bound to the one that it was linked
 * with, calls.py asks torch's libraries for the names.  Without a runtime the work is
 * done on one thread.  A program in C links a runtime by -Wl,--no-as-needed -lgomp: a library with weak references to it alone would
 * not be kept.
 */
#pragma once

#define WEAK extern __attribute__((weak))
WEAK void GOMP_parallel(void (*)(void *), void *, unsigned threads, unsigned flags);
WEAK int omp_get_thread_num(void);
WEAK int omp_get_num_threads(void);
WEAK int omp_get_num_procs(void);

typedef struct {
    void (*parallel)(void (*work)(void *), void *data, unsigned threads, unsigned flags);
    int (*rank)(void), (*threads)(void), (*processors)(void);
} openmp_t;

extern openmp_t torchlstm_openmp;       /* of weak references, if nothing else is found */

static inline int have_openmp(void) {
    const openmp_t *o = &torchlstm_openmp;
    return o->parallel && o->rank && o->threads && o->processors;
}
