/* One step forward, straight from the weights as torch keeps them: no packing.
 *
 * Rows of weights and rows of inputs are both contiguous along K, so a gate is a sum of LANES partial sums.  Every
 * gate of every row is summed in the same order, whatever the other rows.
 */

/* All ones in the last n of LANES lanes, read from n elements on. */
static const INTEGER FN(last)[2 * LANES] = { [LANES ... 2 * LANES - 1] = -1 };

/* sums[r][g] += LANES terms of a . w, row strides lda and ldw; without those that `keep`, if given, has zeros for.
 * (Zeros in both operands: 0 times inf is NaN.) */
INLINE void FN(dot)(int rows, const REAL *a, long lda, const REAL *w, long ldw, const ivec *keep, vec sums[DOTS][4]) {
    vec x[DOTS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        x[r] = *(const vec *)(a + r * lda);
        if (keep) x[r] = (vec)(*keep & (ivec)x[r]);
    }
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) {
        vec y = *(const vec *)(w + g * ldw);
        if (keep) y = (vec)(*keep & (ivec)y);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) sums[r][g] += x[r] * y;
    }
}

/* The same for all K terms; `tail[r][g]` takes those of K < LANES. */
INLINE void FN(dots)(int rows, const REAL *a, long lda, const REAL *w, long ldw, long K, vec sums[DOTS][4], REAL tail[DOTS][4]) {
    long k = 0;
#pragma GCC unroll 1
    for (; k + LANES <= K; k += LANES) FN(dot)(rows, a + k, lda, w + k, ldw, NULL, sums);
    if (k && k < K) {
        /* The last LANES terms, of which the first are counted already. */
        const ivec keep = *(const ivec *)(FN(last) + (K - k));
        FN(dot)(rows, a + K - LANES, lda, w + K - LANES, ldw, &keep, sums);
        return;
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
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++)
            out[(i * 4 + g) * LANES] = tail[i][g] + (l->b_x ? l->b_x[g * l->H + j] : 0) + (l->b_h ? l->b_h[g * l->H + j] : 0);
        FN(add_sums)(sums[i], out + i * 4 * LANES, LANES);
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
            for (long r = 0, rows; r < n; r += rows) {
                rows = FN(even)(n - r, HIGH);
                for (long j = 0; j < real; j++)
                    for (long i = 0, high; i < rows; i += high) {
                        high = FN(even)(rows - i, DOTS);
                        FN(singles)[high - 1](&l, r + i, unit + j, acc + i * 4 * LANES + j);
                    }
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
