/* Products of whole matrices, by the microkernel: the gradients of inputs and weights, from what the time loop hands over.
 *
 * GEMM_DEPTH slots at a time, all threads pack b for all; each then takes rows of the result, GEMM_ROWS at a time, which
 * stay packed in its own cache while the columns change.  An element is a sum of sums of GEMM_DEPTH slots: a single sum,
 * of as many terms as a batch has rows, would lose digits.  The result does not depend on the number of threads.
 */

#if !defined TILE_PRODUCTS
/* Packs columns of a (K, columns), row stride lda, as pack_left packs rows: for each tile its columns side by side, slot after slot.
 * `room`: columns that may be read from a on. */
NOINLINE const REAL *FN(pack_turned)(const REAL *a, long lda, long columns, long room, long K, REAL *to) {
    const REAL *start = to;
    for (long n; columns > 0; columns -= n, room -= n, a += n, to += n * SLOTS(K)) {
        n = FN(tile_height)(columns);
        long k = 0;
        /* What a store leaves beyond the n-th is overwritten by the next slot's. */
        if (room >= 8)
            for (; k < SLOTS(K); k++)
                for (long i = 0; i < 8; i += QUAD) *(quad *)(to + k * n + i) = FN(slot_quad)(a + i, lda, k, K);
        for (; k < SLOTS(K); k++)
            for (long r = 0; r < n; r++) to[k * n + r] = FN(slot)(a + r, lda, k, K);
    }
    return start;
}
#endif

/* out (rows, columns), row stride ldo, += packed rows times up to `wide` vectors of columns of b; with `fresh` it is written.  Slot k of
 * vector v is at b + k * b_slot + v * LANES; of a last vector that is not whole, at edge + k * edge_slot. */
INLINE void FN(gemm_panel)(const REAL *a, long rows, long wide, const REAL *b, long b_slot, const REAL *edge, long edge_slot,
                           long K, REAL *out, long ldo, long columns, int fresh) {
    long whole = columns >= wide * LANES ? wide : columns / LANES;
    FN(product_t) product = { .a = a, .b = b, .acc = out, .K = K, 
                              .block = FN(block)(K, GEMM_BLOCK), .b_slot = b_slot, .b_vector = LANES,
                              .b_panel = COLS * LANES, .acc_row = ldo, .acc_vector = LANES, .add = !fresh };
    if (whole) FN(multiply)(product, rows, whole);
    if (whole == wide || columns == whole * LANES) return;
    REAL part[GEMM_ROWS * LANES];
    product.b = edge, product.b_slot = edge_slot, product.acc = part, product.acc_row = LANES, product.add = 0;
    FN(multiply)(product, rows, 1);
    for (long r = 0; r < rows; r++)
        for (long j = whole * LANES; j < columns; j++) {
            REAL sum = part[r * LANES + j - whole * LANES];
            out[r * ldo + j] = fresh ? sum : out[r * ldo + j] + sum;
        }
}

TARGET static void FN(gemm)(const gemm_t *g, int rank, int threads, flag_t *flags) {
    enum { WIDTH = COLS * LANES };
    const REAL *a = g->a, *b = g->b;
    REAL *out = g->out, *panels = g->scratch;
    long count = blocks(g->N, WIDTH), panel_from, panel_to, row_from, row_to, met = 0;
    long slots = SLOTS(g->K), depth = FN(even)(slots, GEMM_DEPTH);
    REAL *left = panels + count * WIDTH * depth + rank * (GEMM_ROWS * depth + GEMM_SLACK);
    share(count, rank, threads, &panel_from, &panel_to);
    share(g->M, rank, threads, &row_from, &row_to);
    for (long k = 0, K; k < slots; k += K) {
        K = depth < slots - k ? depth : slots - k;
        long first = k * PER_SLOT, terms = FN(terms)(k, k + K, g->K);
        for (long p = panel_from; p < panel_to; p++)
            for (long v = 0; v < COLS; v++) {
                long column = p * WIDTH + v * LANES;
                if (column < g->N)
                    FN(pack_rows)(b + first * g->ldb + column, terms, g->ldb, g->N - column,
                                  panels + p * WIDTH * K + v * LANES, WIDTH);
            }
        meet(flags, threads, rank, ++met);
        for (long m = row_from, rows; m < row_to; m += rows) {
            rows = FN(even)(row_to - m, GEMM_ROWS);
            const REAL *packed = g->turned ? FN(pack_turned)(a + first * g->lda + m, g->lda, rows, g->M - m, terms, left)
                                           : FN(pack_left)(a + m * g->lda + first, g->lda, rows, terms, left, 0);
            for (long p = 0; p < count; p++) {
                const REAL *panel = panels + p * WIDTH * K;
                long columns = g->N - p * WIDTH < WIDTH ? g->N - p * WIDTH : WIDTH;
                FN(gemm_panel)(packed, rows, COLS, panel, WIDTH, panel + columns / LANES * LANES, WIDTH, K,
                               out + m * g->ldo + p * WIDTH, g->ldo, columns, !g->add && !k);
            }
        }
        meet(flags, threads, rank, ++met);
    }
    RELEASE_TILES();
}

#if SLOT_HOLDS == ONE_TERM
/* A thin product.  The threads share the longer side of the result, and wait for nobody. */
TARGET static void FN(gemm_thin)(const gemm_t *g, int rank, int threads) {
    enum { WIDTH = COLS * LANES };
    const REAL *a = g->a, *b = g->b;
    long depth = FN(even)(g->K, GEMM_DEPTH), column_from = 0, column_to = g->N, row_from = 0, row_to = g->M;
    REAL *left = (REAL *)g->scratch + rank * thin_room(depth, LANES), *edge = left + GEMM_ROWS * depth + GEMM_SLACK;
    if (g->M > g->N) {
        share(g->M, rank, threads, &row_from, &row_to);
    } else {
        share(blocks(g->N, WIDTH), rank, threads, &column_from, &column_to);
        column_from *= WIDTH, column_to = column_to * WIDTH < g->N ? column_to * WIDTH : g->N;
    }
    for (long k = 0, K; k < g->K; k += K) {
        K = depth < g->K - k ? depth : g->K - k;
        const REAL *at = b + k * g->ldb;
        if (column_to % LANES) FN(pack_rows)(at + column_to / LANES * LANES, K, g->ldb, column_to % LANES, edge, LANES);
        for (long m = row_from, rows; m < row_to; m += rows) {
            rows = FN(even)(row_to - m, GEMM_ROWS);
            const REAL *packed = g->turned ? FN(pack_turned)(a + k * g->lda + m, g->lda, rows, g->M - m, K, left)
                                           : FN(pack_left)(a + m * g->lda + k, g->lda, rows, K, left, 0);
            for (long n = column_from, wide = FN(wide)(rows); n < column_to; n += wide * LANES)
                FN(gemm_panel)(packed, rows, wide, at + n, g->ldb, edge, LANES, K, (REAL *)g->out + m * g->ldo + n, g->ldo,
                               column_to - n, !g->add && !k);
        }
    }
}
#endif
