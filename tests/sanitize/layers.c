/* The kernel's layer, forward and backward, against plain loops. */
#include "driver.h"
#include "naive.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double *zeros(long count) { return calloc((size_t)count, sizeof(double)); }

/* A batch of T steps: dense, or with sequences that end before the last step, some of them perhaps before the first. */
static int64_t *draw_starts(long steps, long batch, long *rows) {
    *rows = steps * batch;
    if (draw(2)) return NULL;
    int64_t *starts = malloc((size_t)(steps + 1) * sizeof *starts);
    long alive = batch - (draw(4) ? 0 : (long)draw((unsigned long)batch));
    starts[0] = 0;
    for (long t = 0; t < steps; t++) {
        starts[t + 1] = starts[t] + alive;
        if (alive > 1 && !draw(3)) alive -= (long)draw((unsigned long)alive);
    }
    *rows = (long)starts[steps];
    return starts;
}

static naive_t draw_case(sizes_t s, int bias, long rows) {
    naive_t n = { .sizes = s };
    long I = s.input, H = s.hidden, R = s.output, D = s.directions;
    double w = 1 / sqrt((double)H);
    for (int d = 0; d < D; d++) {
        n.w_ih[d] = draw_numbers(4 * H * I, w), n.w_hh[d] = draw_numbers(4 * H * R, w);
        if (bias) n.b_ih[d] = draw_numbers(4 * H, w), n.b_hh[d] = draw_numbers(4 * H, w);
        if (s.projected) n.w_hr[d] = draw_numbers(R * H, w);
    }
    n.x = draw_numbers(rows * I, 1), n.h_0 = draw_numbers(D * s.batch * R, 1), n.c_0 = draw_numbers(D * s.batch * H, 1);
    n.y = zeros(rows * D * R), n.h_n = zeros(D * s.batch * R), n.c_n = zeros(D * s.batch * H);
    n.gates = zeros(D * rows * 4 * H), n.cells = zeros(D * rows * H), n.entered = zeros(D * rows * H);
    if (draw(4)) n.dy = draw_numbers(rows * D * R, 1);
    if (draw(4)) n.dh_n = draw_numbers(D * s.batch * R, 1);
    if (draw(4)) n.dc_n = draw_numbers(D * s.batch * H, 1);
    n.dgates = zeros(D * rows * 4 * H), n.before = zeros(D * rows * R), n.dh = zeros(D * rows * R);
    n.raw = zeros(D * rows * H), n.dh_0 = zeros(D * s.batch * R), n.dc_0 = zeros(D * s.batch * H), n.db = zeros(D * 4 * H);
    naive_forward(&n);
    naive_backward(&n);
    return n;
}

static void free_case(naive_t *n) {
    for (int d = 0; d < 2; d++) free(n->w_ih[d]), free(n->w_hh[d]), free(n->b_ih[d]), free(n->b_hh[d]), free(n->w_hr[d]);
    double *rest[] = { n->x, n->h_0, n->c_0, n->y, n->h_n, n->c_n, n->gates, n->cells, n->entered, n->dy, n->dh_n, n->dc_n,
                       n->dgates, n->before, n->dh, n->raw, n->dh_0, n->dc_0, n->db };
    for (size_t i = 0; i < sizeof rest / sizeof *rest; i++) free(rest[i]);
}

/* What one run of the kernel is given and gives, in its own type; every array as large as it must be. */
typedef struct {
    const naive_t *n;
    int element, isa, threads;
    double tolerance;
    long rows;
    forward_t f;
} run_t;

static void forward(run_t *r, int save) {
    const naive_t *n = r->n;
    const sizes_t *s = &r->f.sizes;
    long D = s->directions, states = D * s->batch, H = s->hidden, R = s->output;
    forward_t *f = &r->f;
    f->y = buffer(r->rows * D * R, r->element), f->h_n = buffer(states * R, r->element);
    f->c_n = buffer(states * H, r->element);
    f->gates = save ? buffer(D * r->rows * 4 * H, r->element) : NULL;
    f->cells = save ? buffer(D * r->rows * H, r->element) : NULL;
    size_t bytes = torchlstm_forward_scratch(f, r->threads, r->isa);
    f->scratch = bytes ? malloc(bytes) : NULL;
    torchlstm_forward(f, r->threads, r->isa);
    free(f->scratch);
    expect("y", f->y, r->element, n->y, r->rows, D * R, D * R, r->tolerance);
    expect("h_n", f->h_n, r->element, n->h_n, states, R, R, r->tolerance);
    expect("c_n", f->c_n, r->element, n->c_n, states, H, H, r->tolerance);
    if (save) {
        expect("gates", f->gates, r->element, n->gates, D * r->rows, 4 * H, 4 * H, r->tolerance);
        expect("cells", f->cells, r->element, n->cells, D * r->rows, H, H, r->tolerance);
    }
    free(f->h_n), free(f->c_n);
    if (!save) free(f->y);
}

/* The packed rows of direction d in steps [from, to) of the backward. */
static void rows_of_part(const sizes_t *s, int d, long from, long to, long *first, long *count) {
    long low = d ? from : s->steps - to, high = d ? to : s->steps - from;
    *first = first_row(s, low), *count = first_row(s, high) - *first;
}

static void compare_part(const run_t *r, const backward_t *b) {
    const naive_t *n = r->n;
    const sizes_t *s = &b->sizes;
    long H = s->hidden, R = s->output;
    for (int d = 0; d < s->directions; d++) {
        long first, count, at = d * b->room;
        rows_of_part(s, d, b->from, b->to, &first, &count);
        struct { const char *name; const void *found; const double *expected; long columns, stride; } of[] = {
            { "dgates", b->dgates, n->dgates, 4 * H, b->step }, { "before", b->before, n->before, R, R },
            { "dh", b->dh, n->dh, R, R }, { "raw", b->raw, n->raw, H, H },
        };
        for (int i = 0; i < 4; i++)
            if (of[i].found)
                expect(of[i].name, (const char *)of[i].found + at * of[i].stride * r->element, r->element,
                       of[i].expected + (d * r->rows + first) * of[i].columns, count, of[i].columns, of[i].stride, r->tolerance);
        for (long k = 0; k + 1 < count; k++)
            for (long j = 4 * H; j < b->step; j++)
                if (!untouched(b->dgates, (at + k) * b->step + j, r->element)) {
                    fprintf(stderr, "%s: wrote between the rows of dgates\n", described);
                    exit(1);
                }
    }
}

static void backward(run_t *r, long part, long padding) {
    const naive_t *n = r->n;
    backward_t b = { .gates = r->f.gates, .cells = r->f.cells, .y = r->f.y, .h_0 = r->f.h_0, .c_0 = r->f.c_0,
                     .sizes = r->f.sizes, .step = 4 * r->f.sizes.hidden + padding };
    const sizes_t *s = &b.sizes;
    long D = s->directions, states = D * s->batch, H = s->hidden, R = s->output, first, count;
    memcpy(b.weights, r->f.weights, sizeof b.weights);
    for (long from = 0; from < s->steps; from += part)
        for (int d = 0; d < D; d++) {
            rows_of_part(s, d, from, from + part < s->steps ? from + part : s->steps, &first, &count);
            if (count > b.room) b.room = count;
        }
    void *dy = buffer_of(n->dy, r->rows * D * R, r->element), *dh_n = buffer_of(n->dh_n, states * R, r->element);
    void *dc_n = buffer_of(n->dc_n, states * H, r->element);
    b.dy = dy, b.dh_n = dh_n, b.dc_n = dc_n;
    b.dc_0 = buffer(states * H, r->element), b.db = buffer(D * 4 * H, r->element);
    b.dh_0 = single(s) ? NULL : buffer(states * R, r->element);
    int alone = single(s) && draw(2);
    size_t bytes = torchlstm_backward_scratch(&b, r->threads, r->isa);
    b.scratch = bytes ? malloc(bytes) : NULL;
    for (b.from = 0; b.from < s->steps; b.from = b.to) {
        b.to = b.from + part < s->steps ? b.from + part : s->steps;
        b.dgates = buffer(D * b.room * b.step, r->element), b.before = alone ? NULL : buffer(D * b.room * R, r->element);
        b.dh = s->projected ? buffer(D * b.room * R, r->element) : NULL;
        b.raw = s->projected ? buffer(D * b.room * H, r->element) : NULL;
        torchlstm_backward(&b, r->threads, r->isa);
        compare_part(r, &b);
        free(b.dgates), free(b.before), free(b.dh), free(b.raw);
    }
    if (b.dh_0) expect("dh_0", b.dh_0, r->element, n->dh_0, states, R, R, r->tolerance);
    expect("dc_0", b.dc_0, r->element, n->dc_0, states, H, H, r->tolerance);
    expect("db", b.db, r->element, n->db, D, 4 * H, 4 * H, r->tolerance);
    free(b.dh_0), free(b.dc_0), free(b.db), free(b.scratch), free(dy), free(dh_n), free(dc_n);
}

static void run(const naive_t *n, int bias, long rows, int threads, int isa, int element) {
    run_t r = { n, element, isa, threads, element == 8 ? 1e-10 : isa == BFLOAT16 ? 5e-2 : 1e-4, rows, { .sizes = n->sizes } };
    sizes_t *s = &r.f.sizes;
    long I = s->input, H = s->hidden, R = s->output, states = s->directions * s->batch;
    s->element = element;
    void *given[13] = { buffer_of(n->x, rows * I, element), buffer_of(n->h_0, states * R, element),
                        buffer_of(n->c_0, states * H, element) };
    for (int d = 0; d < s->directions; d++) {
        void **w = given + 3 + 5 * d;
        w[0] = buffer_of(n->w_ih[d], 4 * H * I, element), w[1] = buffer_of(n->w_hh[d], 4 * H * R, element);
        w[2] = buffer_of(n->b_ih[d], 4 * H, element), w[3] = buffer_of(n->b_hh[d], 4 * H, element);
        w[4] = buffer_of(n->w_hr[d], R * H, element);
        r.f.weights[d] = (weights_t){ w[0], w[1], w[2], w[3], w[4] };
    }
    r.f.x = given[0], r.f.h_0 = given[1], r.f.c_0 = given[2];
    snprintf(described, sizeof described,
             "layer T=%ld B=%ld I=%ld H=%ld R=%ld D=%d ragged=%d projected=%d bias=%d isa=%d element=%d threads=%d of %d", s->steps,
             s->batch, I, H, R, s->directions, s->starts != NULL, s->projected, bias, isa, element, team_limit, threads);
    forward(&r, 0);
    forward(&r, 1);
    backward(&r, 1 + (long)draw((unsigned long)s->steps), (long)draw(3) * 8);
    free(r.f.y), free(r.f.gates), free(r.f.cells);
    for (int i = 0; i < 13; i++) free(given[i]);
}

static void check(sizes_t s, int64_t *starts, long rows) {
    int threads = 1 + (int)draw(4), bias = draw(4) > 0;
    team_limit = draw(3) ? threads : 1 + (int)draw((unsigned long)threads);
    s.starts = starts;
    naive_t n = draw_case(s, bias, rows);
    for (int isa = PORTABLE; isa < ISAS; isa++)
        for (int element = 4; element <= (isa == BFLOAT16 ? 4 : 8); element += 4)
            if (torchlstm_isa(isa) == isa) run(&n, bias, rows, threads, isa, element);
    free_case(&n), free(starts);
}

void check_layer(void) {
    sizes_t s = { .steps = draw(5) ? 1 + (long)draw(12) : 1, .batch = draw_size(), .input = draw_size(), .hidden = draw_size(),
                  .directions = 1 + (int)draw(2), .projected = draw(3) == 0 };
    if (!draw(16)) s.steps = 40;
    s.output = s.hidden;
    if (s.projected && s.hidden == 1) s.projected = 0;
    if (s.projected) s.output = 1 + (long)draw((unsigned long)s.hidden - 1);
    long rows;
    int64_t *starts = draw_starts(s.steps, s.batch, &rows);
    check(s, starts, rows);
}

void check_layers_that_are_long(void) {
    /* What is packed, or summed, a block at a time: more terms, more units, or more steps than one block holds. */
    static const sizes_t all[] = {
        { .steps = 2, .batch = 40, .input = 1700, .hidden = 8, .output = 8, .directions = 1 },
        { .steps = 3, .batch = 3, .input = 5, .hidden = 300, .output = 300, .directions = 2 },
        { .steps = 2, .batch = 70, .input = 3, .hidden = 270, .output = 260, .directions = 1, .projected = 1 },
        { .steps = 150, .batch = 9, .input = 4, .hidden = 24, .output = 24, .directions = 1 },
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) check(all[i], NULL, all[i].steps * all[i].batch);
}
