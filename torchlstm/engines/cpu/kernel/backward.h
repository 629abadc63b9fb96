/* The time loop backward, for some consecutive steps.
 *
 * Each step runs the cell backwards on this thread's units, meets the others, and multiplies the step's dgates by
 * W_hh: the gradient at the state before, for this thread's units again, so one meeting a step is enough. */

/* One direction, as one thread computes it. */
typedef struct {
    const backward_t *job;
    const sizes_t *s;
    part_t *p;
    int reverse;
    long u0, u1, o0, o1;                /* blocks of hidden units, and of outputs, that are this thread's */
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
    long H = s->hidden, R = s->output, Hb = blocks(H, LANES), Rb = blocks(R, LANES), from, to;
    share(s->directions * Rb, p->rank, p->threads, &from, &to);
    for (long i = from; i < to; i++) {
        long o = i % Rb * LANES;
        FN(pack_rows)((const REAL *)job->weights[i / Rb].w_hh + o, 4 * H, R, R - o,
                      (REAL *)job->scratch + i / Rb * plan->direction + plan->h + o * SLOTS(4 * H), LANES);
    }
    if (!s->projected) return;
    share(s->directions * Hb, p->rank, p->threads, &from, &to);
    for (long i = from; i < to; i++) {
        long u = i % Hb * LANES;
        FN(pack_rows)((const REAL *)job->weights[i / Hb].w_hr + u, R, H, H - u,
                      (REAL *)job->scratch + i / Hb * plan->direction + plan->r + u * SLOTS(R), LANES);
    }
}

/* The states at the end become those the loop starts with. */
NOINLINE void FN(start_states)(const FN(back_t) *l, int d) {
    const sizes_t *s = l->s;
    long B = s->batch, H = s->hidden, R = s->output;
    const REAL *dh_n = l->job->dh_n ? (const REAL *)l->job->dh_n + d * B * R : NULL;
    const REAL *dc_n = l->job->dc_n ? (const REAL *)l->job->dc_n + d * B * H : NULL;
    for (long o = l->o0; o < l->o1; o++)
        for (long r = l->p->r0; r < l->p->r1; r++)
            *(vec *)(l->dh_state + (o * B + r) * LANES) = dh_n ? FN(load)(dh_n + r * R + o * LANES, R - o * LANES) : (vec){0};
    for (long r = l->p->r0; r < l->p->r1; r++)
        for (long j = l->u0 * LANES; j < l->u1 * LANES && j < H; j++) l->dc[r * H + j] = dc_n ? dc_n[r * H + j] : 0;
}
NOINLINE void FN(end_states)(const FN(back_t) *l, REAL *dh_0) {
    long B = l->s->batch, R = l->s->output;
    for (long o = l->o0; o < l->o1; o++)
        for (long r = l->p->r0; r < l->p->r1; r++)
            FN(store)(dh_0 + r * R + o * LANES, *(const vec *)(l->dh_state + (o * B + r) * LANES), R - o * LANES);
}

/* out (column blocks [from, to), B, LANES) = a (rows, n) times packed columns, rows at r0 of out. */
INLINE void FN(multiply_back)(const REAL *a, long lda, long rows, const REAL *w, long n, REAL *out, long B, long r0,
                              long from, long to, int flip, REAL *left) {
    long K = SLOTS(n), depth = FN(depth)(rows, K), wide = FN(wide)(rows), panels = (to - from + wide - 1) / wide;
    for (long k0 = 0, k1; k0 < K; k0 = k1) {
        k1 = k0 + depth < K ? k0 + depth : K;
        const REAL *packed =
            rows && panels ? FN(pack_left)(a + k0 * PER_SLOT, lda, rows, FN(terms)(k0, k1, n), left, 0) : NULL;
        for (long i = 0; i < panels; i++) {
            long o = from + (flip ? panels - 1 - i : i) * wide, cols = to - o < wide ? to - o : wide;
            REAL *acc = out + (o * B + r0) * LANES;
            FN(multiply)((FN(product_t)){ .a = packed, .b = w + (o * K + k0) * LANES, .from = k0 ? acc : NULL, .acc = acc,
                                          .K = k1 - k0, .block = FN(block)(K, BLOCK_MOST), .bk = LANES, .bv = K * LANES,
                                          .bp = COLS * K * LANES, .fr = LANES, .fv = B * LANES, .ar = LANES,
                                          .av = B * LANES }, rows, cols);
        }
    }
}

/* The gradient at h_t, and from it at o tanh c, of a projected layer. */
NOINLINE void FN(project_back)(const FN(back_t) *l, long t, long row) {
    const sizes_t *s = l->s;
    part_t *p = l->p;
    long B = s->batch, R = s->output, n = mine(s, p, t), at = first_row(s, t) + p->r0;
    for (long o = l->o0; o < l->o1; o++)
        for (long r = 0; r < n; r++) {
            long left = R - o * LANES;
            vec dh = *(const vec *)(l->dh_state + (o * B + p->r0 + r) * LANES);
            if (l->dy) dh += FN(load)(l->dy + (at + r) * l->y_step + o * LANES, left);
            FN(store)(l->dh + (row + r) * R + o * LANES, dh, left);
        }
    meet_mine(p);
    FN(multiply_back)(l->dh + row * R, R, n, l->w_r, R, l->draw, B, p->r0, l->u0, l->u1, 0, l->left);
}

/* h of the step before for rows [r, n) of a step whose rows are from `row` on in `before`: of the first `old` sequences,
 * h at the step `before`; of the others, which had none, h_0.  h is y of a projected layer, else o tanh c. */
NOINLINE void FN(gather_before)(const FN(back_t) *l, long before, long old, long n, long row, long r) {
    long H = l->s->hidden, R = l->s->output, r0 = l->p->r0, from = l->o0 * LANES, to = l->o1 * LANES < R ? l->o1 * LANES : R;
    for (; r < n; r++) {
        REAL *out = l->before + (row + r) * R;
        if (r < old && !l->raw) {
            long at = first_row(l->s, before) + r0 + r;
            const REAL *o = l->gates + at * 4 * H + 3 * H, *c = l->cells + at * H;
            for (long j = from; j < to; j += LANES)
                FN(store)(out + j, FN(load)(o + j, H - j) * FN(tanh)(FN(load)(c + j, H - j)), H - j);
            continue;
        }
        const REAL *h = r < old ? l->y + (first_row(l->s, before) + r0 + r) * l->y_step : l->h_0 + (r0 + r) * R;
        for (long j = from; j < to; j++) out[j] = h[j];
    }
}

/* The cell of step t backwards; this thread's rows of the step are from `row` on in dgates.
 *
 * h_t = o tanh c is made on the way, and is h before the step that ran just now, `later`: this thread's rows of that
 * one are from `later_row` on, or it was of an earlier call if that is negative.  `last`: the step before is of a later call. */
NOINLINE void FN(cell_step)(const FN(back_t) *l, long t, long row, long later, long later_row, int last) {
    const sizes_t *s = l->s;
    long B = s->batch, H = s->hidden, r0 = l->p->r0, n = mine(s, l->p, t), at = first_row(s, t) + r0;
    long before = l->reverse ? t + 1 : t - 1, old = mine(s, l->p, before), kept = later_row < 0 ? 0 : mine(s, l->p, later);
    if (old > n) old = n;
    if (kept > n) kept = n;
    const long cuts[] = { 0, old < kept ? old : kept, old < kept ? kept : old, n };
    for (long u = l->u0; u < l->u1; u++)
        for (int i = 0; i < 3; i++) {
            long r = cuts[i], rows = cuts[i + 1] - r, unit = u * LANES;
            if (!rows) continue;
            FN(run_cells_back)((FN(cells_back_t)){
                .dgates = l->dgates + (row + r) * l->step + unit, .dc = l->dc + (r0 + r) * H + unit,
                .db = l->db + (r0 + r) * l->db_step + 4 * unit,
                .raw = l->raw ? l->raw + (row + r) * H + unit : r < kept ? l->before + (later_row + r) * H + unit : NULL,
                .gates = l->gates + (at + r) * 4 * H + unit, .c = l->cells + (at + r) * H + unit,
                .c_before = r < old ? l->cells + (first_row(s, before) + r0 + r) * H + unit : l->c_0 + (r0 + r) * H + unit,
                .dh = (l->raw ? l->draw : l->dh_state) + (u * B + r0 + r) * LANES,
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
    for (int d = p->d0; d < p->d1; d++) {
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
        share(blocks(H, LANES), p->me, p->members, &l.u0, &l.u1);
        share(blocks(R, LANES), p->me, p->members, &l.o0, &l.o1);
        if (job->from == 0) FN(start_states)(&l, d);
        long low = first_row(s, l.reverse ? job->from : T - job->to);
        for (long i = job->from, later_row = -1; i < job->to; i++) {
            long t = l.reverse ? i : T - 1 - i, row = first_row(s, t) - low + p->r0;
            if (l.raw) FN(project_back)(&l, t, row);
            FN(cell_step)(&l, t, row, l.reverse ? t - 1 : t + 1, l.raw || !l.before ? -1 : later_row, i + 1 == job->to);
            later_row = row;
            if (single(s)) break;
            meet_mine(p);
            FN(multiply_back)(l.dgates + row * l.step, l.step, mine(s, p, t), l.w_h, 4 * H, l.dh_state, B, p->r0,
                              l.o0, l.o1, t & 1, l.left);
        }
        if (job->to == T && !single(s)) FN(end_states)(&l, (REAL *)job->dh_0 + d * B * R);
    }
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
