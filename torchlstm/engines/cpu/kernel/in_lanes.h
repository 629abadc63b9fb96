/* Little work forward from packed weights: what in_place.h computes from torch's own, with the same bits.
 *
 * There the terms of a gate go to LANES partial sums, term k to lane k % LANES, and the lanes are added pair by pair.  Here a
 * vector holds a gate of LANES units, a panel is (K, LANES) for each gate, and each of the partial sums is a vector of its own.
 */

/* Rows of the left operand and of weights with K terms: row r at a + r * lda; gate g of unit j at w + (g H + j) K, or
 * packed at w + (j / LANES * 4 + g) K LANES the panel of its block. */
typedef struct { const REAL *a, *w; long lda, K; } FN(operands_t);

/* The gates of some rows and units: (rows, LANES, 4). */
typedef struct {
    FN(operands_t) of[2];
    int count;                          /* of operands    */
    int packed;                         /* the weights are */
    long H;
} FN(gates_t);

/* Partial sums that are kept in registers: of one row all lanes of a gate, and of more than one gate where these are few;
 * of more rows a quad of lanes. */
#define LANE_GATES (LANES >= 8 ? 1 : 8 / LANES > 4 ? 4 : 8 / LANES)
#define LANE_GROUP(rows) ((rows) == 1 || LANES < 4 ? LANES : 4)

/* Where a product with operands in memory order would put the last n terms of K: lanes from here on. */
INLINE long FN(rest_lane)(long n, long K) {
#if defined LOAD_FIRST
    (void)n, (void)K;
    return 0;
#else
    return K >= LANES ? LANES - n : 0;
#endif
}

/* sums[r][g][j] += terms k of rows times weights of `gates` gates, for the lanes j of [first, first + lanes). */
INLINE void FN(lane_tile)(int rows, int gates, int lanes, FN(operands_t) o, long first, vec sums[DOTS][4][LANES]) {
    vec s[DOTS][4][LANES];
    const long K = o.K, lda = o.lda, gate = K * LANES;
    const REAL *a = o.a + first, *w = o.w + first * LANES;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int g = 0; g < gates; g++)
#pragma GCC unroll 16
            for (int j = 0; j < lanes; j++) s[r][g][j] = sums[r][g][j];
    long k = K;
#pragma GCC unroll 1
    for (; k >= LANES; k -= LANES, a += LANES, w += LANES * LANES)
#pragma GCC unroll 16
        for (int j = 0; j < lanes; j++)
#pragma GCC unroll 4
            for (int g = 0; g < gates; g++) {
                vec y = *(const vec *)(w + g * gate + j * LANES);
#pragma GCC unroll 8
                for (int r = 0; r < rows; r++) s[r][g][j] += a[r * lda + j] * y;
            }
    if (k) {
        /* Lanes without a term add a product of zeros, as they do there. */
        const long lane = FN(rest_lane)(k, K) - first;
        a -= first, w -= first * LANES;
#pragma GCC unroll 16
        for (int j = 0; j < lanes; j++)
#pragma GCC unroll 4
            for (int g = 0; g < gates; g++) {
                long i = j - lane;
                vec y = {0};
                if (i >= 0 && i < k) y = *(const vec *)(w + g * gate + i * LANES);
#pragma GCC unroll 8
                for (int r = 0; r < rows; r++) s[r][g][j] += (i >= 0 && i < k ? a[r * lda + i] : 0) * y;
            }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int g = 0; g < gates; g++)
#pragma GCC unroll 16
            for (int j = 0; j < lanes; j++) sums[r][g][j] = s[r][g][j];
}

/* The sum of the lanes, in the order of lane_sums. */
INLINE vec FN(sum_lanes)(const vec s[LANES]) {
    vec q[QUADS];
#pragma GCC unroll 4
    for (int i = 0; i < QUADS; i++)
#if QUAD == 4
        q[i] = (s[4 * i] + s[4 * i + 2]) + (s[4 * i + 1] + s[4 * i + 3]);
#else
        q[i] = s[2 * i] + s[2 * i + 1];
#endif
#if LANES == 4 * QUAD
    return (q[0] + q[2]) + (q[1] + q[3]);
#elif LANES == 2 * QUAD
    return q[0] + q[1];
#else
    return q[0];
#endif
}

/* Gates [g, g + gates) of a block of units whose panels are at `w` of each operand: acc (rows, 4, LANES), all of `rows`. */
INLINE void FN(lane_block)(int rows, int gates, const FN(gates_t) *m, long r, long unit, long g, const REAL *from, long step,
                           REAL *acc) {
    enum { GROUP = LANE_GROUP(2) };
    vec sums[DOTS][4][LANES];
    const int lanes = LANE_GROUP(rows);
#pragma GCC unroll 1
    for (int first = 0; first < LANES; first += lanes) {
        vec part[DOTS][4][LANES];
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
            for (int h = 0; h < gates; h++)
#pragma GCC unroll 16
                for (int j = 0; j < lanes; j++) part[i][h][j] = (vec){0};
#pragma GCC unroll 1
        for (int i = 0; i < m->count; i++) {
            FN(operands_t) o = m->of[i];
            o.a += r * o.lda, o.w += (unit * 4 + g * LANES) * o.K;
            FN(lane_tile)(rows, gates, lanes, o, first, part);
        }
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
            for (int h = 0; h < gates; h++)
#pragma GCC unroll 16
                for (int j = 0; j < lanes; j++) sums[i][h][first + j] = part[i][h][j];
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int h = 0; h < gates; h++)
            *(vec *)(acc + (i * 4 + g + h) * LANES) = FN(sum_lanes)(sums[i][h]) + *(const vec *)(from + i * step + (g + h) * LANES);
}

#define LANE_BLOCK(rows, gates)                                                                             \
    NOINLINE void FN(lane_block_##rows)(const FN(gates_t) *m, long r, long unit, const REAL *from, long step, REAL *acc) { \
        for (long g = 0; g < 4; g += gates) FN(lane_block)(rows, gates, m, r, unit, g, from, step, acc);    \
    }
LANE_BLOCK(1, LANE_GATES)
LANE_BLOCK(2, 1)
LANE_BLOCK(3, 1)
#if DOTS == 6
LANE_BLOCK(4, 1)
LANE_BLOCK(5, 1)
LANE_BLOCK(6, 1)
#endif
static void (*const FN(lane_blocks)[DOTS])(const FN(gates_t) *, long r, long unit, const REAL *from, long step, REAL *acc) = {
    FN(lane_block_1), FN(lane_block_2), FN(lane_block_3),
#if DOTS == 6
    FN(lane_block_4), FN(lane_block_5), FN(lane_block_6),
#endif
};

/* As gates_in_place, of a block of units whose weights are packed. */
NOINLINE void FN(gates_in_lanes)(const FN(gates_t) *m, long r, long rows, long unit, const REAL *from, long step, REAL *acc) {
    for (long i = 0, high; i < rows; i += high) {
        high = FN(even)(rows - i, DOTS);
        FN(lane_blocks)[high - 1](m, r + i, unit, from + i * step, step, acc + i * 4 * LANES);
    }
}
#undef LANE_GATES
#undef LANE_GROUP
#undef LANE_BLOCK
