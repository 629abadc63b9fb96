/* One step, straight from the weights as torch keeps them: no packing.
 *
 * Rows of weights and rows of inputs are both contiguous along K, so a gate is a sum of LANES partial sums.  Every
 * gate of every row is summed in the same order, whatever the other rows.
 */

/* sums[r][g] += a (rows, K) . w (4 gates, K), row strides lda and ldw; `tail[r][g]` takes the last K % LANES terms. */
INLINE void FN(dots)(int rows, const REAL *a, long lda, const REAL *w, long ldw, long K, vec sums[DOTS][4], REAL tail[DOTS][4]) {
    long k = 0;
#pragma GCC unroll 1
    for (; k + LANES <= K; k += LANES) {
        vec x[DOTS];
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) x[r] = *(const vec *)(a + r * lda + k);
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++) {
            vec y = *(const vec *)(w + g * ldw + k);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) sums[r][g] += x[r] * y;
        }
    }
    for (; k < K; k++)
        for (int r = 0; r < rows; r++)
            for (int g = 0; g < 4; g++) tail[r][g] += a[r * lda + k] * w[g * ldw + k];
}

/* The operands of one step and direction. */
typedef struct {
    const REAL *x, *h, *w_x, *w_h, *b_x, *b_h;   /* (B, I), (B, R), and the weights; biases may be NULL */
    long I, R, H;
} FN(single_t);

/* Gates of unit j and `rows` rows from r on, to out + g * LANES, row stride 4 LANES. */
INLINE void FN(single_tile)(int rows, const FN(single_t) *l, long r, long j, REAL *out) {
    vec sums[DOTS][4];
    REAL tail[DOTS][4];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++) sums[i][g] = (vec){0}, tail[i][g] = 0;
    FN(dots)(rows, l->x + r * l->I, l->I, l->w_x + j * l->I, l->H * l->I, l->I, sums, tail);
    FN(dots)(rows, l->h + r * l->R, l->R, l->w_h + j * l->R, l->H * l->R, l->R, sums, tail);
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) {
        REAL b = (l->b_x ? l->b_x[g * l->H + j] : 0) + (l->b_h ? l->b_h[g * l->H + j] : 0);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) out[(i * 4 + g) * LANES] = FN(sum)(sums[i][g]) + tail[i][g] + b;
    }
}
#define SINGLE(rows)                                                                                  \
    NOINLINE void FN(single_##rows)(const FN(single_t) *l, long r, long j, REAL *out) {               \
        FN(single_tile)(rows, l, r, j, out);                                                          \
    }
SINGLE(1)
SINGLE(2)
SINGLE(3)
#if DOTS == 6
SINGLE(4)
SINGLE(5)
SINGLE(6)
#endif
static void (*const FN(singles)[DOTS])(const FN(single_t) *, long, long, REAL *) = {
    FN(single_1), FN(single_2), FN(single_3),
#if DOTS == 6
    FN(single_4), FN(single_5), FN(single_6),
#endif
};

/* T = 1, not projected; the threads of a team share the units. */
TARGET static void FN(single_step)(const forward_t *job, part_t *p) {
    const sizes_t *s = &job->sizes;
    enum { HIGH = 24 };
    REAL acc[HIGH * 4 * LANES];
    long B = s->batch, H = s->hidden, n = active(s, 0), u0, u1;
    share(blocks(H, LANES), p->me, p->members, &u0, &u1);
    for (long i = 0; i < HIGH * 4 * LANES; i++) acc[i] = 0;
    for (int d = p->d0; d < p->d1; d++) {
        const weights_t *w = &job->weights[d];
        const REAL *h_0 = (const REAL *)job->h_0 + d * B * H, *c_0 = (const REAL *)job->c_0 + d * B * H;
        REAL *h_n = (REAL *)job->h_n + d * B * H, *c_n = (REAL *)job->c_n + d * B * H, *y = (REAL *)job->y + d * H;
        FN(single_t) l = { job->x, h_0, w->w_ih, w->w_hh, w->b_ih, w->b_hh, s->input, H, H };
        for (long u = u0; u < u1; u++) {
            long unit = u * LANES, real = H - unit < LANES ? H - unit : LANES;
            for (long r = 0; r < B; r++)
                for (long j = unit; j < unit + real; j++) {
                    c_n[r * H + j] = c_0[r * H + j];
                    if (r >= n) h_n[r * H + j] = h_0[r * H + j];
                }
            for (long r = 0; r < n; r += HIGH) {
                long rows = n - r < HIGH ? n - r : HIGH;
                for (long j = 0; j < real; j++)
                    for (long i = 0; i < rows; i += DOTS)
                        FN(singles)[(rows - i < DOTS ? rows - i : DOTS) - 1](&l, r + i, unit + j, acc + i * 4 * LANES + j);
                FN(run_cells)((FN(cells_t)){ .acc = acc, .c = c_n + r * H + unit, .h = h_n + r * H + unit,
                                             .gates = job->gates ? (REAL *)job->gates + (d * n + r) * 4 * H + unit : NULL,
                                             .cells = job->gates ? (REAL *)job->cells + (d * n + r) * H + unit : NULL,
                                             .H = H, .h_step = H }, rows, real);
                for (long i = r; i < r + rows; i++)
                    FN(store)(y + i * s->directions * H + unit, FN(load)(h_n + i * H + unit, real), real);
            }
        }
    }
}
