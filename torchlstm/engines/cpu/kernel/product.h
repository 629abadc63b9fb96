/* The microkernel: a tile of packed rows times panels of columns, and the packing of the rows. */

/* Every product sums along K in one order, whatever the height of a tile, and so whatever the number of threads and the
 * other rows of a batch: blocks of FN(block) slots are summed from 0 each, and the sums of blocks are added one after the
 * other.  (One long chain would lose digits.)
 *
 * acc = from + a b for `rows` rows and up to FN(wide)(rows) vectors of columns, K slots.
 *   a      (rows, K) as pack_left leaves it
 *   b      slot k of column v at b + k * bk + v % COLS * bv + v / COLS * bp, LANES wide
 *   from   what the sums of blocks are added to, (rows, columns) vectors at strides fr, fv; NULL: 0.  May be acc.
 *   acc    the sums, (rows, columns) vectors at strides ar, av
 *   block  slots of a block; the last one may have fewer
 *   add    add the sums to acc when they are complete, which is more exact than to start with it if acc is a long sum
 *   scale, offset
 *          of integers (integers.h): for each column; else NULL */
typedef struct {
    const REAL *a, *b, *from, *scale;
    const int32_t *offset;
    REAL *acc;
    long K, block, bk, bv, bp, fr, fv, ar, av;
    int add;
} FN(product_t);

/* Things are cut into parts of nearly equal size, none above `most` (16 = 6 + 5 + 5). */
INLINE long FN(even)(long n, long most) {
    long parts = (n + most - 1) / most;
    return (n + parts - 1) / parts;
}

/* Slots of a block of a sum of K slots: no more than `most`, and blocks of nearly equal length. */
INLINE long FN(block)(long K, long most) { return K > most ? FN(even)(K, most) : K; }

/* Vectors of columns of a tile.  With 1 or 2 rows always 4: independent sums hide the latency of the additions. */
INLINE long FN(wide)(long rows) { return rows > 2 ? COLS : 4; }

#if SLOT_HOLDS == FOUR_BYTES
#include "integers.h"
#else
/* Rows of a tile. */
INLINE long FN(tile_height)(long rows) { return FN(even)(rows, 6); }

/* How many slots to sum before going on to the next columns: all, or as many blocks as keep the rows in the cache. */
INLINE long FN(depth)(long rows, long K) {
    long most = LEFT_BYTES / LEFT_SLOT / (long)sizeof(REAL) / (rows ? rows : 1), block = FN(block)(K, BLOCK_MOST);
    if (most >= K) return K;
    if (most < LEFT_LEAST / LEFT_SLOT) most = LEFT_LEAST / LEFT_SLOT;
    return FN(even)((K + block - 1) / block, most / block) * block;
}

/* One tile.  A block is summed in registers; the sum so far is beside, in the innermost cache. */
INLINE void FN(tile)(int rows, int cols, const FN(product_t) *m) {
    REAL sums[6 * 4 * LANES], *to = sums;
    const REAL *a = m->a, *b = m->b, *from = m->from;
    long bk = m->bk, bv = m->bv, bp = m->bp, fr = m->fr, fv = m->fv, tr = cols * LANES, tv = LANES, left = m->K;
    ROLL
    do {
        vec s[6][4];
        UNROLL(8)
        for (int r = 0; r < rows; r++)
            UNROLL(8)
            for (int v = 0; v < cols; v++) s[r][v] = (vec){0};
        long n = left < m->block ? left : m->block;
        left -= n;
        ROLL
        for (; n > 0; n--, b += bk)
            UNROLL(2)
            for (int i = 0; i < LEFT_SLOT; i++, a += rows) {
                vec w[4];
                UNROLL(8)
                for (int v = 0; v < cols; v++) w[v] = FN(weight)(b + v % COLS * bv + v / COLS * bp, i);
                UNROLL(8)
                for (int r = 0; r < rows; r++)
                    UNROLL(8)
                    for (int v = 0; v < cols; v++) s[r][v] = FN(multiply_add)(s[r][v], a[r], w[v]);
            }
        if (from)
            UNROLL(8)
            for (int r = 0; r < rows; r++)
                UNROLL(8)
                for (int v = 0; v < cols; v++) s[r][v] += *(const vec *)(from + r * fr + v * fv);
        if (!left) to = m->acc, tr = m->ar, tv = m->av;
        if (!left && m->add)
            UNROLL(8)
            for (int r = 0; r < rows; r++)
                UNROLL(8)
                for (int v = 0; v < cols; v++) s[r][v] += *(const vec *)(to + r * tr + v * tv);
        UNROLL(8)
        for (int r = 0; r < rows; r++)
            UNROLL(8)
            for (int v = 0; v < cols; v++) *(vec *)(to + r * tr + v * tv) = s[r][v];
        from = to, fr = tr, fv = tv;
    } while (left > 0);
}

/* Rows of K terms of the left operand as the tiles read them: for each tile its rows side by side, slot after slot.  (Read in
 * place, rows that lie a power of two apart would evict each other.)  `to` needs QUAD elements of slack.  Returns
 * where the packed rows are: one row of elements is so already.  `least`: see integers.h. */
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

/* A function for each height and width, whose sums are registers: up to 2 rows of 1 to 4 vectors, or more rows of 1 to COLS. */
#define TILE(rows, cols) \
    NOINLINE void FN(tile_##rows##cols)(const FN(product_t) *m) { FN(tile)(rows, cols, m); }
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

/* The same for any number of rows. */
INLINE void FN(multiply)(FN(product_t) m, long rows, long cols) {
    for (long n; rows > 0; rows -= n) {
        n = FN(tile_height)(rows);
        FN(tiles)[cols - 1][n - 1](&m);
        m.a += n * LEFT_LENGTH(m.K), m.acc += n * m.ar;
        if (m.from) m.from += n * m.fr;
    }
}
