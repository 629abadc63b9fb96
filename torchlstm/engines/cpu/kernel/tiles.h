/* The microkernel where tile registers multiply pairs of bfloat16 (amx_bfloat16.c): 16 rows times 4 vectors of columns.
 *
 * The order of a sum depends on K alone: 16 slots are summed at a time, and these sums one after the other.
 */
enum { FN(TALL) = 16 };

/* As FN(multiply) of product.h, for `rows` of one tile.  The tile registers read and write all 16 rows of it, so fewer go through `whole`. */
NOINLINE void FN(tile)(const FN(product_t) *p, long rows, long cols) {
    REAL whole[FN(TALL) * 4 * LANES];
    tile_from_t from = { p->from, p->from_row, p->from_vector };
    tile_to_t to = { p->acc, p->acc_row, p->acc_vector }, apart = { whole, 4 * LANES, LANES };
    const int aside = rows < FN(TALL) || p->add;
    if (aside && p->from) {
        for (long r = 0; r < FN(TALL); r++)
            for (long v = 0; v < cols; v++)
                *(vec *)(whole + (r * 4 + v) * LANES) =
                    r < rows ? *(const vec *)(p->from + r * p->from_row + v * p->from_vector) : (vec){0};
        from = (tile_from_t){ whole, 4 * LANES, LANES };
    }
    TILE_PRODUCTS(cols, p->a, p->b, p->K, p->b_slot, p->b_vector, from, aside ? apart : to);
    if (!aside) return;
    for (long r = 0; r < rows; r++)
        for (long v = 0; v < cols; v++) {
            vec sum = *(const vec *)(whole + (r * 4 + v) * LANES), *acc = (vec *)(p->acc + r * p->acc_row + v * p->acc_vector);
            if (p->add) sum += *acc;
            *acc = sum;
        }
}

INLINE void FN(multiply)(FN(product_t) product, long rows, long cols) {
    for (; rows > 0; rows -= FN(TALL)) {
        FN(tile)(&product, rows < FN(TALL) ? rows : FN(TALL), cols);
        product.a += FN(TALL) * product.K, product.acc += FN(TALL) * product.acc_row;
        if (product.from) product.from += FN(TALL) * product.from_row;
    }
}

/* Packed rows: for each 16 rows, and 16 slots of them, (16, 16 slots); of the last slots (16, slots).  Rows that are missing stay undefined: no row
 * of a product depends on another. */
INLINE const REAL *FN(pack_left)(const REAL *a, long lda, long rows, long K, REAL *to, REAL least) {
    (void)least;
    const REAL *start = to;
    const long slots = SLOTS(K);
    for (; rows > 0; rows -= FN(TALL), a += FN(TALL) * lda, to += FN(TALL) * slots)
        for (long r = 0; r < rows && r < FN(TALL); r++)
            for (long k = 0; k < slots; k += LANES) {
                const long n = slots - k < LANES ? slots - k : LANES, left = K - 2 * k;
                const REAL *row = a + r * lda + 2 * k;
                const vec low = FN(load)(row, left), high = left > LANES ? FN(load)(row + LANES, left - LANES) : (vec){0};
                FN(store)(to + k * FN(TALL) + r * n, PAIR_TERMS(low, high), n);
            }
    return start;
}

/* Packs columns of a (K, columns), row stride lda, as pack_left packs rows. */
NOINLINE const REAL *FN(pack_turned)(const REAL *a, long lda, long columns, long room, long K, REAL *to) {
    (void)room;
    const REAL *start = to;
    const long slots = SLOTS(K);
    for (; columns > 0; columns -= FN(TALL), a += FN(TALL), to += FN(TALL) * slots) {
        const long wide = columns < FN(TALL) ? columns : FN(TALL);
        for (long k = 0; k < slots; k += LANES) {
            const long n = slots - k < LANES ? slots - k : LANES;
            vec part[LANES];
            for (long j = 0; j < LANES; j++) part[j] = j < n ? FN(slot_vec)(a, lda, k + j, K, wide) : (vec){0};
            FN(transpose_all)(part);
            for (long r = 0; r < wide; r++) FN(store)(to + k * FN(TALL) + r * n, part[r], n);
        }
    }
    return start;
}
