/* Small calls in bfloat16 and float16 without gradients: each layer computes in float32, from operands that are widened first, and its
 * results are rounded. */
#pragma once
#include "modules.h"

/* Calls that widen more elements are for Python, where torch widens by several threads, and float16 by instructions for it. */
enum { MOST_BFLOATS = 1 << 20, MOST_HALVES = 1 << 18 };

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
static float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Exponents of float16 are smaller by 112.  Below 2^-14 its steps are those of a fixed-point number. */
enum { HALF_BIAS = 112 << 23, HALF_LEAST = 113 << 23 };

/* Without a branch, so that loops become loops of vectors; both are computed.  Numbers are signed: SSE2 compares no others. */
static int32_t choose(int condition, int32_t yes, int32_t no) { return (yes & -condition) | (no & ~-condition); }

static float widened_half(uint16_t half) {
    const int32_t rest = half & 0x7fff, sign = (int32_t)((uint32_t)(half & 0x8000) << 16);
    const int32_t small = (int32_t)bits_of(float_of((uint32_t)(HALF_LEAST | rest << 13)) - float_of(HALF_LEAST));
    const int32_t usual = ((rest << 13) + HALF_BIAS) | choose(rest >= 0x7c00, 0x7f800000, 0);
    return float_of((uint32_t)(sign | choose(rest < 0x400, small, usual)));
}

/* To the nearest, ties to even; of a small one by the addition of a number whose last place is that of the result. */
static uint16_t rounded_half(float value) {
    const uint32_t all = bits_of(value);
    const int32_t rest = (int32_t)(all & 0x7fffffff), sign = (int32_t)(all >> 16 & 0x8000);
    const int32_t small = (int32_t)(bits_of(float_of((uint32_t)rest) + 0.5f) - bits_of(0.5f));
    const int32_t usual = (rest - HALF_BIAS + 0xfff + (rest >> 13 & 1)) >> 13;
    const int32_t large = choose(rest > 0x7f800000, 0x7e00, 0x7c00);
    const int32_t found = choose(rest < HALF_LEAST, small, usual);
    return (uint16_t)(sign | choose(rest >= 0x477ff000, large, found)); /* 65520 is halfway from the largest to the next */
}

static uint16_t rounded_bfloat(float value) {
    const uint32_t all = bits_of(value);
    return (uint16_t)((all & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (all + 0x7fff + (all >> 16 & 1)) >> 16);
}

static float *widen(dl_dtype_t dtype, const void *values, long n, void *to) {
    const uint16_t *from = values;
    float *at = to;
    if (dtype.code == DL_BFLOAT) for (long i = 0; i < n; i++) at[i] = float_of((uint32_t)from[i] << 16);
    else for (long i = 0; i < n; i++) at[i] = widened_half(from[i]);
    return at;
}
static void narrow(dl_dtype_t dtype, const void *values, long n, void *to) {
    const float *from = values;
    uint16_t *at = to;
    if (dtype.code == DL_BFLOAT) for (long i = 0; i < n; i++) at[i] = rounded_bfloat(from[i]);
    else for (long i = 0; i < n; i++) at[i] = rounded_half(from[i]);
}

/* The number of elements of the weights of one layer and direction whose input has this width. */
static long weights_of_layer(const sizes_t *s, long input) {
    return 4 * s->hidden * (input + s->output + 2) + (s->projected ? s->output * s->hidden : 0);
}
static long widest_input(const form_t *f) {
    const long between = f->sizes.directions * f->sizes.output;
    return f->layers > 1 && between > f->sizes.input ? between : f->sizes.input;
}

/* Is a call small enough? */
static int widens_little(const form_t *f) {
    const sizes_t *s = &f->sizes;
    const double rows = (double)s->steps * (double)s->batch, width = (double)widest_input(f) + (double)(s->directions * s->output);
    const double all = (double)f->layers * s->directions * (double)weights_of_layer(s, widest_input(f)) + rows * width;
    return all <= (f->dtype.code == DL_BFLOAT ? MOST_BFLOATS : MOST_HALVES);
}

/* As run_layers. */
static int run_halves(const module_call_t *m, results_t to, int same) {
    (void)same;
    const form_t *f = &m->form;
    const dl_dtype_t dtype = f->dtype;
    const sizes_t *s = &f->sizes;
    const long D = s->directions, R = s->output, H = s->hidden, I = s->input, B = s->batch, P = s->steps * B;
    const long of_h = D * B * R, of_c = D * B * H, of_y = P * D * R, of_weights = weights_of_layer(s, widest_input(f));
    const size_t wide = sizeof(float), half = sizeof(uint16_t);
    forward_t job = { .sizes = *s };
    job.sizes.element = sizeof(float);
    const size_t kernel = scratch_of_layers(f, &job);
    const rows_t rows = rows_in(f, &m->x.view, I);
    scratch_t scratch = { 0 };
    const size_t work = reserve(&scratch, kernel), weights = reserve(&scratch, (size_t)(D * of_weights) * wide);
    const size_t x = reserve(&scratch, (size_t)(P * widest_input(f)) * wide), y = reserve(&scratch, (size_t)of_y * wide);
    const size_t h_0 = reserve(&scratch, (size_t)of_h * wide), c_0 = reserve(&scratch, (size_t)of_c * wide);
    const size_t h_n = reserve(&scratch, (size_t)of_h * wide), c_n = reserve(&scratch, (size_t)of_c * wide);
    const size_t ordered = reserve(&scratch, rows.in_order ? 0 : (size_t)(P * I) * half);
    const size_t between = reserve(&scratch, (size_t)of_y * half);
    if (!take_scratch(&scratch)) return 0;
    char *at = scratch.at;

    PyThreadState *released = is_long(f) ? PyEval_SaveThread() : NULL;
    job.x = widen(dtype, in_order(f, rows, I, at + ordered), P * I, at + x);
    job.y = at + y, job.h_0 = at + h_0, job.c_0 = at + c_0, job.h_n = at + h_n, job.c_n = at + c_n;
    job.scratch = kernel ? at + work : NULL;
    if (!m->h.object) memset(at + h_0, 0, (size_t)of_h * wide), memset(at + c_0, 0, (size_t)of_c * wide);
    for (long l = 0; l < f->layers; l++) {
        const long input = job.sizes.input = l ? D * R : I;
        for (long d = 0; d < D; d++) {
            const weights_t *w = &m->of[l][d];
            float *next = (float *)(void *)(at + weights) + d * of_weights;
#define WIDEN(name, n) if (w->name) job.weights[d].name = widen(dtype, w->name, n, next), next += (n);
            WIDEN(w_ih, 4 * H * input) WIDEN(w_hh, 4 * H * R) WIDEN(b_ih, 4 * H) WIDEN(b_hh, 4 * H) WIDEN(w_hr, R * H)
#undef WIDEN
        }
        if (m->h.object) {
            widen(dtype, (const uint16_t *)start_of(&m->h.view) + l * of_h, of_h, at + h_0);
            widen(dtype, (const uint16_t *)start_of(&m->c.view) + l * of_c, of_c, at + c_0);
        }
        torchlstm_forward(&job, f->threads, f->isa);
        narrow(dtype, at + h_n, of_h, (uint16_t *)to.h_n + l * of_h);
        narrow(dtype, at + c_n, of_c, (uint16_t *)to.c_n + l * of_c);
        const int last = l == f->layers - 1;
        void *rounded = last && to.y ? to.y : at + between;
        if (!last || to.y) narrow(dtype, at + y, of_y, rounded);
        if (!last) job.x = widen(dtype, rounded, of_y, at + x);
    }
    if (released) PyEval_RestoreThread(released);
    give_scratch(&scratch);
    return 1;
}
