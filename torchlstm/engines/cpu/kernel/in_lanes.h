/* The forward of few sequences from packed weights: what in_place.h computes from torch's own, with the same bits.
 *
 * In in_place.h term k of a gate goes to lane k % LANES of a vector of partial sums, and the lanes are then added pair by pair.  Here a
 * vector holds one gate of LANES units, a panel is (K, 4, LANES), and each of the LANES partial sums is a vector of its own.
 */

/* Rows of the left operand and of weights with K terms: row r at a + r * lda; gate g of unit j at w + (g H + j) K, or
 * packed at w + j / LANES * 4 K LANES the panel of its block. */
typedef struct { const REAL *a, *w; long lda, K; } FN(operands_t);

/* The gates of some rows and units: (rows, LANES, 4). */
typedef struct {
    FN(operands_t) of[2];
    int count;                          /* of operands    */
    int packed;                         /* are the weights packed? */
    long H;
} FN(gates_t);

enum { FN(HIGH) = 24 };                 /* rows at a time, whose gates a thread keeps on its stack */

/* The first of the lanes in which in_place.h has the last n of K terms: load_rest. */
INLINE long FN(rest_lane)(long n, long K) {
#if defined LOAD_float
    (void)n, (void)K;
    return 0;
#else
    return K >= LANES ? LANES - n : 0;
#endif
}

/* The sums of a block of units, of each row and gate: those of each quad of lanes, and of half a quad while it is incomplete. */
typedef struct { vec quads[FN(HIGH)][4][QUADS], half[FN(HIGH)][4]; } FN(lane_sums_t);

/* The lane at place p of the order in which lane_sums adds them: of a quad of four 0 and 2, 1 and 3, then both; of two 0 and 1. */
#define LANE_AT(p) (QUAD == 4 ? (p) / 4 * 4 + (p) % 2 * 2 + (p) % 4 / 2 : (p))

/* The partial sums of `lanes` lanes, at most a quad, from place p of the order on: those of all four gates of `rows` rows from r
 * on, which are rows i and following of `to`.  Weights of a lane lie LANES slots apart, those of its gates side by side.
 * (Prefetching the weights of two turns later made calls of 2 to 16 steps 1 to 10 % slower.) */
INLINE void FN(lane_tile)(int rows, int lanes, const FN(gates_t) *gates, long r, long i, long unit, unsigned long p, FN(lane_sums_t) *to) {
    vec s[DOTS][4][4];
    const long slot = 4 * LANES, first = (long)LANE_AT(p);
    UNROLL(8)
    for (int row = 0; row < rows; row++)
        UNROLL(4)
        for (int g = 0; g < 4; g++)
            UNROLL(4)
            for (int j = 0; j < lanes; j++) s[row][g][j] = (vec){0};
    ROLL
    for (int n = 0; n < gates->count; n++) {
        const FN(operands_t) o = gates->of[n];
        const long lda = o.lda;
        const REAL *a = o.a + (r + i) * lda + first, *w = o.w + unit * 4 * o.K + first * slot;
        long k = o.K;
        ROLL
        for (; k >= LANES; k -= LANES, a += LANES, w += LANES * slot)
            UNROLL(4)
            for (int j = 0; j < lanes; j++)
                UNROLL(4)
                for (int g = 0; g < 4; g++) {
                    vec y = *(const vec *)(w + LANE_AT(j) * slot + g * LANES);
                    UNROLL(8)
                    for (int row = 0; row < rows; row++) s[row][g][j] += a[row * lda + LANE_AT(j)] * y;
                }
        if (!k) continue;
        /* Lanes without a term add 0, as in in_place.h: that makes -0 a 0. */
        const long lane = FN(rest_lane)(k, o.K);
        UNROLL(4)
        for (int j = 0; j < lanes; j++)
            UNROLL(4)
            for (int g = 0; g < 4; g++) {
                const long at = LANE_AT(j) - lane;
                if (first + at >= 0 && first + at < k) {
                    vec y = *(const vec *)(w + at * slot + g * LANES);
                    UNROLL(8)
                    for (int row = 0; row < rows; row++) s[row][g][j] += a[row * lda + at] * y;
                } else {
                    UNROLL(8)
                    for (int row = 0; row < rows; row++) s[row][g][j] += (vec){0};
                }
            }
    }
    UNROLL(8)
    for (int row = 0; row < rows; row++)
        UNROLL(4)
        for (int g = 0; g < 4; g++) {
            vec *quad_sum = &to->quads[i + row][g][p / QUAD], *half_sum = &to->half[i + row][g], sum = s[row][g][0];
            if (lanes > 1) sum += s[row][g][1];
            if (lanes == 4) sum += s[row][g][2] + s[row][g][3];
            const unsigned long place = p % QUAD;
            if (place == 0) *quad_sum = sum;
            else if (QUAD == 2 || place == 1 || lanes == 2) *quad_sum += sum;
            else if (place == 2) *half_sum = sum;
            else *quad_sum += *half_sum + sum;
        }
}

/* One lane at a time, of some of many rows. */
#define LANE_TILE(rows)                                                                                                       \
    NOINLINE void FN(lane_tile_##rows)(const FN(gates_t) *gates, long r, long i, long unit, unsigned long p, FN(lane_sums_t) *to) { \
        FN(lane_tile)(rows, 1, gates, r, i, unit, p, to);                                                                     \
    }
/* All lanes of few rows, several at a time, in one call. */
#define LANE_TILES(rows, lanes)                                                                                               \
    NOINLINE void FN(lane_tiles_##rows)(const FN(gates_t) *gates, long r, long unit, FN(lane_sums_t) *to) {                   \
        ROLL                                                                                                                  \
        for (unsigned long n = 0; n < LANES / lanes; n++) FN(lane_tile)(rows, lanes, gates, r, 0, unit, lanes * n, to);        \
    }
#if DOTS == 6 && QUAD == 4
LANE_TILES(1, 4)
#else
LANE_TILES(1, 2)
#endif
#if DOTS == 6
LANE_TILES(2, 2) LANE_TILES(3, 2) LANE_TILES(4, 1) LANE_TILES(5, 1) LANE_TILES(6, 1)
LANE_TILE(1) LANE_TILE(2) LANE_TILE(3) LANE_TILE(4) LANE_TILE(5) LANE_TILE(6)
#define EACH_HEIGHT(name) { name(1), name(2), name(3), name(4), name(5), name(6) }
#else
LANE_TILES(2, 1) LANE_TILES(3, 1)
LANE_TILE(1) LANE_TILE(2) LANE_TILE(3)
#define EACH_HEIGHT(name) { name(1), name(2), name(3) }
#endif
#define ONE_LANE(rows) FN(lane_tile_##rows)
#define ALL_LANES(rows) FN(lane_tiles_##rows)
static void (*const FN(one_lane)[DOTS])(const FN(gates_t) *, long r, long i, long unit, unsigned long p, FN(lane_sums_t) *)
    = EACH_HEIGHT(ONE_LANE);
static void (*const FN(all_lanes)[DOTS])(const FN(gates_t) *, long r, long unit, FN(lane_sums_t) *) = EACH_HEIGHT(ALL_LANES);

/* As gates_in_place, of a block of units whose weights are packed.  With few rows as many lanes at a time as the registers have room for
 * their sums; with many rows one lane at a time, whose weights stay in the cache for all tiles of rows. */
NOINLINE void FN(gates_in_lanes)(const FN(gates_t) *gates, long r, long rows, long unit, const REAL *from, long step, REAL *acc) {
    FN(lane_sums_t) sums;
    if (rows <= DOTS) FN(all_lanes)[rows - 1](gates, r, unit, &sums);
    else
        for (unsigned long p = 0; p < LANES; p++)
            for (long i = 0, high; i < rows; i += high) {
                high = FN(even)(rows - i, DOTS);
                FN(one_lane)[high - 1](gates, r, i, unit, p, &sums);
            }
    for (long i = 0; i < rows; i++)
        for (long g = 0; g < 4; g++) {
            const vec *q = sums.quads[i][g];
#if LANES == 4 * QUAD
            vec sum = (q[0] + q[2]) + (q[1] + q[3]);
#elif LANES == 2 * QUAD
            vec sum = q[0] + q[1];
#else
            vec sum = q[0];
#endif
            *(vec *)(acc + (i * 4 + g) * LANES) = sum + *(const vec *)(from + i * step + g * LANES);
        }
}
