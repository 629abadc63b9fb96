/* The microkernel: a tile of rows times panels of packed weights, and the packing. */

/* acc = from + a b for `rows` rows and up to COLS vectors of columns, K terms.
 *   a      (rows, K) with row stride lda
 *   b      term k of column v at b + k * bk + v * bv, LANES wide
 *   from   what the sums start with, (rows, columns) vectors at strides fr, fv; NULL: 0.  May be acc.
 *   acc    the sums, (rows, columns) vectors at strides ar, av */
typedef struct {
    const REAL *a, *b, *from;
    REAL *acc;
    long K, lda, bk, bv, fr, fv, ar, av;
} FN(product_t);

/* One tile, in registers.  Rows of their own sum in one chain along K, whatever the height of the tile, from 3 rows
 * on; with 1 or 2 rows, `phases` independent chains hide the latency of the additions. */
INLINE void FN(tile)(int rows, int cols, int phases, const FN(product_t) *m) {
    vec s[4][6][4];
    const REAL *a = m->a, *b = m->b, *from = m->from;
    REAL *acc = m->acc;
    long k = 0, K = m->K, lda = m->lda, bk = m->bk, bv = m->bv, fr = m->fr, fv = m->fv, ar = m->ar, av = m->av;
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
                for (int v = 0; v < cols; v++) s[f][r][v] += a[r * lda + k + f] * w[v];
        }
    if (phases > 1)
#pragma GCC unroll 1
        for (; k < K; k++, b += bk)
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
                for (int v = 0; v < cols; v++) s[0][r][v] += a[r * lda + k] * *(const vec *)(b + v * bv);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < cols; v++) {
            vec sum = s[0][r][v];
#pragma GCC unroll 8
            for (int f = 1; f < phases; f++) sum += s[f][r][v];
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

/* The same for any number of rows, in tiles of nearly equal height (16 = 6 + 5 + 5). */
INLINE void FN(multiply)(FN(product_t) m, long rows, long cols) {
    for (long tiles = (rows + 5) / 6; tiles > 0; tiles--) {
        long n = (rows + tiles - 1) / tiles;
        FN(tiles)[cols - 1][n - 1](&m);
        m.a += n * m.lda, m.acc += n * m.ar, rows -= n;
        if (m.from) m.from += n * m.fr;
    }
}

/* How many terms to sum before going on to the next columns: all, or as many as keep the rows of `a` in the cache. */
INLINE long FN(depth)(long rows, long K) {
    long most = A_BYTES / (long)sizeof(REAL) / (rows ? rows : 1);
    if (most >= K) return K;
    if (most < 512) most = 512;
    long parts = (K + most - 1) / most;
    return (K + parts - 1) / parts;
}

/* Columns [0, LANES) of w, K terms `stride` apart, the term varying along `along`: the packed column of a
 * product with w itself (rows are terms) or with its transpose (rows are columns). */
INLINE void FN(pack_rows)(const REAL *w, long K, long stride, long n, REAL *to, long step) {
    for (long k = 0; k < K; k++, to += step) *(vec *)to = FN(load)(w + k * stride, n);
}
INLINE void FN(pack_transposed)(const REAL *w, long K, long stride, long n, REAL *to, long step) {
    for (long k0 = 0; k0 < K; k0 += 16) {
        long k1 = k0 + 16 < K ? k0 + 16 : K;
        for (long j = 0; j < LANES; j++)
            for (long k = k0; k < k1; k++) to[k * step + j] = j < n ? w[j * stride + k] : 0;
    }
}
