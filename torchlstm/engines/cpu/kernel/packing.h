/* Packs weights at a call, as the tiles read them. */

/* Packs n <= LANES columns of w (K, n), row stride `stride`: slot k goes to to + k * step. */
INLINE void FN(pack_rows)(const REAL *w, long K, long stride, long n, REAL *to, long step) {
    for (long k = 0; k < SLOTS(K); k++) *(vec *)(to + k * step) = FN(slot_vec)(w, stride, k, K, n);
}

/* The same of the transpose of w (n, K): n <= LANES rows of w become columns. */
INLINE void FN(pack_transposed)(const REAL *w, long K, long stride, long n, REAL *to, long step) {
    long k = 0;
    for (; (k + LANES) * PER_SLOT <= K; k += LANES) {
        /* LANES x LANES, whole lines of memory at a time: quads of rows that lie a power of two apart would evict each other. */
        vec block[LANES];
        UNROLL(16)
        for (long j = 0; j < LANES; j++) block[j] = j < n ? FN(slots_vec)(w + j * stride, k) : (vec){0};
        FN(transpose_all)(block);
        UNROLL(16)
        for (long j = 0; j < LANES; j++) *(vec *)(to + (k + j) * step) = block[j];
    }
    for (; k < SLOTS(K); k++)
        for (long j = 0; j < LANES; j++) to[k * step + j] = j < n ? FN(slot)(w + j * stride, 1, k, K) : 0;
}

/* Packs W_ih, W_hh, W_hr and the sum of both biases, this thread's blocks of units of all directions.  A block of units is 4 / COLS
 * panels of (SLOTS(K), COLS, LANES). */
NOINLINE void FN(pack_forward)(const forward_t *job, const part_t *p, const forward_plan_t *plan) {
    const sizes_t *s = &job->sizes;
    long H = s->hidden, R = s->output, unit_blocks = blocks(H, LANES), output_blocks = blocks(R, LANES), from, to;
    share(s->directions * unit_blocks, p->rank, p->threads, &from, &to);
    for (long i = from; i < to; i++) {
        const weights_t *w = &job->weights[i / unit_blocks];
        REAL *base = (REAL *)job->scratch + i / unit_blocks * plan->direction;
        long u = i % unit_blocks, n = H - u * LANES;
        for (int side = 0; side < 2; side++) {
            long K = side ? R : s->input, slots = SLOTS(K);
            for (int g = 0; g < 4; g++)
                FN(pack_transposed)((const REAL *)(side ? w->w_hh : w->w_ih) + (g * H + u * LANES) * K, K, K, n,
                                    base + (side ? plan->packed.h : plan->packed.x) + u * 4 * LANES * slots
                                        + g / COLS * slots * COLS * LANES + g % COLS * LANES, COLS * LANES);
        }
        for (int g = 0; g < 4; g++) {
            long at = g * H + u * LANES;
            vec b = {0};
            if (w->b_ih) b += FN(load)((const REAL *)w->b_ih + at, n);
            if (w->b_hh) b += FN(load)((const REAL *)w->b_hh + at, n);
            *(vec *)(base + plan->packed.bias + (u * 4 + g) * LANES) = b;
        }
    }
    if (!s->projected) return;
    share(s->directions * output_blocks, p->rank, p->threads, &from, &to);
    for (long i = from; i < to; i++)
        FN(pack_transposed)((const REAL *)job->weights[i / output_blocks].w_hr + i % output_blocks * LANES * H, H, H,
                            R - i % output_blocks * LANES,
                            (REAL *)job->scratch + i / output_blocks * plan->direction + plan->packed.r
                                + i % output_blocks * LANES * SLOTS(H), LANES);
}
