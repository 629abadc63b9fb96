/* OpenMP's entry points: those of the runtime that torch calls, GNU's or LLVM's, which has the same.
 *
 * Nothing is linked.  Where torch has its runtime visible to the whole process, weak references find what torch's own do.
 * Where not, as in its wheels for Arm, and on macOS, where every library's names are bound to the one that it was linked
 * with, the names are asked of torch's libraries.  Without a runtime the work is done on one thread.
 */
#pragma once
#include <dlfcn.h>

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

static inline int is_whole(const openmp_t *o) { return o->parallel && o->rank && o->threads && o->processors; }
static inline int have_openmp(void) { return is_whole(&torchlstm_openmp); }

/* `torch`: the path of a library that torch has loaded, and will not unload, which depends on its runtime. */
static inline void find_openmp(const char *torch) {
#if !defined __APPLE__
    if (have_openmp()) return;
#endif
    void *from = dlopen(torch, RTLD_LAZY | RTLD_NOLOAD);
    if (!from) return;
    openmp_t found = { dlsym(from, "GOMP_parallel"), dlsym(from, "omp_get_thread_num"), dlsym(from, "omp_get_num_threads"),
                       dlsym(from, "omp_get_num_procs") };
    if (is_whole(&found)) torchlstm_openmp = found;
}
