/* The tile of int8 weights: rows of the left operand become 16-bit integers, products are exact, sums become floats.
 *
 * A slot is four terms.  The instruction set's file defines
 *
 *   SUMS                       integer sums for each row and column: 1, or 2 where upper and lower bytes are multiplied apart
 *   WORDS(q, to, step, count)  the terms q, a vector of integers, as two words of 32 bits a slot, in the form that is multiplied:
 *                              slot i at to[i * step] and to[i * step + 1]
 *   ADD_TERMS(s, a, w)         adds the products of the two words at a with the slots of weights at w to the SUMS sums s
 *   OFFSET(s, offset)          what the sums begin with; offset is 128 times the sum of each column's weights, which is wanted where
 *                              128 was added to, or taken from, the bytes of activations
 *   AS_FLOATS(s)               the sums as a vector of floats
 *   MOST_SLOTS                 that many slots cannot overflow a sum
 *   NEAREST(v)                 a vector of floats rounded to integers, the even one of two
 *   UPPER_AND_LOWER(q, upper, lower)
 *                              with TILE_PRODUCTS: the bytes of the terms q, 32768 added to each, to `upper` and `lower`
 */
enum { FN(TALL) = 3, FN(STEPS) = 32767 };

typedef uint32_t FN(word) __attribute__((may_alias));

/* With tile registers, more than TALL rows are multiplied by tiles of up to 16. */
#if defined TILE_PRODUCTS
INLINE long FN(tile_height)(long rows) { return rows > FN(TALL) ? FN(even)(rows, 16) : FN(even)(rows, FN(TALL)); }
#else
INLINE long FN(tile_height)(long rows) { return FN(even)(rows, FN(TALL)); }
#endif

/* A row has one scale, so all of it is packed at once. */
INLINE long FN(depth)(long rows, long K) { (void)rows; return K; }

INLINE void FN(tile)(int rows, int cols, const FN(product_t) *product) {
    vec sums[FN(TALL)][4];
    const FN(word) *a = (const FN(word) *)(product->a + rows);
    const REAL *b = product->b;
    const long b_slot = product->b_slot, b_vector = product->b_vector, b_panel = product->b_panel;
    long rest = product->K;
    UNROLL(4)
    for (int r = 0; r < rows; r++)
        UNROLL(4)
        for (int v = 0; v < cols; v++) sums[r][v] = (vec){0};
    ROLL
    do {
        ivec sum[FN(TALL)][4][SUMS];
        UNROLL(4)
        for (int r = 0; r < rows; r++)
            UNROLL(4)
            for (int v = 0; v < cols; v++)
                UNROLL(2)
                for (int i = 0; i < SUMS; i++) sum[r][v][i] = (ivec){0};
        if (rest == product->K)
            UNROLL(4)
            for (int r = 0; r < rows; r++)
                UNROLL(4)
                for (int v = 0; v < cols; v++) OFFSET(sum[r][v], *(const ivec *)(product->offset + v * LANES));
        long n = rest < MOST_SLOTS ? rest : MOST_SLOTS;
        rest -= n;
        ROLL
        for (; n > 0; n--, a += 2 * rows, b += b_slot)
            UNROLL(4)
            for (int v = 0; v < cols; v++) {
                const REAL *weights = b + v % COLS * b_vector + v / COLS * b_panel;
                UNROLL(4)
                for (int r = 0; r < rows; r++) ADD_TERMS(sum[r][v], a + 2 * r, weights);
            }
        UNROLL(4)
        for (int r = 0; r < rows; r++)
            UNROLL(4)
            for (int v = 0; v < cols; v++) sums[r][v] += AS_FLOATS(sum[r][v]);
    } while (rest > 0);
    UNROLL(4)
    for (int r = 0; r < rows; r++)
        UNROLL(4)
        for (int v = 0; v < cols; v++) {
            vec all = sums[r][v] * (*(const vec *)(product->scale + v * LANES) * product->a[r]);
            if (product->from) all += *(const vec *)(product->from + r * product->from_row + v * product->from_vector);
            *(vec *)(product->acc + r * product->acc_row + v * product->acc_vector) = all;
        }
}

/* The scale of a row of K terms: the largest absolute value, or `least` if that is larger, becomes 32767.  The scale is NaN if a
 * term is not finite, which makes all gates of the row NaN, and 0 if no term is above FAINT, whose reciprocal would overflow. */
INLINE REAL FN(scale_of)(const REAL *a, long K, REAL least, REAL *inverse) {
    const REAL FAINT = 1e-33f;
    ivec most = {0}, larger;
    for (long k = 0; k < K; k += LANES) {
        ivec bits = (ivec)FN(load)(a + k, K - k) & 0x7fffffff;
        larger = bits > most, most = (larger & bits) | (~larger & most);
    }
    union { INTEGER bits; REAL real; } top = { .real = least };
    for (int j = 0; j < LANES; j++)
        if (most[j] > top.bits) top.bits = most[j];
    *inverse = 0;
    if (top.bits >= 0x7f800000) return __builtin_nanf("");
    if (top.real < FAINT) return 0;
    *inverse = FN(STEPS) / top.real;
    return top.real / FN(STEPS);
}

#if defined TILE_PRODUCTS
/* Where the bytes of a tall tile begin: after the scales of its rows, at the start of a cache line. */
INLINE unsigned char *FN(tile_bytes)(const REAL *a, long rows) {
    return (unsigned char *)(((uintptr_t)(a + rows) + 63) / 64 * 64);
}

/* As tile, for 4 to 16 rows.  All K terms go into one sum: frozen.py packs no more than MOST_SLOTS slots. */
NOINLINE void FN(tall_tile)(long rows, long cols, const FN(product_t) *product) {
    int32_t sums[2][4][16][LANES];
    TILE_PRODUCTS(rows, cols, FN(tile_bytes)(product->a, rows), (product->K + TILE_SLOTS - 1) / TILE_SLOTS, product->b,
                  product->b_slot, product->b_vector, sums);
    for (long v = 0; v < cols; v++) {
        const ivec offset = *(const ivec *)(product->offset + v * LANES);
        const vec scale = *(const vec *)(product->scale + v * LANES);
        for (long r = 0; r < rows; r++) {
            const ivec s[2] = { *(const ivec *)sums[0][v][r] - offset, *(const ivec *)sums[1][v][r] };
            vec sum = AS_FLOATS(s) * (scale * product->a[r]);
            if (product->from) sum += *(const vec *)(product->from + r * product->from_row + v * product->from_vector);
            *(vec *)(product->acc + r * product->acc_row + v * product->acc_vector) = sum;
        }
    }
}

/* Packs a row of K terms for a tall tile: for each block of 64 terms the upper bytes, and `apart` bytes later the lower ones; the
 * next block is `next` bytes later. */
INLINE void FN(pack_bytes)(const REAL *row, long K, REAL inverse, unsigned char *to, long apart, long next) {
    for (long k = 0; k < K; k += 64, to += next)
        for (long i = 0; i < 64; i += LANES) {
            const long left = K - k - i;
            /* Zeros after the row's last slot: the weights beside them belong to another panel. */
            const ivec q = inverse == 0 || left <= 0 ? (ivec){0} : NEAREST(FN(load)(row + k + i, left) * inverse);
            UPPER_AND_LOWER(q, to + i, to + apart + i)
            if (left < LANES) {
                const long filled = left > 0 ? SLOTS(left) * PER_SLOT : 0;
                __builtin_memset(to + i + filled, 0, (size_t)(LANES - filled));
                __builtin_memset(to + apart + i + filled, 0, (size_t)(LANES - filled));
            }
        }
}
#endif

/* Packs rows of K terms: for each tile the scales of its rows, then for each slot the two words of each row;
 * for a tall tile, bytes instead of words: pack_bytes. */
INLINE const REAL *FN(pack_left)(const REAL *a, long lda, long rows, long K, REAL *to, REAL least) {
    const REAL *start = to;
    for (long n; rows > 0; rows -= n, a += n * lda, to += n * LEFT_LENGTH(SLOTS(K))) {
        n = FN(tile_height)(rows);
        for (long r = 0; r < n; r++) {
            const REAL *row = a + r * lda;
            FN(word) *words = (FN(word) *)(to + n) + 2 * r;
            REAL inverse;
            to[r] = FN(scale_of)(row, K, least, &inverse);
#if defined TILE_PRODUCTS
            if (n > FN(TALL)) {
                FN(pack_bytes)(row, K, inverse, FN(tile_bytes)(to, n) + r * 64, n * 64, n * 128);
                continue;
            }
#endif
            for (long k = 0; k < K; k += LANES) {
                /* inverse is 0 of a row that is not finite: infinity times 0 is NaN, which rounds to some integer. */
                ivec q = inverse == 0 ? (ivec){0} : NEAREST(FN(load)(row + k, K - k) * inverse);
                long count = K - k < LANES ? SLOTS(K - k) : LANES / 4;
                WORDS(q, words, 2 * n, count);
                words += 2 * n * count;
            }
        }
    }
    return start;
}
