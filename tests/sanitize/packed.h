/* Packed weights as kernel.h describes them, made by plain loops, in memory of exactly their size. */
#pragma once
#include "naive.h"
#include <stdlib.h>

/* Rounds weights so that they are the same in all formats: 7 bits and a sign, a unit for all. */
enum { MOST = 127 };
PLAIN static double unit_of(const naive_t *n) { return 1 / (64. * (double)(n->sizes.hidden > 4 ? 8 : 1)); }
PLAIN static void snap(naive_t *n) {
    const sizes_t *s = &n->sizes;
    const double unit = unit_of(n);
    for (int d = 0; d < s->directions; d++) {
        double *of[] = { n->w_ih[d], n->w_hh[d], n->w_hr[d] };
        long counts[] = { 4 * s->hidden * s->input, 4 * s->hidden * s->output, s->projected ? s->output * s->hidden : 0 };
        for (int i = 0; i < 3; i++)
            for (long k = 0; k < counts[i]; k++) {
                double steps = nearbyint(of[i][k] / unit);
                of[i][k] = unit * fmax(-MOST, fmin(MOST, steps));
            }
    }
}

PLAIN static uint16_t to_half(double value) {
    if (value == 0) return 0;
    int exponent;
    double fraction = frexp(fabs(value), &exponent);        /* in [1/2, 1) */
    return (uint16_t)((value < 0 ? 0x8000 : 0) + ((exponent + 14) << 10) + ((int)(fraction * 2048) - 1024));
}

/* One weight of a slot at `slot`, `lane` of `lanes`, term i. */
PLAIN static void put(char *slot, double value, long lane, int lanes, int i, int format, int element, int beside, double unit) {
    long at = (i / beside * lanes + lane) * beside + i % beside;
    if (format == AS_THEY_ARE && element == 8) ((double *)(void *)slot)[at] = value;
    else if (format == AS_THEY_ARE) ((float *)(void *)slot)[at] = (float)value;
    else if (format == IN_FLOAT16) ((uint16_t *)(void *)slot)[at] = to_half(value);
    else if (format == IN_INT8) ((int8_t *)slot)[at] = (int8_t)nearbyint(value / unit);
    else {
        float single = (float)value;
        uint32_t bits;
        memcpy(&bits, &single, 4);
        ((uint16_t *)(void *)slot)[at] = (uint16_t)(bits >> 16);
    }
}

/* A weight (gates * columns, K); returns where the next one begins. */
PLAIN static char *put_all(char *to, const double *w, int gates, long columns, long K, packed_t p, int format, int element, double unit) {
    int terms = terms_of_slot(format);
    long slots = (K + terms - 1) / terms, units = (columns + p.lanes - 1) / p.lanes, vector = p.lanes * element;
    for (long u = 0; u < units; u++)
        for (long k = 0; k < slots; k++)
            for (int g = 0; g < gates; g++, to += vector)
                for (long lane = 0; lane < p.lanes; lane++)
                    for (int i = 0; i < terms; i++) {
                        long column = u * p.lanes + lane, term = k * terms + i;
                        double value = column < columns && term < K ? w[(g * columns + column) * K + term] : 0;
                        put(to, value, lane, p.lanes, i, format, element, p.beside, unit);
                    }
    return to;
}

/* Of int8, for each column its scale, then 128 times the sum of its weights. */
PLAIN static char *put_scales(char *to, const double *w, int gates, long columns, long K, packed_t p, double unit) {
    long units = (columns + p.lanes - 1) / p.lanes, count = units * gates * p.lanes;
    float *scales = (float *)(void *)to;
    int32_t *offsets = (int32_t *)(void *)(scales + count);
    for (long u = 0; u < units; u++)
        for (int g = 0; g < gates; g++)
            for (long lane = 0; lane < p.lanes; lane++) {
                long column = u * p.lanes + lane, at = (u * gates + g) * p.lanes + lane;
                double sum = 0;
                for (long k = 0; column < columns && k < K; k++) sum += nearbyint(w[(g * columns + column) * K + k] / unit);
                scales[at] = column < columns ? (float)unit : 0, offsets[at] = (int32_t)(128 * sum);
            }
    return (char *)(offsets + count);
}

/* The weights of direction d. */
PLAIN static void *pack(const naive_t *n, const sizes_t *s, int d, int format, int isa) {
    const packed_t p = torchlstm_packed(s, format, isa);
    const long I = s->input, H = s->hidden, R = s->output, units = (H + p.lanes - 1) / p.lanes;
    const double unit = unit_of(n);
    char *start = malloc(p.bytes), *to = start;
    to = put_all(to, n->w_ih[d], 4, H, I, p, format, s->element, unit);
    to = put_all(to, n->w_hh[d], 4, H, R, p, format, s->element, unit);
    if (s->projected) to = put_all(to, n->w_hr[d], 1, R, H, p, format, s->element, unit);
    for (long u = 0; u < units; u++)
        for (int g = 0; g < 4; g++)
            for (long lane = 0; lane < p.lanes; lane++, to += s->element) {
                long at = u * p.lanes + lane;
                double a = at < H && n->b_ih[d] ? n->b_ih[d][g * H + at] : 0, b = at < H && n->b_hh[d] ? n->b_hh[d][g * H + at] : 0;
                if (s->element == 8) *(double *)(void *)to = a + b;
                else *(float *)(void *)to = (float)a + (float)b;
            }
    if (format != IN_INT8) return start;
    to = put_scales(to, n->w_ih[d], 4, H, I, p, unit), to = put_scales(to, n->w_hh[d], 4, H, R, p, unit);
    if (s->projected) put_scales(to, n->w_hr[d], 1, R, H, p, unit);
    return start;
}
