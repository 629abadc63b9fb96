/* The time loop forward.
 *
 * The input's part of the gates is computed ahead of the recurrence, for as many steps as fit a buffer (gates_room): tiles are full
 * however few rows a step has, and W_ih is read once for all of these steps.  Each step then adds the recurrence's part in the
 * buffer and runs the cell.  docs/kernel.md follows one step.
 */

/* Packed weights (columns, K).  The strides count elements: slot k of vector v of the columns begins at
 * at[k * slot + v % COLS * vector + v / COLS * panel], and of int8 its scales and offsets (integers.h) at v * LANES. */
typedef struct {
    const REAL *at, *scale;
    const int32_t *offset;
    long slot, vector, panel;
} FN(panels_t);

/* One direction, as one thread computes it. */
typedef struct {
    const sizes_t *s;
    const part_t *p;
    int reverse;
    range_t units, outputs;            /* blocks of hidden units, and of outputs, that are this thread's */
    const REAL *x, *h_0;                /* (P, I), (B, R)                                    */
    FN(panels_t) w_x, w_h, w_r;         /* w_x and w_h: four vectors of a block of units begin at 4 LANES K of the block's number */
    const REAL *bias;                   /* (blocks, 4, LANES)                                */
    REAL *y, *c;                        /* (P, R) with row stride y_step; (B, H)             */
    REAL *gates, *cells;                /* (P, 4H), (P, H), or NULL                          */
    REAL *raw;                          /* (B, H) o tanh c if projected, else NULL           */
    REAL *acc;                          /* this thread's gates: blocks of (rows, 4, LANES)   */
    REAL *left;                         /* this thread's packed rows                         */
    long y_step;
} FN(layer_t);

/* A part of the gate buffer: blocks [from, to) of units, each (rows, 4, LANES). */
typedef struct { long from, to, rows; } FN(span_t);
/* The gates of block u and a row of the span: (4, LANES). */
INLINE REAL *FN(gates_at)(const FN(layer_t) *l, FN(span_t) span, long u, long row) {
    return l->acc + ((u - span.from) * span.rows + row) * 4 * LANES;
}

/* The number of the step that is run as the `step`-th. */
INLINE long FN(steps_ahead)(const FN(layer_t) *l, long step) { return l->reverse ? l->s->steps - 1 - step : step; }

/* A product with packed weights from vector v of the columns and slot k0 on; the operands and sizes are still to be set. */
INLINE FN(product_t) FN(columns)(const FN(panels_t) *w, const REAL *block, long v, long k0) {
    return (FN(product_t)){ .b = block + k0 * w->slot + v % COLS * w->vector + v / COLS * w->panel, .b_slot = w->slot,
                            .b_vector = w->vector, .b_panel = w->panel };
}

/* Gates of block u of units, acc (rows, 4, LANES) = from + packed rows times slots [k0, k1) of its panels; from (rows, 4, LANES) at row
 * stride from_step, 0 for one row (the biases) that all have. */
INLINE void FN(add_gates)(const REAL *a, long rows, const FN(panels_t) *w, long u, long K, long k0, long k1,
                          const REAL *from, long from_step, REAL *acc) {
    for (long g = 0, wide = FN(wide)(rows); g < 4; g += wide) {
        FN(product_t) product = FN(columns)(w, w->at + u * 4 * LANES * K, g, k0);
        product.a = a, product.from = from + g * LANES, product.acc = acc + g * LANES, product.K = k1 - k0;
        product.block = FN(block)(K, BLOCK_MOST);
        product.from_row = from_step, product.from_vector = LANES, product.acc_row = 4 * LANES, product.acc_vector = LANES;
        if (w->scale) product.scale = w->scale + (u * 4 + g) * LANES, product.offset = w->offset + (u * 4 + g) * LANES;
        FN(multiply)(product, rows, wide);
    }
}

/* The input's part of the gates, both biases included, of the rows x (rows, I); they go to `row` and following of the span. */
NOINLINE void FN(project_inputs)(const FN(layer_t) *l, FN(span_t) span, const REAL *x, long rows, long row) {
    long I = l->s->input, K = SLOTS(I), depth = FN(depth)(rows, K), k0 = 0;
    do {
        long k1 = k0 + depth < K ? k0 + depth : K;
        const REAL *a = FN(pack_left)(x + k0 * PER_SLOT, I, rows, FN(terms)(k0, k1, I), l->left, 0);
        for (long i = 0; i < span.to - span.from; i++) {
            long u = in_turn((range_t){ span.from, span.to }, i, inputs_turned(l->p));
            REAL *acc = FN(gates_at)(l, span, u, row);
            FN(add_gates)(a, rows, &l->w_x, u, K, k0, k1,
                          k0 ? acc : l->bias + u * 4 * LANES, k0 ? 4 * LANES : 0, acc);
        }
        k0 = k1;
    } while (k0 < K);
}

/* The recurrence's part of the gates and the cell, at step t.  This thread's rows of the step are `row` and following of the span.
 * A sequence that had no step before t starts from h_0. */
NOINLINE void FN(recur)(const FN(layer_t) *l, FN(span_t) span, long t, long row) {
    const sizes_t *s = l->s;
    long H = s->hidden, R = s->output, row_from = l->p->rows.from, n = my_rows(s, l->p, t), before = l->reverse ? t + 1 : t - 1;
    long old = my_rows(s, l->p, before), K = SLOTS(R), depth = FN(depth)(n, K), k0 = 0, at = first_row(s, t) + row_from;
    if (old > n) old = n;
    const REAL *h = old ? l->y + (first_row(s, before) + row_from) * l->y_step : NULL;
    const REAL *h_0 = l->h_0 + (row_from + old) * R;
    /* The range for int8 (scale_of): without a projection |h| is at most 1, but for h_0. */
    const REAL least = l->raw ? 0 : 1;
    do {
        long k1 = k0 + depth < K ? k0 + depth : K, first = k0 * PER_SLOT, terms = FN(terms)(k0, k1, R);
        const REAL *a = old ? FN(pack_left)(h + first, l->y_step, old, terms, l->left, least) : NULL;
        const REAL *a_0 = old < n ? FN(pack_left)(h_0 + first, R, n - old, terms, l->left + LEFT_ROWS(old) * LEFT_LENGTH(k1 - k0), least)
                                  : NULL;
        for (long i = 0; i < span.to - span.from; i++) {
            long u = in_turn((range_t){ span.from, span.to }, i, turned(s, l->p, t));
            REAL *acc = FN(gates_at)(l, span, u, row);
            if (old) FN(add_gates)(a, old, &l->w_h, u, K, k0, k1, acc, 4 * LANES, acc);
            if (old < n) {
                REAL *rest = acc + old * 4 * LANES;
                FN(add_gates)(a_0, n - old, &l->w_h, u, K, k0, k1, rest, 4 * LANES, rest);
            }
            if (k1 < K) continue;
            long unit = u * LANES;
            FN(run_cells)((FN(cells_t)){ .acc = acc, .c = l->c + row_from * H + unit,
                                         .h = l->raw ? l->raw + row_from * H + unit : l->y + at * l->y_step + unit,
                                         .gates = l->gates ? l->gates + at * 4 * H + unit : NULL,
                                         .cells = l->gates ? l->cells + at * H + unit : NULL,
                                         .H = H, .h_step = l->raw ? H : l->y_step }, n, H - unit);
        }
        k0 = k1;
    } while (k0 < K);
}

/* h_t = W_hr (o tanh c) for this thread's outputs. */
NOINLINE void FN(project_outputs)(const FN(layer_t) *l, long t) {
    const sizes_t *s = l->s;
    enum { HIGH = OUTPUT_ROWS };
    REAL acc[HIGH * COLS * LANES];
    long H = s->hidden, K = SLOTS(H), row_from = l->p->rows.from, n = my_rows(s, l->p, t), at = first_row(s, t) + row_from;
    for (long r = 0, rows; r < n; r += rows) {
        rows = FN(even)(n - r, HIGH);
        const REAL *a = FN(pack_left)(l->raw + (row_from + r) * H, H, rows, H, l->left, 1);
        for (long o = l->outputs.from, wide = FN(wide)(rows); o < l->outputs.to; o += wide) {
            long cols = l->outputs.to - o < wide ? l->outputs.to - o : wide;
            FN(product_t) product = FN(columns)(&l->w_r, l->w_r.at + o * LANES * K, 0, 0);
            product.a = a, product.acc = acc, product.K = K, product.block = FN(block)(K, BLOCK_MOST);
            product.acc_row = wide * LANES, product.acc_vector = LANES;
            if (l->w_r.scale) product.scale = l->w_r.scale + o * LANES, product.offset = l->w_r.offset + o * LANES;
            FN(multiply)(product, rows, cols);
            for (long i = 0; i < rows; i++)
                for (long v = 0; v < cols; v++)
                    FN(store)(l->y + (at + r + i) * l->y_step + (o + v) * LANES,
                              *(const vec *)(acc + (i * wide + v) * LANES), s->output - (o + v) * LANES);
        }
    }
}

/* All steps of one direction. */
NOINLINE void FN(run_layer)(const FN(layer_t) *l, part_t *p, long room) {
    const sizes_t *s = l->s;
    long T = s->steps, I = s->input;
    for (long first = 0, last; first < T; first = last) {
        FN(span_t) span = { l->units.from, l->units.to, my_rows(s, p, FN(steps_ahead)(l, first)) };
        long width = 4 * LANES * (l->units.to - l->units.from ? l->units.to - l->units.from : 1), t = FN(steps_ahead)(l, first);
        int whole = p->rows.from == 0 && my_rows(s, p, t) == active(s, t);    /* is the chunk consecutive rows of x? */
        for (last = first + 1; last < T; last++) {
            t = FN(steps_ahead)(l, last);
            long n = my_rows(s, p, t);
            if ((span.rows + n) * width > room || (span.rows + n) * I * (long)sizeof(REAL) > LEFT_BYTES) break;
            span.rows += n, whole = whole && n == active(s, t);
        }
        long low = first_row(s, FN(steps_ahead)(l, l->reverse ? last - 1 : first));
        if (last == first + 1) {
            /* One step only: as many units at a time as fit the buffer. */
            long all = l->units.to - l->units.from, units = span.rows ? room / (span.rows * 4 * LANES) : all;
            long few = STEP_BYTES / (4 * LANES * (SLOTS(I) + SLOTS(s->output)) * (long)sizeof(REAL)) + 1;
            if (span.rows <= STEP_ROWS && few < units) units = few;
            t = FN(steps_ahead)(l, first);
            for (long i = 0, parts = units ? (all + units - 1) / units : 0; i < parts; i++) {
                long u = l->units.from + (turned(s, p, t) ? parts - 1 - i : i) * units;
                span.from = u, span.to = u + units < l->units.to ? u + units : l->units.to;
                FN(project_inputs)(l, span, l->x + (first_row(s, t) + p->rows.from) * I, span.rows, 0);
                FN(recur)(l, span, t, 0);
            }
        } else if (whole) {
            FN(project_inputs)(l, span, l->x + low * I, span.rows, 0);
        } else {
            long row = 0;
            for (long i = first; i < last; i++, row += my_rows(s, p, t)) {
                t = FN(steps_ahead)(l, i);
                FN(project_inputs)(l, span, l->x + (first_row(s, t) + p->rows.from) * I, my_rows(s, p, t), row);
            }
        }
        for (long i = first, row = 0; i < last; i++, row += my_rows(s, p, t)) {
            t = FN(steps_ahead)(l, i);
            if (last > first + 1) FN(recur)(l, span, t, whole ? first_row(s, t) - low : row);
            meet_mine(p);
            if (!l->raw) continue;
            FN(project_outputs)(l, t);
            meet_mine(p);
        }
    }
}

/* The last output of each row, where the row had a step; h_0 where it had none. */
NOINLINE void FN(final_outputs)(const FN(layer_t) *l, REAL *h_n) {
    const sizes_t *s = l->s;
    long R = s->output, from = l->outputs.from * LANES, to = l->outputs.to * LANES < R ? l->outputs.to * LANES : R;
    long t = l->reverse ? 0 : s->steps - 1;
    for (long r = l->p->rows.from; r < l->p->rows.to; r++) {
        while (t >= 0 && active(s, t) <= r) t = l->reverse ? -1 : t - 1;
        const REAL *h = t < 0 ? l->h_0 + r * R : l->y + (first_row(s, t) + r) * l->y_step;
        for (long j = from; j < to; j++) h_n[r * R + j] = h[j];
    }
}

/* Panels of a block of units with K slots, as forward packs them, or packed before (kernel.h). */
INLINE FN(panels_t) FN(panels)(const REAL *at, long K, int format) {
    FN(panels_t) p = { .at = at, .slot = COLS * LANES, .vector = LANES, .panel = K * COLS * LANES };
    if (format != UNPACKED) p.slot = 4 * LANES, p.panel = COLS * LANES;
    return p;
}
/* Panels of W_hr, one vector of outputs each. */
INLINE FN(panels_t) FN(panels_of_outputs)(const REAL *at, long K) {
    return (FN(panels_t)){ .at = at, .slot = LANES, .vector = LANES * K, .panel = COLS * LANES * K };
}

TARGET static void FN(forward)(const forward_t *job, part_t *p, const forward_plan_t *plan) {
    const sizes_t *s = &job->sizes;
    long B = s->batch, H = s->hidden, R = s->output, P = first_row(s, s->steps), width = blocks(H, LANES) * LANES * 4;
    for (int d = p->directions.from; d < p->directions.to; d++) {
        REAL *made = (REAL *)job->scratch + d * plan->direction;
        const REAL *base = job->format == UNPACKED ? made : job->packed[d];
        FN(layer_t) l = { .s = s, .p = p, .reverse = backwards(s, d), .x = job->x, .h_0 = (const REAL *)job->h_0 + d * B * R,
                          .w_x = FN(panels)(base + plan->packed.x, SLOTS(s->input), job->format),
                          .w_h = FN(panels)(base + plan->packed.h, SLOTS(R), job->format),
                          .w_r = FN(panels_of_outputs)(base + plan->packed.r, SLOTS(H)), .bias = base + plan->packed.bias,
                          .y = (REAL *)job->y + d * R, .c = (REAL *)job->c_n + d * B * H,
                          .gates = job->gates ? (REAL *)job->gates + d * P * 4 * H : NULL,
                          .cells = job->gates ? (REAL *)job->cells + d * P * H : NULL,
                          .raw = s->projected ? made + plan->raw : NULL,
                          .acc = (REAL *)job->scratch + plan->threads + p->rank * plan->thread,
                          .y_step = s->directions * R };
        l.left = l.acc + plan->left;
        if (job->format == IN_INT8) {
            const REAL *scales = base + plan->packed.scales;
            FN(panels_t) *of[] = { &l.w_x, &l.w_h, &l.w_r };
            for (int i = 0; i < 3; i++, scales += 2 * width)
                of[i]->scale = scales, of[i]->offset = (const int32_t *)(scales + (i < 2 ? width : blocks(R, LANES) * LANES));
        }
        share(blocks(H, LANES), p->me, p->members, &l.units.from, &l.units.to);
        share(blocks(R, LANES), p->me, p->members, &l.outputs.from, &l.outputs.to);
        const REAL *c_0 = (const REAL *)job->c_0 + d * B * H;
        for (long r = p->rows.from; r < p->rows.to; r++)
            for (long j = l.units.from * LANES; j < l.units.to * LANES && j < H; j++) l.c[r * H + j] = c_0[r * H + j];
        FN(run_layer)(&l, p, plan->gates);
        FN(final_outputs)(&l, (REAL *)job->h_n + d * B * R);
    }
    RELEASE_TILES();
}
