/* The LSTM by plain loops in double, forward and backward: what the kernel is compared with. */
#pragma once
#include "driver.h"
#include <math.h>

#define NAIVE PLAIN static

/* One case: arguments, results and gradients, shaped as in kernel.h.  NULL where there is none. */
typedef struct {
    sizes_t sizes;
    int rounds;                                              /* operands of products, to bfloat16                */
    double *x, *h_0, *c_0, *w_ih[2], *w_hh[2], *b_ih[2], *b_hh[2], *w_hr[2];
    double *y, *h_n, *c_n, *gates, *cells;
    double *dy, *dh_n, *dc_n, *dacts, *dcells;
    double *dgates, *before, *dh, *raw, *dh_0, *dc_0, *db;   /* of all rows: dgates (D, P, 4H), before (D, P, R), .. */
    double *entered;                                         /* (D, P, H): c of the step before each row            */
} naive_t;

/* sum + a . b, at strides of their own. */
NAIVE double naive_dot(const naive_t *n, double sum, const double *a, long a_step, const double *b, long b_step, long terms) {
    if (n->rounds)
        for (long k = 0; k < terms; k++) sum += to_bfloat16(a[k * a_step]) * to_bfloat16(b[k * b_step]);
    else
        for (long k = 0; k < terms; k++) sum += a[k * a_step] * b[k * b_step];
    return sum;
}

NAIVE double naive_sigmoid(double a) { return 1 / (1 + exp(-a)); }

NAIVE void naive_step(naive_t *n, int d, long t, double *h, double *c) {
    const sizes_t *s = &n->sizes;
    long I = s->input, H = s->hidden, R = s->output, P = first_row(s, s->steps);
    for (long b = 0; b < active(s, t); b++) {
        long row = first_row(s, t) + b, at = d * P + row;
        const double *x = n->x + row * I;
        double *a = n->gates + at * 4 * H;
        for (long k = 0; k < R; k++) n->before[at * R + k] = h[b * R + k];
        for (long g = 0; g < 4 * H; g++) {
            a[g] = (n->b_ih[d] ? n->b_ih[d][g] : 0) + (n->b_hh[d] ? n->b_hh[d][g] : 0);
            a[g] = naive_dot(n, a[g], n->w_ih[d] + g * I, 1, x, 1, I);
            a[g] = naive_dot(n, a[g], n->w_hh[d] + g * R, 1, n->before + at * R, 1, R);
            a[g] = g / H == 2 ? tanh(a[g]) : naive_sigmoid(a[g]);
        }
        for (long u = 0; u < H; u++) {
            n->entered[at * H + u] = c[b * H + u];
            c[b * H + u] = a[H + u] * c[b * H + u] + a[u] * a[2 * H + u];
            n->cells[at * H + u] = c[b * H + u];
            n->raw[at * H + u] = a[3 * H + u] * tanh(c[b * H + u]);
        }
        for (long k = 0; k < R; k++) {
            const double *raw = n->raw + at * H;
            double sum = s->projected ? naive_dot(n, 0, n->w_hr[d] + k * H, 1, raw, 1, H) : raw[k];
            h[b * R + k] = n->y[row * s->directions * R + d * R + k] = sum;
        }
    }
}

NAIVE void naive_forward(naive_t *n) {
    const sizes_t *s = &n->sizes;
    for (long k = 0; k < s->directions * s->batch * s->output; k++) n->h_n[k] = n->h_0[k];
    for (long k = 0; k < s->directions * s->batch * s->hidden; k++) n->c_n[k] = n->c_0[k];
    for (int d = 0; d < s->directions; d++)
        for (long i = 0; i < s->steps; i++)
            naive_step(n, d, backwards(s, d) ? s->steps - 1 - i : i, n->h_n + d * s->batch * s->output, n->c_n + d * s->batch * s->hidden);
}

NAIVE void naive_step_back(naive_t *n, int d, long t, double *dh, double *dc) {
    static const double none[1] = { 0 };
    const sizes_t *s = &n->sizes;
    long H = s->hidden, R = s->output, P = first_row(s, s->steps);
    for (long b = 0; b < active(s, t); b++) {
        long row = first_row(s, t) + b, at = d * P + row;
        const double *a = n->gates + at * 4 * H;
        double *e = n->dgates + at * 4 * H;
        for (long k = 0; k < R; k++)
            n->dh[at * R + k] = dh[b * R + k] + (n->dy ? n->dy[row * s->directions * R + d * R + k] : 0);
        for (long u = 0; u < H; u++) {
            const double *dy = n->dh + at * R;
            double draw = s->projected ? naive_dot(n, 0, n->w_hr[d] + u, H, dy, 1, R) : dy[u], tanh_c = tanh(n->cells[at * H + u]);
            double i = a[u], f = a[H + u], g = a[2 * H + u], o = a[3 * H + u];
            double slope = dc[b * H + u] + draw * o * (1 - tanh_c * tanh_c) + (n->dcells ? n->dcells[at * H + u] : 0);
            const double *more = n->dacts ? n->dacts + at * 4 * H + u : none;
            long step = n->dacts ? H : 0;
            e[u] = (slope * g + more[0]) * i * (1 - i);
            e[H + u] = (slope * n->entered[at * H + u] + more[step]) * f * (1 - f);
            e[2 * H + u] = (slope * i + more[2 * step]) * (1 - g * g);
            e[3 * H + u] = (draw * tanh_c + more[3 * step]) * o * (1 - o);
            dc[b * H + u] = slope * f;
        }
        for (long k = 0; k < R; k++) dh[b * R + k] = naive_dot(n, 0, n->w_hh[d] + k, R, e, 1, 4 * H);
        for (long g = 0; g < 4 * H; g++) n->db[d * 4 * H + g] += e[g];
    }
}

NAIVE void naive_backward(naive_t *n) {
    const sizes_t *s = &n->sizes;
    for (long k = 0; k < s->directions * s->batch * s->output; k++) n->dh_0[k] = n->dh_n ? n->dh_n[k] : 0;
    for (long k = 0; k < s->directions * s->batch * s->hidden; k++) n->dc_0[k] = n->dc_n ? n->dc_n[k] : 0;
    for (long k = 0; k < s->directions * 4 * s->hidden; k++) n->db[k] = 0;
    for (int d = 0; d < s->directions; d++)
        for (long i = 0; i < s->steps; i++)
            naive_step_back(n, d, backwards(s, d) ? i : s->steps - 1 - i, n->dh_0 + d * s->batch * s->output,
                            n->dc_0 + d * s->batch * s->hidden);
}
