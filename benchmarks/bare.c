/* Calls the kernel's forward as a stream of single steps does, and nothing else: a library for benchmarks/frozen_stream.py. */
#include "kernel.h"
#include <stdlib.h>
#include <time.h>

typedef size_t scratch_of_t(const forward_t *, int, int);
typedef void run_t(const forward_t *, int, int);

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Seconds of so many steps of one sequence through one layer, I = R = H, whose state each step hands to the next; `state` is
 * (4, H) of floats, the first two rows what it begins with; x and y (H,).  -1: no memory. */
double bare_steps(scratch_of_t *scratch_of, run_t *run, const void *packed, int format, int isa, long hidden, const float *x,
                  float *y, float *state, int threads, long steps) {
    forward_t job = { .y = y, .x = x, .packed = { packed }, .format = format };
    job.sizes = (sizes_t){ .steps = 1, .batch = 1, .input = hidden, .hidden = hidden, .output = hidden, .directions = 1,
                           .element = sizeof(float) };
    size_t bytes = scratch_of(&job, threads, isa);
    if (bytes && !(job.scratch = aligned_alloc(64, (bytes + 63) / 64 * 64))) return -1;
    const double start = now();
    for (long k = 0; k < steps; k++) {
        float *from = state + (k % 2 ? 2 : 0) * hidden, *to = state + (k % 2 ? 0 : 2) * hidden;
        job.h_0 = from, job.c_0 = from + hidden, job.h_n = to, job.c_n = to + hidden;
        run(&job, threads, isa);
    }
    const double seconds = now() - start;
    free(job.scratch);
    return seconds;
}
