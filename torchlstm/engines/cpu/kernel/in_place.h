/* The forward of few sequences and steps, straight from the weights as torch keeps them: no packing.
 *
 * Rows of weights and rows of inputs are both contiguous along K, so a gate is a dot product of two rows: LANES partial sums,
 * which are then added pair by pair.  The order is the same for every row, whatever the other rows and the tile.
 */

/* The last n of K terms, and zero in the other lanes.  Where the instruction set has no masked load, they are the last lanes of a
 * whole vector, if K has that many terms. */
INLINE vec FN(load_rest)(const REAL *p, long n, long K) {
#if !defined LOAD_float
    if (K >= LANES) return (vec)(FN(last_lanes)(n) & *(const ivec *)(p + n - LANES));
#endif
    (void)K;
    return FN(load_part)(p, n);
}

/* sums[r][u][g] += the products of row r with gate g of unit u, lane by lane; the weights of a unit's gates are `gate` elements apart. */
INLINE void FN(dots)(int rows, int units, FN(operands_t) o, long gate, vec sums[DOTS][4][4]) {
    const REAL *a = o.a, *w0 = o.w, *w1 = o.w + gate, *w2 = o.w + 2 * gate, *w3 = o.w + 3 * gate;
    const long K = o.K, lda = o.lda;
#define DOT(LOAD)                                                                                   \
    {                                                                                               \
        vec x[DOTS];                                                                                \
        UNROLL(8) for (int r = 0; r < rows; r++) x[r] = LOAD(a + r * lda);                          \
        UNROLL(4) for (int u = 0; u < units; u++) {                                                 \
            const REAL *const w[4] = { w0 + u * K, w1 + u * K, w2 + u * K, w3 + u * K };            \
            UNROLL(4) for (int g = 0; g < 4; g++) {                                                 \
                vec y = LOAD(w[g]);                                                                 \
                UNROLL(8) for (int r = 0; r < rows; r++) sums[r][u][g] += x[r] * y;                 \
            }                                                                                       \
        }                                                                                           \
    }
#define WHOLE(p) *(const vec *)(p)
#define REST(p) FN(load_rest)(p, k, K)
    long k = K;
    ROLL
    for (; k >= LANES; k -= LANES, a += LANES, w0 += LANES, w1 += LANES, w2 += LANES, w3 += LANES) DOT(WHOLE)
    if (k) DOT(REST)
#undef DOT
#undef WHOLE
#undef REST
}

/* The sums of the lanes of four vectors side by side, pair by pair. */
INLINE void FN(lane_sums)(const vec v[4], REAL out[4]) {
    const vec v0 = v[0], v1 = v[1], v2 = v[2], v3 = v[3];
#if QUAD == 4
    vec a = SHUFFLE_EACH(v0, v1, 0, 4, 1, 5) + SHUFFLE_EACH(v0, v1, 2, 6, 3, 7);
    vec b = SHUFFLE_EACH(v2, v3, 0, 4, 1, 5) + SHUFFLE_EACH(v2, v3, 2, 6, 3, 7);
    *(quad *)out = FN(sum_quads)(SHUFFLE_EACH(a, b, 0, 1, 4, 5) + SHUFFLE_EACH(a, b, 2, 3, 6, 7));
#else
    *(quad *)out = FN(sum_quads)(SHUFFLE_EACH(v0, v1, 0, 2) + SHUFFLE_EACH(v0, v1, 1, 3));
    *(quad *)(out + 2) = FN(sum_quads)(SHUFFLE_EACH(v2, v3, 0, 2) + SHUFFLE_EACH(v2, v3, 1, 3));
#endif
}

/* Rows r and following times units j and following; out (rows, LANES, 4).  If a part of an element of `sums` were read, GCC would keep
 * all of them in memory between the operands: lane_sums copies each vector first. */
INLINE void FN(dot_tile)(int rows, int units, const FN(gates_t) *gates, long r, long j, REAL *out) {
    vec sums[DOTS][4][4];
    UNROLL(8)
    for (int i = 0; i < rows; i++)
        UNROLL(4)
        for (int u = 0; u < units; u++)
            UNROLL(4)
            for (int g = 0; g < 4; g++) sums[i][u][g] = (vec){0};
    ROLL
    for (int i = 0; i < gates->count; i++) {
        FN(operands_t) o = gates->of[i];
        o.a += r * o.lda, o.w += j * o.K;
        FN(dots)(rows, units, o, gates->H * o.K, sums);
    }
    UNROLL(8)
    for (int i = 0; i < rows; i++)
        UNROLL(4)
        for (int u = 0; u < units; u++) FN(lane_sums)(sums[i][u], out + (i * LANES + u) * 4);
}

/* Units at a time: as many as the registers have room for their sums.  One row reads 80 % of the bytes per second that a
 * plain sum of the same memory does (2 MB, 8 MB); with 1 or 2 units at a time, or prefetching, no more. */
#if DOTS == 6
#define UNITS(rows) ((rows) == 1 ? 4 : (rows) <= 3 ? 2 : 1)
#else
#define UNITS(rows) ((rows) == 1 ? 2 : 1)
#endif
#define DOT_TILE(rows)                                                                              \
    NOINLINE void FN(dot_tile_##rows)(const FN(gates_t) *gates, long r, long j, long n, REAL *out) {    \
        for (; n >= UNITS(rows); n -= UNITS(rows), j += UNITS(rows), out += UNITS(rows) * 4)        \
            FN(dot_tile)(rows, UNITS(rows), gates, r, j, out);                                          \
        for (; n > 0; n--, j++, out += 4) FN(dot_tile)(rows, 1, gates, r, j, out);                      \
    }
DOT_TILE(1)
DOT_TILE(2)
DOT_TILE(3)
#if DOTS == 6
DOT_TILE(4)
DOT_TILE(5)
DOT_TILE(6)
#endif
/* Units [j, j + n) of the first rows from r on. */
static void (*const FN(dot_tiles)[DOTS])(const FN(gates_t) *, long r, long j, long n, REAL *out) = {
    FN(dot_tile_1), FN(dot_tile_2), FN(dot_tile_3),
#if DOTS == 6
    FN(dot_tile_4), FN(dot_tile_5), FN(dot_tile_6),
#endif
};

/* Gates of the `n` units from `unit` on: acc (rows, 4, LANES) = from + operands from row r on; `from` at row stride `step`. */
NOINLINE void FN(gates_in_place)(const FN(gates_t) *gates, long r, long rows, long unit, long n, const REAL *from, long step,
                                 REAL *acc) {
    if (gates->packed) { FN(gates_in_lanes)(gates, r, rows, unit, from, step, acc); return; }
    REAL sums[FN(HIGH) * LANES * 4];
    /* With more than one tile of rows, the weights of a few units stay in the cache for all tiles. */
    const long few = rows <= DOTS ? LANES : UNITS(1);
    for (long j = 0; j < n; j += few)
        for (long i = 0, high; i < rows; i += high) {
            high = FN(even)(rows - i, DOTS);
            FN(dot_tiles)[high - 1](gates, r + i, unit + j, n - j < few ? n - j : few, sums + (i * LANES + j) * 4);
        }
    for (long j = n; j < LANES; j++)
        for (long i = 0; i < rows; i++)
            for (long g = 0; g < 4; g++) sums[(i * LANES + j) * 4 + g] = 0;
    for (long i = 0; i < rows; i++) {
        quad turned[4][LANES / QUAD];
        UNROLL(4)
        for (long j = 0; j < LANES / QUAD; j++)
            UNROLL(2)
            for (long g = 0; g < 4; g += QUAD) {
                quad in[QUAD], out[QUAD];
                UNROLL(4)
                for (long k = 0; k < QUAD; k++) in[k] = *(const quad *)(sums + ((i * LANES + j * QUAD + k) * 4 + g));
                FN(transpose)(out, in);
                UNROLL(4)
                for (long k = 0; k < QUAD; k++) turned[g + k][j] = out[k];
            }
        UNROLL(4)
        for (long g = 0; g < 4; g++)
            *(vec *)(acc + (i * 4 + g) * LANES) = FN(join)(turned[g]) + *(const vec *)(from + i * step + g * LANES);
    }
}

/* How many units of block u are real. */
INLINE long FN(real)(long H, long u) { return H - u * LANES < LANES ? H - u * LANES : LANES; }

/* One direction, as one thread computes it. */
typedef struct {
    const sizes_t *s;
    const weights_t *w;
    int packed;                         /* w holds panels, and as b_ih the sum of both biases, (blocks, 4, LANES) */
    int reverse;
    range_t units;                        /* blocks of hidden units that are this thread's */
    const REAL *x, *h_0;                /* (P, I), (B, H) */
    REAL *y, *c, *gates, *cells;        /* (P, H) with row stride y_step; (B, H); (P, 4H), (P, H), or NULL */
    long y_step;
} FN(in_place_t);

/* Both biases of a block of units. */
INLINE void FN(sum_bias)(const FN(in_place_t) *l, long unit, REAL bias[4 * LANES]) {
    const weights_t *w = l->w;
    const long H = l->s->hidden;
    if (l->packed) {
        __builtin_memcpy(bias, (const REAL *)w->b_ih + unit * 4, sizeof(REAL) * 4 * LANES);
        return;
    }
    for (long g = 0; g < 4; g++) {
        vec b = {0};
        if (w->b_ih) b += FN(load)((const REAL *)w->b_ih + g * H + unit, H - unit);
        if (w->b_hh) b += FN(load)((const REAL *)w->b_hh + g * H + unit, H - unit);
        *(vec *)(bias + g * LANES) = b;
    }
}

/* The cell on rows r and following of step t, block u; acc (rows, 4, LANES) are their gates. */
INLINE void FN(cells_in_place)(const FN(in_place_t) *l, long t, long r, long rows, long u, const REAL *acc) {
    long H = l->s->hidden, unit = u * LANES, at = first_row(l->s, t) + r;
    FN(run_cells)((FN(cells_t)){ .acc = acc, .c = l->c + r * H + unit, .h = l->y + at * l->y_step + unit,
                                 .gates = l->gates ? l->gates + at * 4 * H + unit : NULL,
                                 .cells = l->gates ? l->cells + at * H + unit : NULL, .H = H, .h_step = l->y_step },
                  rows, H - unit);
}

/* One step: both products in one sum, some rows of some blocks at a time. */
NOINLINE void FN(one_step)(const FN(in_place_t) *l, const part_t *p) {
    long I = l->s->input, H = l->s->hidden, n = active(l->s, 0), blocks = n < FN(HIGH) ? FN(HIGH) / (n ? n : 1) : 1;
    FN(gates_t) gates = { { { l->x, l->w->w_ih, I, I }, { l->h_0, l->w->w_hh, H, H } }, 2, l->packed, H };
    REAL acc[FN(HIGH) * 4 * LANES], bias[4 * LANES];
    for (long i = 0, parts = (l->units.to - l->units.from + blocks - 1) / blocks; i < parts; i++) {
        long from = l->units.from + (turned(l->s, p, 0) ? parts - 1 - i : i) * blocks;
        long to = from + blocks < l->units.to ? from + blocks : l->units.to;
        for (long r = 0, rows; r < n; r += rows) {
            rows = FN(even)(n - r, FN(HIGH));
            for (long k = 0; k < to - from; k++) {
                long u = in_turn((range_t){ from, to }, k, turned(l->s, p, 0));
                FN(sum_bias)(l, u * LANES, bias);
                FN(gates_in_place)(&gates, r, rows, u * LANES, FN(real)(H, u), bias, 0, acc + (u - from) * rows * 4 * LANES);
            }
            for (long u = from; u < to; u++) FN(cells_in_place)(l, 0, r, rows, u, acc + (u - from) * rows * 4 * LANES);
        }
    }
}

/* Steps of few rows: the inputs' part of as many steps as fit the buffer, then step after step the recurrence's. */
NOINLINE void FN(few_steps)(const FN(in_place_t) *l, part_t *p, REAL *buffer, long room) {
    const sizes_t *s = l->s;
    long T = s->steps, I = s->input, H = s->hidden, width = 4 * LANES * (l->units.to - l->units.from);
    for (long first = 0, last; first < T; first = last) {
#define STEP(i) (l->reverse ? T - 1 - (i) : (i))
        long count = 0;
        for (last = first; last < T && (last == first || (count + active(s, STEP(last))) * width <= room); last++)
            count += active(s, STEP(last));
        long low = first_row(s, STEP(l->reverse ? last - 1 : first));
        FN(gates_t) inputs = { { { l->x + low * I, l->w->w_ih, I, I } }, 1, l->packed, H };
        for (long i = 0; i < l->units.to - l->units.from; i++) {
            long u = in_turn(l->units, i, inputs_turned(p));
            REAL bias[4 * LANES], *block = buffer + (u - l->units.from) * count * 4 * LANES;
            FN(sum_bias)(l, u * LANES, bias);
            for (long r = 0, rows; r < count; r += rows) {
                rows = FN(even)(count - r, FN(HIGH));
                FN(gates_in_place)(&inputs, r, rows, u * LANES, FN(real)(H, u), bias, 0, block + r * 4 * LANES);
            }
        }
        for (long i = first; i < last; i++) {
            long t = STEP(i), before = l->reverse ? t + 1 : t - 1, n = active(s, t), old = active(s, before);
            if (old > n) old = n;
            /* Rows that the step before did not have start from h_0. */
            const REAL *h = old ? l->y + first_row(s, before) * l->y_step : NULL;
            FN(gates_t) states = { { { h, l->w->w_hh, l->y_step, H } }, 1, l->packed, H };
            FN(gates_t) fresh = { { { l->h_0, l->w->w_hh, H, H } }, 1, l->packed, H };
#define AT(u) (buffer + (((u) - l->units.from) * count + first_row(s, t) - low) * 4 * LANES)
            for (long k = 0; k < l->units.to - l->units.from; k++) {
                long u = in_turn(l->units, k, turned(s, p, t)), unit = u * LANES;
                REAL *acc = AT(u), *rest = acc + old * 4 * LANES;
                if (old) FN(gates_in_place)(&states, 0, old, unit, FN(real)(H, u), acc, 4 * LANES, acc);
                if (old < n) FN(gates_in_place)(&fresh, old, n - old, unit, FN(real)(H, u), rest, 4 * LANES, rest);
            }
            for (long u = l->units.from; u < l->units.to; u++) FN(cells_in_place)(l, t, 0, n, u, AT(u));
#undef AT
            meet_mine(p);
        }
#undef STEP
    }
}

/* Not projected; the threads of a team share the units. */
TARGET static void FN(forward_in_place)(const forward_t *job, part_t *p, const forward_plan_t *plan) {
    const sizes_t *s = &job->sizes;
    long B = s->batch, H = s->hidden, P = first_row(s, s->steps);
    for (int d = p->directions.from; d < p->directions.to; d++) {
        const REAL *packed = job->packed[d];
        const packed_plan_t at = plan_packed(s, job->format, LANES);
        const weights_t panels = { .w_ih = packed + at.x, .w_hh = packed + at.h, .b_ih = packed + at.bias };
        FN(in_place_t) l = { .s = s, .w = packed ? &panels : &job->weights[d], .packed = packed != NULL,
                             .reverse = backwards(s, d), .x = job->x, .h_0 = (const REAL *)job->h_0 + d * B * H,
                             .y = (REAL *)job->y + d * H, .c = (REAL *)job->c_n + d * B * H,
                             .gates = job->gates ? (REAL *)job->gates + d * P * 4 * H : NULL,
                             .cells = job->gates ? (REAL *)job->cells + d * P * H : NULL, .y_step = s->directions * H };
        share(blocks(H, LANES), p->me, p->members, &l.units.from, &l.units.to);
        long from = l.units.from * LANES, to = l.units.to * LANES < H ? l.units.to * LANES : H;
        for (long r = 0; r < B && from < to; r++)
            __builtin_memcpy(l.c + r * H + from, (const REAL *)job->c_0 + (d * B + r) * H + from,
                             (size_t)(to - from) * sizeof(REAL));
        if (s->steps == 1) FN(one_step)(&l, p);
        else FN(few_steps)(&l, p, (REAL *)job->scratch + p->rank * plan->thread, plan->gates);
        FN(layer_t) whole = { .s = s, .p = p, .reverse = l.reverse, 
                             .outputs = { l.units.from, l.units.to }, .h_0 = l.h_0, .y = l.y, .y_step = l.y_step };
        FN(final_outputs)(&whole, (REAL *)job->h_n + d * B * H);
    }
}
