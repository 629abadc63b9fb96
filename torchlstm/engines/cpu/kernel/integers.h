/* The tile of int8 weights: rows of the left operand become 16-bit integers, products are exact, sums become floats.
 *
 * A slot is four terms.  Of each row the four make two words of 32 bits, as the instruction set multiplies them: WORDS.
 * ADD_TERMS adds their products with the weights of a slot to the row's SUMS sums, and AS_FLOATS makes a vector of floats of these.
 * `offset`, 128 times the sum of a column's weights, is what OFFSET puts into the sums first: where activations are multiplied as
 * bytes without a sign.  MOST_SLOTS slots at most cannot overflow a sum.
 */
enum { FN(TALL) = 3, FN(STEPS) = 32767 };

typedef uint32_t FN(word) __attribute__((may_alias));

/* More than TALL rows are multiplied by tiles of up to 16, where there are these. */
#if defined TILE_PRODUCTS
INLINE long FN(tile_height)(long rows) { return rows > FN(TALL) ? FN(even)(rows, 16) : FN(even)(rows, FN(TALL)); }
#else
INLINE long FN(tile_height)(long rows) { return FN(even)(rows, FN(TALL)); }
#endif

/* A row has one scale: all of it is packed at once. */
INLINE long FN(depth)(long rows, long K) { (void)rows; return K; }

INLINE void FN(tile)(int rows, int cols, const FN(product_t) *m) {
    vec sums[FN(TALL)][4];
    const FN(word) *a = (const FN(word) *)(m->a + rows);
    const REAL *b = m->b;
    const long bk = m->bk, bv = m->bv, bp = m->bp;
    long left = m->K;
    UNROLL(4)
    for (int r = 0; r < rows; r++)
        UNROLL(4)
        for (int v = 0; v < cols; v++) sums[r][v] = (vec){0};
    ROLL
    do {
        ivec s[FN(TALL)][4][SUMS];
        UNROLL(4)
        for (int r = 0; r < rows; r++)
            UNROLL(4)
            for (int v = 0; v < cols; v++)
                UNROLL(2)
                for (int i = 0; i < SUMS; i++) s[r][v][i] = (ivec){0};
        if (left == m->K)
            UNROLL(4)
            for (int r = 0; r < rows; r++)
                UNROLL(4)
                for (int v = 0; v < cols; v++) OFFSET(s[r][v], *(const ivec *)(m->offset + v * LANES));
        long n = left < MOST_SLOTS ? left : MOST_SLOTS;
        left -= n;
        ROLL
        for (; n > 0; n--, a += 2 * rows, b += bk)
            UNROLL(4)
            for (int v = 0; v < cols; v++) {
                const REAL *w = b + v % COLS * bv + v / COLS * bp;
                UNROLL(4)
                for (int r = 0; r < rows; r++) ADD_TERMS(s[r][v], a + 2 * r, w);
            }
        UNROLL(4)
        for (int r = 0; r < rows; r++)
            UNROLL(4)
            for (int v = 0; v < cols; v++) sums[r][v] += AS_FLOATS(s[r][v]);
    } while (left > 0);
    UNROLL(4)
    for (int r = 0; r < rows; r++)
        UNROLL(4)
        for (int v = 0; v < cols; v++) {
            vec sum = sums[r][v] * (*(const vec *)(m->scale + v * LANES) * m->a[r]);
            if (m->from) sum += *(const vec *)(m->from + r * m->fr + v * m->fv);
            *(vec *)(m->acc + r * m->ar + v * m->av) = sum;
        }
}

/* The scale of a row of K terms: the largest of them, or `least` if that is larger, becomes 32767.  NaN if a term is not
 * finite, as all gates of the row then are; 0, and a row of zeros, if no term is above FAINT, whose reciprocal overflows. */
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
/* Where the bytes of a tall tile begin: behind the scales of its rows, at the beginning of a line of memory. */
INLINE unsigned char *FN(tile_bytes)(const REAL *a, long rows) {
    return (unsigned char *)(((uintptr_t)(a + rows) + 63) / 64 * 64);
}

/* As tile, of 4 to 16 rows.  One sum is enough for all terms that there may be: MOST_SLOTS. */
NOINLINE void FN(tall_tile)(long rows, long cols, const FN(product_t) *m) {
    int32_t sums[2][4][16][LANES];
    TILE_PRODUCTS(rows, cols, FN(tile_bytes)(m->a, rows), (m->K + TILE_SLOTS - 1) / TILE_SLOTS, m->b, m->bk, m->bv, sums);
    for (long v = 0; v < cols; v++) {
        const ivec offset = *(const ivec *)(m->offset + v * LANES);
        const vec scale = *(const vec *)(m->scale + v * LANES);
        for (long r = 0; r < rows; r++) {
            const ivec s[2] = { *(const ivec *)sums[0][v][r] - offset, *(const ivec *)sums[1][v][r] };
            vec sum = AS_FLOATS(s) * (scale * m->a[r]);
            if (m->from) sum += *(const vec *)(m->from + r * m->fr + v * m->fv);
            *(vec *)(m->acc + r * m->ar + v * m->av) = sum;
        }
    }
}

/* The upper bytes of a row, and `apart` behind them the lower ones; 64 of each, then those of the next block, `next` further. */
INLINE void FN(pack_bytes)(const REAL *row, long K, REAL inverse, unsigned char *to, long apart, long next) {
    for (long k = 0; k < K; k += 64, to += next)
        for (long i = 0; i < 64; i += LANES) {
            const long left = K - k - i;
            /* Beyond the row's slots are zeros: the weights there are another panel's. */
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

/* For each tile of rows their scales, then for each slot each row's two words; of a tall tile, bytes as pack_bytes lays them. */
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
                /* Infinity times 0 would be an integer of its own. */
                ivec q = inverse == 0 ? (ivec){0} : NEAREST(FN(load)(row + k, K - k) * inverse);
                long count = K - k < LANES ? SLOTS(K - k) : LANES / 4;
                WORDS(q, words, 2 * n, count);
                words += 2 * n * count;
            }
        }
    }
    return start;
}
