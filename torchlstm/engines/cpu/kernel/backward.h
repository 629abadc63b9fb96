/* The time loop backward, for some consecutive steps.
 *
 * In each step a thread runs the cell backwards on its units, meets the others, and multiplies the step's dgates by W_hh.  That
 * is dh of the step before, again for its own units, so that one meeting a step is enough. */

/* One direction, as one thread computes it. */
typedef struct {
    const backward_t *job;
    const sizes_t *s;
    part_t *p;
    int reverse;
    range_t units, outputs;            /* blocks of hidden units, and of outputs, that are this thread's */
    const REAL *w_h, *w_r;              /* packed                                                     */
    REAL *dh_state, *draw, *db;         /* (R blocks, B, LANES), (H blocks, B, LANES), sums of db     */
    REAL *left;                         /* this thread's packed rows                                  */
    REAL *dgates, *before, *dh, *raw;   /* this direction's part of the job's                         */
    REAL *dc;                           /* (B, H)                                                     */
    const REAL *gates, *cells, *dacts, *dcells, *y, *dy, *h_0, *c_0;
    long y_step, step, db_step;         /* row strides of y and dy, of dgates, and of db or 0         */
} FN(back_t);

/* Packed weights of a block of columns: (SLOTS(K), LANES). */
NOINLINE void FN(pack_backward)(const backward_t *job, const part_t *p, const backward_plan_t *plan) {
    const sizes_t *s = &job->sizes;
    long H = s->hidden, R = s->output, unit_blocks = blocks(H, LANES), output_blocks = blocks(R, LANES), from, to;
    share(s->directions * output_blocks, p->rank, p->threads, &from, &to);
    for (long i = from; i < to; i++) {
        long o = i % output_blocks * LANES;
        FN(pack_rows)((const REAL *)job->weights[i / output_blocks].w_hh + o, 4 * H, R, R - o,
                      (REAL *)job->scratch + i / output_blocks * plan->direction + plan->h + o * SLOTS(4 * H), LANES);
    }
    if (!s->projected) return;
    share(s->directions * unit_blocks, p->rank, p->threads, &from, &to);
    for (long i = from; i < to; i++) {
        long u = i % unit_blocks * LANES;
        FN(pack_rows)((const REAL *)job->weights[i / unit_blocks].w_hr + u, R, H, H - u,
                      (REAL *)job->scratch + i / unit_blocks * plan->direction + plan->r + u * SLOTS(R), LANES);
    }
}

/* dh and dc, this thread's part, begin as the gradients of the last states: dh_n and dc_n, or 0. */
NOINLINE void FN(start_states)(const FN(back_t) *l, int d) {
    const sizes_t *s = l->s;
    long B = s->batch, H = s->hidden, R = s->output;
    const REAL *dh_n = l->job->dh_n ? (const REAL *)l->job->dh_n + d * B * R : NULL;
    const REAL *dc_n = l->job->dc_n ? (const REAL *)l->job->dc_n + d * B * H : NULL;
    for (long o = l->outputs.from; o < l->outputs.to; o++)
        for (long r = l->p->rows.from; r < l->p->rows.to; r++)
            *(vec *)(l->dh_state + (o * B + r) * LANES) = dh_n ? FN(load)(dh_n + r * R + o * LANES, R - o * LANES) : (vec){0};
    for (long r = l->p->rows.from; r < l->p->rows.to; r++)
        for (long j = l->units.from * LANES; j < l->units.to * LANES && j < H; j++) l->dc[r * H + j] = dc_n ? dc_n[r * H + j] : 0;
}
/* What dh is after the last step of the backward goes to dh_0 (B, R). */
NOINLINE void FN(end_states)(const FN(back_t) *l, REAL *dh_0) {
    long B = l->s->batch, R = l->s->output;
    for (long o = l->outputs.from; o < l->outputs.to; o++)
        for (long r = l->p->rows.from; r < l->p->rows.to; r++)
            FN(store)(dh_0 + r * R + o * LANES, *(const vec *)(l->dh_state + (o * B + r) * LANES), R - o * LANES);
}

/* out (column blocks [from, to), B, LANES) = a (rows, n), row stride lda, times packed columns w (blocks, SLOTS(n), LANES); the rows
 * go to row_from and following of out.  `flip`: from the last block to the first.  `left`: room for the packed rows. */
INLINE void FN(multiply_back)(const REAL *a, long lda, long rows, const REAL *w, long n, REAL *out, long B, long row_from,
                              long from, long to, int flip, REAL *left) {
    long K = SLOTS(n), depth = FN(depth)(rows, K), wide = FN(wide)(rows), panels = (to - from + wide - 1) / wide;
    for (long k0 = 0, k1; k0 < K; k0 = k1) {
        k1 = k0 + depth < K ? k0 + depth : K;
        const REAL *packed =
            rows && panels ? FN(pack_left)(a + k0 * PER_SLOT, lda, rows, FN(terms)(k0, k1, n), left, 0) : NULL;
        for (long i = 0; i < panels; i++) {
            long o = from + (flip ? panels - 1 - i : i) * wide, cols = to - o < wide ? to - o : wide;
            REAL *acc = out + (o * B + row_from) * LANES;
            FN(multiply)((FN(product_t)){ .a = packed, .b = w + (o * K + k0) * LANES, .from = k0 ? acc : NULL, .acc = acc,
                                          .K = k1 - k0, .block = FN(block)(K, BLOCK_MOST), .b_slot = LANES, .b_vector = K * LANES,
                                          .b_panel = COLS * K * LANES, .from_row = LANES, .from_vector = B * LANES, .acc_row = LANES,
                                          .acc_vector = B * LANES }, rows, cols);
        }
    }
}

/* Of a projected layer: the gradient of h_t, written to dh, and from it that of o tanh c, to draw. */
NOINLINE void FN(project_back)(const FN(back_t) *l, long t, long row) {
    const sizes_t *s = l->s;
    part_t *p = l->p;
    long B = s->batch, R = s->output, n = my_rows(s, p, t), at = first_row(s, t) + p->rows.from;
    for (long o = l->outputs.from; o < l->outputs.to; o++)
        for (long r = 0; r < n; r++) {
            long left = R - o * LANES;
            vec dh = *(const vec *)(l->dh_state + (o * B + p->rows.from + r) * LANES);
            if (l->dy) dh += FN(load)(l->dy + (at + r) * l->y_step + o * LANES, left);
            FN(store)(l->dh + (row + r) * R + o * LANES, dh, left);
        }
    meet_mine(p);
    FN(multiply_back)(l->dh + row * R, R, n, l->w_r, R, l->draw, B, p->rows.from, l->units.from, l->units.to, 0, l->left);
}

/* h of the step before for rows [r, n) of a step whose rows are from `row` on in `before`: of the first `old` sequences,
 * h at the step `before`; of the others, which had none, h_0.  h is y of a projected layer, else o tanh c. */
NOINLINE void FN(gather_before)(const FN(back_t) *l, long before, long old, long n, long row, long r) {
    long H = l->s->hidden, R = l->s->output, row_from = l->p->rows.from;
    long from = l->outputs.from * LANES, to = l->outputs.to * LANES < R ? l->outputs.to * LANES : R;
    for (; r < n; r++) {
        REAL *out = l->before + (row + r) * R;
        if (r < old && !l->raw) {
            long at = first_row(l->s, before) + row_from + r;
            const REAL *o = l->gates + at * 4 * H + 3 * H, *c = l->cells + at * H;
            for (long j = from; j < to; j += LANES)
                FN(store)(out + j, FN(load)(o + j, H - j) * FN(tanh)(FN(load)(c + j, H - j)), H - j);
            continue;
        }
        const REAL *h = r < old ? l->y + (first_row(l->s, before) + row_from + r) * l->y_step : l->h_0 + (row_from + r) * R;
        for (long j = from; j < to; j++) out[j] = h[j];
    }
}

/* The cell of step t backwards; this thread's rows of the step are from `row` on in dgates.
 *
 * h_t = o tanh c is made on the way, and is h before the step that ran just now, `later`: this thread's rows of that
 * one are from `later_row` on, or it was of an earlier call if that is negative.  `last`: the step before is of a later call. */
NOINLINE void FN(cell_step)(const FN(back_t) *l, long t, long row, long later, long later_row, int last) {
    const sizes_t *s = l->s;
    long B = s->batch, H = s->hidden, row_from = l->p->rows.from, n = my_rows(s, l->p, t), at = first_row(s, t) + row_from;
    long before = l->reverse ? t + 1 : t - 1, old = my_rows(s, l->p, before), kept = later_row < 0 ? 0 : my_rows(s, l->p, later);
    if (old > n) old = n;
    if (kept > n) kept = n;
    const long cuts[] = { 0, old < kept ? old : kept, old < kept ? kept : old, n };
    for (long u = l->units.from; u < l->units.to; u++)
        for (int i = 0; i < 3; i++) {
            long r = cuts[i], rows = cuts[i + 1] - r, unit = u * LANES;
            if (!rows) continue;
            FN(run_cells_back)((FN(cells_back_t)){
                .dgates = l->dgates + (row + r) * l->step + unit, .dc = l->dc + (row_from + r) * H + unit,
                .db = l->db + (row_from + r) * l->db_step + 4 * unit,
                .raw = l->raw ? l->raw + (row + r) * H + unit : r < kept ? l->before + (later_row + r) * H + unit : NULL,
                .gates = l->gates + (at + r) * 4 * H + unit, .c = l->cells + (at + r) * H + unit,
                .c_before = r < old ? l->cells + (first_row(s, before) + row_from + r) * H + unit
                                    : l->c_0 + (row_from + r) * H + unit,
                .dh = (l->raw ? l->draw : l->dh_state) + (u * B + row_from + r) * LANES,
                .dy = l->dy && !l->raw ? l->dy + (at + r) * l->y_step + unit : NULL,
                .dacts = l->dacts ? l->dacts + (at + r) * 4 * H + unit : NULL,
                .dcells = l->dcells ? l->dcells + (at + r) * H + unit : NULL,
                .H = H, .dy_step = l->y_step, .step = l->step, .db_step = l->db_step }, rows, H - unit);
        }
    if (l->before) FN(gather_before)(l, before, old, n, row, l->raw || last ? 0 : old);
}

TARGET static void FN(backward)(const backward_t *job, part_t *p, const backward_plan_t *plan) {
    const sizes_t *s = &job->sizes;
    long T = s->steps, B = s->batch, H = s->hidden, R = s->output, P = first_row(s, T);
    REAL *scratch = job->scratch;
    for (int d = p->directions.from; d < p->directions.to; d++) {
        REAL *base = scratch + d * plan->direction;
        FN(back_t) l = { .job = job, .s = s, .p = p, .reverse = backwards(s, d), .w_h = base + plan->h, .w_r = base + plan->r,
                         .dh_state = base + plan->dh, .draw = base + plan->draw,
                         .db = base + plan->db, .db_step = bias_sums(s) > 1 ? plan->biases : 0,
                         .left = scratch + plan->threads + p->rank * plan->thread,
                         .dgates = (REAL *)job->dgates + d * job->room * job->step, .step = job->step,
                         .before = job->before ? (REAL *)job->before + d * job->room * R : NULL,
                         .dh = s->projected ? (REAL *)job->dh + d * job->room * R : NULL,
                         .raw = s->projected ? (REAL *)job->raw + d * job->room * H : NULL,
                         .dc = (REAL *)job->dc_0 + d * B * H,
                         .gates = (const REAL *)job->gates + d * P * 4 * H, .cells = (const REAL *)job->cells + d * P * H,
                         .dacts = job->dacts ? (const REAL *)job->dacts + d * P * 4 * H : NULL,
                         .dcells = job->dcells ? (const REAL *)job->dcells + d * P * H : NULL,
                         .y = job->y ? (const REAL *)job->y + d * R : NULL, .dy = job->dy ? (const REAL *)job->dy + d * R : NULL,
                         .h_0 = (const REAL *)job->h_0 + d * B * R, .c_0 = (const REAL *)job->c_0 + d * B * H,
                         .y_step = s->directions * R };
        share(blocks(H, LANES), p->me, p->members, &l.units.from, &l.units.to);
        share(blocks(R, LANES), p->me, p->members, &l.outputs.from, &l.outputs.to);
        if (job->from == 0) FN(start_states)(&l, d);
        long low = first_row(s, l.reverse ? job->from : T - job->to);
        for (long i = job->from, later_row = -1; i < job->to; i++) {
            long t = l.reverse ? i : T - 1 - i, row = first_row(s, t) - low + p->rows.from;
            if (l.raw) FN(project_back)(&l, t, row);
            FN(cell_step)(&l, t, row, l.reverse ? t - 1 : t + 1, l.raw || !l.before ? -1 : later_row, i + 1 == job->to);
            later_row = row;
            if (single(s)) break;
            meet_mine(p);
            FN(multiply_back)(l.dgates + row * l.step, l.step, my_rows(s, p, t), l.w_h, 4 * H, l.dh_state, B, p->rows.from,
                              l.outputs.from, l.outputs.to, t & 1, l.left);
        }
        if (job->to == T && !single(s)) FN(end_states)(&l, (REAL *)job->dh_0 + d * B * R);
    }
    RELEASE_TILES();
}

/* db of every direction: the sum over the rows of the batch, in their order. */
TARGET static void FN(sum_biases)(const backward_t *job, const backward_plan_t *plan) {
    const sizes_t *s = &job->sizes;
    long H = s->hidden, sums = bias_sums(s);
    for (int d = 0; d < s->directions; d++) {
        const REAL *from = (const REAL *)job->scratch + d * plan->direction + plan->db;
        for (long u = 0; u < H; u += LANES)
            for (int g = 0; g < 4; g++) {
                vec sum = {0};
                for (long r = 0; r < sums; r++) sum += *(const vec *)(from + r * plan->biases + u * 4 + g * LANES);
                FN(store)((REAL *)job->db + (d * 4 + g) * H + u, sum, H - u);
            }
    }
}
