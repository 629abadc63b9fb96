/* The microkernel: a tile of packed rows times panels of columns, and the packing of the rows. */

/* One tile: 1 to 6 rows of the left operand times 1 to 4 vectors of columns of the right one.
 *
 *                                          b: slot k is `b_slot` after slot k - 1
 *                              panel 0, its COLS vectors b_vector apart        panel 1, b_panel after it
 *                              +-- LANES --+-- LANES --+                       +-- LANES --+-- LANES --+
 *                       slot k | vector 0  | vector 1  |                       | vector 2  | vector 3  |
 *                              +-----------+-----------+                       +-----------+-----------+
 *     a: slot after slot,            |           |                                   |           |
 *     the rows side by side          v           v                                   v           v
 *        +--------+            +-----------+-----------+                       +-----------+-----------+
 *        | a[0] k | row 0  ->  | sum[0][0] | sum[0][1] |                       | sum[0][2] | sum[0][3] |
 *        | a[1] k | row 1  ->  | sum[1][0] | sum[1][1] |                       | sum[1][2] | sum[1][3] |
 *        |  ...   |            |    ...    |    ...    |                       |    ...    |    ...    |
 *        | a[5] k | row 5  ->  | sum[5][0] | sum[5][1] |                       | sum[5][2] | sum[5][3] |
 *        +--------+            +-----------+-----------+                       +-----------+-----------+
 *
 * All sums are registers, one vector each: with 32 registers (COLS 4) 6 rows times one panel of 4 vectors, with 16 (COLS 2) 6 rows
 * times one panel of 2.  A tile of 1 or 2 rows always has 4 vectors, which with COLS 2 are two panels, as drawn.
 *
 *     so_far = from, or 0
 *     for each block of slots:                          # at most `block` of them
 *         sum[row][v] = 0                               # for all rows and vectors v of the tile
 *         for each slot k of the block:
 *             weights[v] = b[k * b_slot + v % COLS * b_vector + v / COLS * b_panel]      # a vector
 *             sum[row][v] += a[k * rows + row] * weights[v]                              # the element of a is broadcast
 *         so_far[row][v] += sum[row][v]
 *     acc[row * acc_row + v * acc_vector] = so_far[row][v]         # plus what was there, if `add`
 *
 * The order of a sum depends on K and `block` alone: not on the height of the tile, and so neither on the number of threads nor on
 * the other rows of a batch.  One chain over all of K would lose digits.
 */

/* acc = from + a b for `rows` rows and up to FN(wide)(rows) vectors of columns, K slots.  Strides count elements.
 *   a      (rows, K) as pack_left leaves it
 *   b      vectors of LANES elements, at the strides drawn above
 *   from   what the sums of blocks are added to, (rows, vectors, LANES) at strides from_row, from_vector; NULL: 0.  May be acc.
 *   acc    the sums, (rows, vectors, LANES) at strides acc_row, acc_vector
 *   block  slots of a block; the last one may have fewer
 *   add    the sums are added to acc when they are complete, which is more exact than to start with it if acc is a long sum
 *   scale, offset
 *          (vectors, LANES) of int8 weights, for each column (integers.h); else NULL */
typedef struct {
    const REAL *a, *b, *from, *scale;
    const int32_t *offset;
    REAL *acc;
    long K, block, b_slot, b_vector, b_panel, from_row, from_vector, acc_row, acc_vector;
    int add;
} FN(product_t);

/* The size of the next part, where n things are cut into parts of nearly equal size, none above `most`: 16 = 6 + 5 + 5. */
INLINE long FN(even)(long n, long most) {
    long parts = (n + most - 1) / most;
    return (n + parts - 1) / parts;
}

/* Slots of a block of a sum of K slots: no more than `most`, and blocks of nearly equal length. */
INLINE long FN(block)(long K, long most) { return K > most ? FN(even)(K, most) : K; }

/* Vectors of columns of a tile.  With 1 or 2 rows always 4: independent sums hide the latency of the additions. */
INLINE long FN(wide)(long rows) { return rows > 2 ? COLS : 4; }

#if SLOT_HOLDS != FOUR_BYTES
/* How many slots to sum before going on to the next columns: all, or as many blocks as keep the rows in the cache. */
INLINE long FN(depth)(long rows, long K) {
    long packed = LEFT_ROWS(rows) + LEFT_PART, most = LEFT_BYTES / LEFT_SLOT / (long)sizeof(REAL) / (packed ? packed : 1);
    long block = FN(block)(K, BLOCK_MOST);
    if (most >= K) return K;
    if (most < LEFT_LEAST / LEFT_SLOT) most = LEFT_LEAST / LEFT_SLOT;
    return FN(even)((K + block - 1) / block, most / block) * block;
}
#endif

#if SLOT_HOLDS == FOUR_BYTES
#include "integers.h"
#elif defined TILE_PRODUCTS
#include "tiles.h"
#else
/* Rows of a tile. */
INLINE long FN(tile_height)(long rows) { return FN(even)(rows, 6); }

/* The loop above.  A block is summed in registers; so_far is in the innermost cache, and acc after the last block. */
INLINE void FN(tile)(int rows, int cols, const FN(product_t) *product) {
    REAL so_far[6 * 4 * LANES], *to = so_far;
    const REAL *a = product->a, *b = product->b, *from = product->from;
    long b_slot = product->b_slot, b_vector = product->b_vector, b_panel = product->b_panel;
    long from_row = product->from_row, from_vector = product->from_vector, to_row = cols * LANES, to_vector = LANES;
    long rest = product->K;
    ROLL
    do {
        vec sum[6][4];
        UNROLL(8)
        for (int r = 0; r < rows; r++)
            UNROLL(8)
            for (int v = 0; v < cols; v++) sum[r][v] = (vec){0};
        long n = rest < product->block ? rest : product->block;
        rest -= n;
        ROLL
        for (; n > 0; n--, b += b_slot)
            UNROLL(2)
            for (int i = 0; i < LEFT_SLOT; i++, a += rows) {
                vec weights[4];
                UNROLL(8)
                for (int v = 0; v < cols; v++) weights[v] = FN(weight)(b + v % COLS * b_vector + v / COLS * b_panel, i);
                UNROLL(8)
                for (int r = 0; r < rows; r++)
                    UNROLL(8)
                    for (int v = 0; v < cols; v++) sum[r][v] = FN(multiply_add)(sum[r][v], a[r], weights[v]);
            }
        if (from)
            UNROLL(8)
            for (int r = 0; r < rows; r++)
                UNROLL(8)
                for (int v = 0; v < cols; v++) sum[r][v] += *(const vec *)(from + r * from_row + v * from_vector);
        if (!rest) to = product->acc, to_row = product->acc_row, to_vector = product->acc_vector;
        if (!rest && product->add)
            UNROLL(8)
            for (int r = 0; r < rows; r++)
                UNROLL(8)
                for (int v = 0; v < cols; v++) sum[r][v] += *(const vec *)(to + r * to_row + v * to_vector);
        UNROLL(8)
        for (int r = 0; r < rows; r++)
            UNROLL(8)
            for (int v = 0; v < cols; v++) *(vec *)(to + r * to_row + v * to_vector) = sum[r][v];
        from = to, from_row = to_row, from_vector = to_vector;
    } while (rest > 0);
}

/* Packs rows of K terms of the left operand (rows, K), row stride lda, as the tiles read them: for each tile its rows side by
 * side, slot after slot.  (Read in place, rows that lie a power of two apart would evict each other.)  `to` needs QUAD
 * elements of slack.  Returns where the packed rows are: a single row is used where it is, if its slots are its elements.  `least`: see
 * integers.h. */
INLINE const REAL *FN(pack_left)(const REAL *a, long lda, long rows, long K, REAL *to, REAL least) {
    (void)least;
    if (rows == 1 && PER_LEFT == 1 && K % PER_SLOT == 0) return a;
    const REAL *start = to;
    for (long n; rows > 0; rows -= n, a += n * lda, to += n * LEFT_COLUMNS(SLOTS(K))) {
        n = FN(tile_height)(rows);
        const REAL *row[8];
        for (long r = 0; r < 8; r++) row[r] = a + (r < n ? r : n - 1) * lda;
        long k = 0;
        /* What a store leaves beyond the n-th row is overwritten by the next slot's. */
        for (; (k + QUAD) * PER_LEFT <= K; k += QUAD) {
            quad in[QUAD], q[8 / QUAD][QUAD];
            for (long i = 0; i * QUAD < n; i++) {
                for (long j = 0; j < QUAD; j++) in[j] = FN(slots)(row[i * QUAD + j], k);
                FN(transpose)(q[i], in);
            }
            for (long j = 0; j < QUAD; j++)
                for (long i = 0; i * QUAD < n; i++) *(quad *)(to + (k + j) * n + i * QUAD) = q[i][j];
        }
        for (; k < LEFT_COLUMNS(SLOTS(K)); k++)
            for (long r = 0; r < n; r++) to[k * n + r] = FN(slot)(row[r], 1, k, K);
    }
    return start;
}
#endif

#if SLOT_HOLDS == FOUR_BYTES || !defined TILE_PRODUCTS
/* A function for each height and width, whose sums are registers: up to 2 rows of 1 to 4 vectors, or more rows of 1 to COLS. */
#define TILE(rows, cols) \
    NOINLINE void FN(tile_##rows##cols)(const FN(product_t) *product) { FN(tile)(rows, cols, product); }
TILE(1, 1) TILE(2, 1)
TILE(1, 2) TILE(2, 2)
TILE(1, 3) TILE(2, 3)
TILE(1, 4) TILE(2, 4)
#if SLOT_HOLDS == FOUR_BYTES
TILE(3, 1)
TILE(3, 2)
#if COLS == 4
TILE(3, 3)
TILE(3, 4)
#endif
#else
TILE(3, 1) TILE(4, 1) TILE(5, 1) TILE(6, 1)
TILE(3, 2) TILE(4, 2) TILE(5, 2) TILE(6, 2)
#if COLS == 4
TILE(3, 3) TILE(4, 3) TILE(5, 3) TILE(6, 3)
TILE(3, 4) TILE(4, 4) TILE(5, 4) TILE(6, 4)
#endif
#endif

/* [columns - 1][rows - 1] */
#define LOW(cols) FN(tile_1##cols), FN(tile_2##cols)
#define MIDDLE(cols) LOW(cols), FN(tile_3##cols)
#define HIGH(cols) MIDDLE(cols), FN(tile_4##cols), FN(tile_5##cols), FN(tile_6##cols)
static void (*const FN(tiles)[4][6])(const FN(product_t) *) = {
#if SLOT_HOLDS == FOUR_BYTES && COLS == 4
    { MIDDLE(1) }, { MIDDLE(2) }, { MIDDLE(3) }, { MIDDLE(4) },
#elif SLOT_HOLDS == FOUR_BYTES
    { MIDDLE(1) }, { MIDDLE(2) }, { LOW(3) }, { LOW(4) },
#elif COLS == 4
    { HIGH(1) }, { HIGH(2) }, { HIGH(3) }, { HIGH(4) },
#else
    { HIGH(1) }, { HIGH(2) }, { LOW(3) }, { LOW(4) },
#endif
};

/* The product for any number of rows, tile by tile. */
INLINE void FN(multiply)(FN(product_t) product, long rows, long cols) {
    for (long n; rows > 0; rows -= n) {
        n = FN(tile_height)(rows);
#if defined TILE_PRODUCTS
        if (n > FN(TALL)) FN(tall_tile)(n, cols, &product);
        else
#endif
            FN(tiles)[cols - 1][n - 1](&product);
        product.a += n * LEFT_LENGTH(product.K), product.acc += n * product.acc_row;
        if (product.from) product.from += n * product.from_row;
    }
}
#endif
