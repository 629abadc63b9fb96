/* The barrier at which threads meet, and the floating-point mode of a worker. */
#pragma once
#include "openmp.h"
#include "pace.h"
#include <sched.h>
#include <time.h>

/* More threads than this are not used: their flags live on the caller's stack. */
enum { MAX_THREADS = 128 };

static inline int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* What one thread has finished; 128 bytes, since neighbouring cache lines are fetched in pairs.  The times are in ns, and
 * for the thread that opened the region, at its end: the sum of the long waits, and when this thread's work ended. */
typedef struct { _Alignas(128) atomic_long finished; int64_t waited, ended; } flag_t;

/* A barrier: publishes that thread `me` has finished `count` steps, and waits until all n threads have.  It spins, but yields early:
 * with more threads than cores, the thread that is waited for needs this one's core. */
static inline void meet(flag_t *flags, int n, int me, long count) {
    if (n == 1) return;
    atomic_store_explicit(&flags[me].finished, count, memory_order_release);
    /* Some 3 us: in an ordinary step nobody waits longer, and the clock is not read. */
    enum { PATIENT = 200 };
    int64_t began = 0;
    for (int i = 0; i < n; i++)
        for (int spins = 0; atomic_load_explicit(&flags[i].finished, memory_order_acquire) < count; spins++) {
#if defined __x86_64__
            __builtin_ia32_pause();
#elif defined __aarch64__
            __asm__ volatile("isb");            /* `yield` takes no time */
#endif
            if (spins < PATIENT) continue;
            /* Before the first yield, which may take a time slice. */
            if (!began) began = now();
            sched_yield();
        }
    if (!began) return;
    int64_t waited = now() - began;
    if (waited >= LONG_WAIT) flags[me].waited += waited;
}

/* Flush denormals, as operands and as results, while in the kernel (decayed states would cost ~100 cycles per operation, and
 * saturated gates are to be 0), then give the caller his mode back. */
static inline unsigned flush_denormals(void) {
#if defined __x86_64__
    unsigned old = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(old | 0x8040);
    return old;
#elif defined __aarch64__
    uint64_t old;
    __asm__ volatile("mrs %0, fpcr" : "=r"(old));
    __asm__ volatile("msr fpcr, %0" : : "r"(old | 1 << 24));
    return (unsigned)old;
#else
    return 0;
#endif
}
static inline void restore_denormals(unsigned old) {
#if defined __x86_64__
    __builtin_ia32_ldmxcsr(old);
#elif defined __aarch64__
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)old));
#else
    (void)old;
#endif
}
