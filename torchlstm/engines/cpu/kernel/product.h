/* The microkernel: a tile of packed rows times panels of columns, and the packing. */

/* acc = from + a b for `rows` rows and up to COLS vectors of columns, K slots.
 *   a      (rows, K) as pack_left leaves it
 *   b      slot k of column v at b + k * bk + v * bv, LANES wide
 *   from   what the sums start with, (rows, columns) vectors at strides fr, fv; NULL: 0.  May be acc.
 *   acc    the sums, (rows, columns) vectors at strides ar, av
 *   add    add the sums to acc when they are complete, which is more exact than to start with it if acc is a long sum */
typedef struct {
    const REAL *a, *b, *from;
    REAL *acc;
    long K, bk, bv, fr, fv, ar, av;
    int add;
} FN(product_t);

/* One tile, in registers.  Rows of their own sum in one chain along K, whatever the height of the tile, from 3 rows
 * on; with 1 or 2 rows, `phases` independent chains hide the latency of the additions. */
INLINE void FN(tile)(int rows, int cols, int phases, const FN(product_t) *m) {
    vec s[4][6][4];
    const REAL *a = m->a, *b = m->b, *from = m->from;
    REAL *acc = m->acc;
    long k = 0, K = m->K, bk = m->bk, bv = m->bv, fr = m->fr, fv = m->fv, ar = m->ar, av = m->av;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < cols; v++) {
            s[0][r][v] = from ? *(const vec *)(from + r * fr + v * fv) : (vec){0};
#pragma GCC unroll 8
            for (int f = 1; f < phases; f++) s[f][r][v] = (vec){0};
        }
#pragma GCC unroll 1
    for (; k + phases <= K; k += phases)
#pragma GCC unroll 8
        for (int f = 0; f < phases; f++, b += bk) {
            vec w[4];
#pragma GCC unroll 8
            for (int v = 0; v < cols; v++) w[v] = *(const vec *)(b + v * bv);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
                for (int v = 0; v < cols; v++) s[f][r][v] = FN(multiply_add)(s[f][r][v], a[(k + f) * rows + r], w[v]);
        }
    if (phases > 1)
#pragma GCC unroll 1
        for (; k < K; k++, b += bk)
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
                for (int v = 0; v < cols; v++)
                    s[0][r][v] = FN(multiply_add)(s[0][r][v], a[k * rows + r], *(const vec *)(b + v * bv));
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < cols; v++) {
            vec sum = s[0][r][v];
#pragma GCC unroll 8
            for (int f = 1; f < phases; f++) sum += s[f][r][v];
            if (m->add) sum += *(const vec *)(acc + r * ar + v * av);
            *(vec *)(acc + r * ar + v * av) = sum;
        }
}

#define TILE(rows, cols)                                                                  \
    NOINLINE void FN(tile_##rows##cols)(const FN(product_t) *m) {                         \
        FN(tile)(rows, cols, rows > 2 ? 1 : rows * cols > 4 ? 1 : rows * cols > 2 ? 2 : 4, m); \
    }
#define TILES(cols) TILE(1, cols) TILE(2, cols) TILE(3, cols) TILE(4, cols) TILE(5, cols) TILE(6, cols)
#define TILE_NAMES(cols) \
    { FN(tile_1##cols), FN(tile_2##cols), FN(tile_3##cols), FN(tile_4##cols), FN(tile_5##cols), FN(tile_6##cols) }
TILES(1)
TILES(2)
#if COLS == 4
TILES(3)
TILES(4)
#endif
static void (*const FN(tiles)[COLS][6])(const FN(product_t) *) = {
    TILE_NAMES(1), TILE_NAMES(2),
#if COLS == 4
    TILE_NAMES(3), TILE_NAMES(4),
#endif
};

/* Rows are worked on in tiles of nearly equal height, none above `most` (16 = 6 + 5 + 5). */
INLINE long FN(even)(long rows, long most) {
    long tiles = (rows + most - 1) / most;
    return (rows + tiles - 1) / tiles;
}
INLINE long FN(tile_height)(long rows) { return FN(even)(rows, 6); }

/* The same for any number of rows. */
INLINE void FN(multiply)(FN(product_t) m, long rows, long cols) {
    for (long n; rows > 0; rows -= n) {
        n = FN(tile_height)(rows);
        FN(tiles)[cols - 1][n - 1](&m);
        m.a += n * m.K, m.acc += n * m.ar;
        if (m.from) m.from += n * m.fr;
    }
}

/* How many slots to sum before going on to the next columns: all, or as many as keep the rows in the cache. */
INLINE long FN(depth)(long rows, long K) {
    long most = LEFT_BYTES / (long)sizeof(REAL) / (rows ? rows : 1);
    if (most >= K) return K;
    if (most < LEFT_LEAST) most = LEFT_LEAST;
    long parts = (K + most - 1) / most;
    return (K + parts - 1) / parts;
}

/* Rows of K terms of the left operand as the tiles read them: for each tile its rows side by side, slot after slot.  (Read in
 * place, rows that lie a power of two apart would evict each other.)  `to` needs QUAD elements of slack.  Returns
 * where the packed rows are: one row of elements is so already. */
INLINE const REAL *FN(pack_left)(const REAL *a, long lda, long rows, long K, REAL *to) {
    if (rows == 1 && PER_SLOT == 1) return a;
    const REAL *start = to;
    for (long n; rows > 0; rows -= n, a += n * lda, to += n * SLOTS(K)) {
        n = FN(tile_height)(rows);
        const REAL *row[8];
        for (long r = 0; r < 8; r++) row[r] = a + (r < n ? r : n - 1) * lda;
        long k = 0;
        /* What a store leaves beyond the n-th row is overwritten by the next slot's. */
        for (; (k + QUAD) * PER_SLOT <= K; k += QUAD) {
            quad in[QUAD], q[8 / QUAD][QUAD];
            for (long i = 0; i * QUAD < n; i++) {
                for (long j = 0; j < QUAD; j++) in[j] = FN(slots)(row[i * QUAD + j], k);
                FN(transpose)(q[i], in);
            }
            for (long j = 0; j < QUAD; j++)
                for (long i = 0; i * QUAD < n; i++) *(quad *)(to + (k + j) * n + i * QUAD) = q[i][j];
        }
        for (; k < SLOTS(K); k++)
            for (long r = 0; r < n; r++) to[k * n + r] = FN(slot)(row[r], 1, k, K);
    }
    return start;
}

/* A packed column of a product with w (K, n): LANES of its columns, slot k at to + k * step. */
INLINE void FN(pack_rows)(const REAL *w, long K, long stride, long n, REAL *to, long step) {
    for (long k = 0; k < SLOTS(K); k++) *(vec *)(to + k * step) = FN(slot_vec)(w, stride, k, K, n);
}

/* The same for a product with the transpose of w (n, K). */
INLINE void FN(pack_transposed)(const REAL *w, long K, long stride, long n, REAL *to, long step) {
    long k = 0;
    for (; (k + LANES) * PER_SLOT <= K; k += LANES) {
        /* LANES x LANES, whole lines of memory at a time: quads of rows that lie a power of two apart would evict each other. */
        vec part[QUAD][QUADS];
#pragma GCC unroll 4
        for (long i = 0; i < QUADS; i++) {
            vec in[QUAD], out[QUAD];
#pragma GCC unroll 4
            for (long j = 0; j < QUAD; j++)
                in[j] = i * QUAD + j < n ? FN(slots_vec)(w + (i * QUAD + j) * stride, k) : (vec){0};
            FN(transpose_each)(out, in);
#pragma GCC unroll 4
            for (long j = 0; j < QUAD; j++) part[j][i] = out[j];
        }
#pragma GCC unroll 4
        for (long j = 0; j < QUAD; j++) {
            vec out[QUADS];
            FN(transpose_quads)(out, part[j]);
#pragma GCC unroll 4
            for (long i = 0; i < QUADS; i++) *(vec *)(to + (k + i * QUAD + j) * step) = out[i];
        }
    }
    for (; k < SLOTS(K); k++)
        for (long j = 0; j < LANES; j++) to[k * step + j] = j < n ? FN(slot)(w + j * stride, 1, k, K) : 0;
}
