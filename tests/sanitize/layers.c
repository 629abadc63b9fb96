/* The kernel's layer, forward and backward, against plain loops. */
#include "naive.h"
#include "packed.h"
#include <stdlib.h>

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

static naive_t draw_case(sizes_t s, long rows) {
    naive_t n = { .sizes = s };
    long I = s.input, H = s.hidden, R = s.output, D = s.directions;
    /* Now and then a bias so large that gates saturate, past where the kernel's exponentials are clamped. */
    double w = 1 / sqrt((double)H), large = draw(8) ? w : 300;
    for (int d = 0; d < D; d++) {
        n.w_ih[d] = draw_numbers(4 * H * I, w), n.w_hh[d] = draw_numbers(4 * H * R, w);
        if (draw(3)) n.b_ih[d] = draw_numbers(4 * H, large);
        if (draw(3)) n.b_hh[d] = draw_numbers(4 * H, w);
        if (s.projected) n.w_hr[d] = draw_numbers(R * H, w);
    }
    n.x = draw_numbers(rows * I, 1), n.h_0 = draw_numbers(D * s.batch * R, 1), n.c_0 = draw_numbers(D * s.batch * H, 1);
    n.y = zeros(rows * D * R), n.h_n = zeros(D * s.batch * R), n.c_n = zeros(D * s.batch * H);
    n.gates = zeros(D * rows * 4 * H), n.cells = zeros(D * rows * H), n.entered = zeros(D * rows * H);
    if (draw(4)) n.dy = draw_numbers(rows * D * R, 1);
    if (draw(4)) n.dh_n = draw_numbers(D * s.batch * R, 1);
    if (draw(4)) n.dc_n = draw_numbers(D * s.batch * H, 1);
    if (!draw(3)) n.dacts = draw_numbers(D * rows * 4 * H, 1);
    if (!draw(3)) n.dcells = draw_numbers(D * rows * H, 1);
    n.dgates = zeros(D * rows * 4 * H), n.before = zeros(D * rows * R), n.dh = zeros(D * rows * R);
    n.raw = zeros(D * rows * H), n.dh_0 = zeros(D * s.batch * R), n.dc_0 = zeros(D * s.batch * H), n.db = zeros(D * 4 * H);
    return n;
}

static void free_case(naive_t *n) {
    for (int d = 0; d < 2; d++) free(n->w_ih[d]), free(n->w_hh[d]), free(n->b_ih[d]), free(n->b_hh[d]), free(n->w_hr[d]);
    double *rest[] = { n->x, n->h_0, n->c_0, n->y, n->h_n, n->c_n, n->gates, n->cells, n->entered, n->dy, n->dh_n, n->dc_n,
                       n->dacts, n->dcells, n->dgates, n->before, n->dh, n->raw, n->dh_0, n->dc_0, n->db };
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
    f->scratch = bytes ? buffer((long)bytes, 1) : NULL;
    draw_team(r->threads);
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
    int reverse = backwards(s, d);
    long low = reverse ? from : s->steps - to, high = reverse ? to : s->steps - from;
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
            if (of[i].found) {
                const char *found = (const char *)of[i].found + at * of[i].stride * r->element;
                expect(of[i].name, found, r->element, of[i].expected + (d * r->rows + first) * of[i].columns, count,
                       of[i].columns, of[i].stride, r->tolerance);
                for (long k = 0; k < b->room; k++)
                    for (long j = k < count ? of[i].columns : 0; j < of[i].stride; j++)
                        if (!untouched(found, k * of[i].stride + j, r->element)) fail("wrote beside the rows of %s", of[i].name);
            }
    }
}

static void backward(run_t *r, long part, long padding, int want_before) {
    const naive_t *n = r->n;
    backward_t b = { .gates = r->f.gates, .cells = r->f.cells, .y = r->f.sizes.projected ? r->f.y : NULL, .h_0 = r->f.h_0, .c_0 = r->f.c_0,
                     .sizes = r->f.sizes, .step = 4 * r->f.sizes.hidden + padding };
    const sizes_t *s = &b.sizes;
    long D = s->directions, states = D * s->batch, H = s->hidden, R = s->output, first, count;
    memcpy(b.weights, r->f.weights, sizeof b.weights);
    for (long from = 0; from < s->steps; from += part)
        for (int d = 0; d < D; d++) {
            rows_of_part(s, d, from, from + part < s->steps ? from + part : s->steps, &first, &count);
            if (count > b.room) b.room = count;
        }
    if (!draw(4)) b.room += 2;
    void *dy = buffer_of(n->dy, r->rows * D * R, r->element), *dh_n = buffer_of(n->dh_n, states * R, r->element);
    void *dc_n = buffer_of(n->dc_n, states * H, r->element);
    void *dacts = buffer_of(n->dacts, D * r->rows * 4 * H, r->element);
    void *dcells = buffer_of(n->dcells, D * r->rows * H, r->element);
    b.dy = dy, b.dh_n = dh_n, b.dc_n = dc_n, b.dacts = dacts, b.dcells = dcells;
    b.dc_0 = buffer(states * H, r->element), b.db = buffer(D * 4 * H, r->element);
    b.dh_0 = single(s) ? NULL : buffer(states * R, r->element);
    size_t bytes = torchlstm_backward_scratch(&b, r->threads, r->isa);
    b.scratch = bytes ? buffer((long)bytes, 1) : NULL;
    for (b.from = 0; b.from < s->steps; b.from = b.to) {
        b.to = b.from + part < s->steps ? b.from + part : s->steps;
        b.dgates = buffer(D * b.room * b.step, r->element), b.before = want_before ? buffer(D * b.room * R, r->element) : NULL;
        b.dh = s->projected ? buffer(D * b.room * R, r->element) : NULL;
        b.raw = s->projected ? buffer(D * b.room * H, r->element) : NULL;
        draw_team(r->threads);                          /* each part may get another number of threads */
        torchlstm_backward(&b, r->threads, r->isa);
        compare_part(r, &b);
        free(b.dgates), free(b.before), free(b.dh), free(b.raw);
    }
    if (b.dh_0) expect("dh_0", b.dh_0, r->element, n->dh_0, states, R, R, r->tolerance);
    expect("dc_0", b.dc_0, r->element, n->dc_0, states, H, H, r->tolerance);
    expect("db", b.db, r->element, n->db, D, 4 * H, 4 * H, r->tolerance);
    free(b.dh_0), free(b.dc_0), free(b.db), free(b.scratch), free(dy), free(dh_n), free(dc_n);
    free(dacts), free(dcells);
}

/* The kernel does not write what it is given. */
static void expect_unchanged(const void *given, const double *from, long count, int element) {
    void *again = buffer_of(from, count, element);
    if (from && memcmp(given, again, (size_t)count * (size_t)element)) fail("wrote to what it was given");
    free(again);
}

/* The tolerance of int8: the rows are rounded to 16 bits. */
static void run(const naive_t *n, long rows, int threads, int isa, int element, int format) {
    double tolerance = element == 8 ? 1e-10 : n->rounds ? 1e-2 : format == IN_INT8 ? 2e-3 : 1e-4;
    run_t r = { n, element, isa, threads, tolerance, rows, { .sizes = n->sizes, .format = format } };
    sizes_t *s = &r.f.sizes;
    long I = s->input, H = s->hidden, R = s->output, states = s->directions * s->batch;
    s->element = element;
    struct { const double *from; long count; void *given; } all[13] = {
        { n->x, rows * I, NULL }, { n->h_0, states * R, NULL }, { n->c_0, states * H, NULL },
    };
    for (int d = 0; d < 2; d++) {
        const double *from[] = { n->w_ih[d], n->w_hh[d], n->b_ih[d], n->b_hh[d], n->w_hr[d] };
        long counts[] = { 4 * H * I, 4 * H * R, 4 * H, 4 * H, R * H };
        for (int i = 0; i < 5; i++) all[3 + 5 * d + i].from = from[i], all[3 + 5 * d + i].count = counts[i];
    }
    for (int i = 0; i < 13; i++) all[i].given = buffer_of(all[i].from, all[i].count, element);
    r.f.x = all[0].given, r.f.h_0 = all[1].given, r.f.c_0 = all[2].given;
    for (int d = 0; d < 2; d++)
        r.f.weights[d] = (weights_t){ all[3 + 5 * d].given, all[4 + 5 * d].given, all[5 + 5 * d].given, all[6 + 5 * d].given,
                                      all[7 + 5 * d].given };
    describe("layer T=%ld B=%ld I=%ld H=%ld R=%ld D=%d reverse=%d ragged=%d projected=%d biases=%d,%d isa=%d element=%d format=%d threads=%d",
             s->steps, s->batch, I, H, R, s->directions, s->reverse, s->starts != NULL, s->projected, n->b_ih[0] != NULL,
             n->b_hh[0] != NULL, isa, element, format, threads);
    void *packed[2] = { NULL, NULL };
    for (int d = 0; format != UNPACKED && d < s->directions; d++) {
        r.f.packed[d] = packed[d] = pack(n, s, d, format, isa);
        r.f.weights[d] = (weights_t){ 0 };              /* reading these would end the process */
    }
    static const long paddings[] = { 0, 1, 3, 8, 16 };
    long part = 1 + (long)draw((unsigned long)s->steps), padding = paddings[draw(5)];
    int want_before = draw(4) > 0;
    /* On these threads, and on one: the same bits. */
    for (unsigned long long seen = 0;; seen = bits_seen, r.threads = 1) {
        bits_seen = 0;
        forward(&r, 0);
        if (format == UNPACKED) {
            forward(&r, 1);
            backward(&r, part, padding, want_before);
        }
        if (seen && bits_seen != seen) fail("other bits on one thread");
        if (r.threads == 1) break;
        if (format == UNPACKED) free(r.f.y), free(r.f.gates), free(r.f.cells);
    }
    free(packed[0]), free(packed[1]);
    for (int i = 0; i < 13; i++) expect_unchanged(all[i].given, all[i].from, all[i].count, element), free(all[i].given);
    if (format == UNPACKED) free(r.f.y), free(r.f.gates), free(r.f.cells);
}

/* On every instruction set and element type. */
static void check(sizes_t s, int64_t *starts, long rows, int threads) {
    s.starts = starts;
    naive_t n = draw_case(s, rows);
    n.rounds = -1;
    for (int isa = PORTABLE; isa < ISAS; isa++) {
        if (torchlstm_isa(isa) != isa) continue;
        int rounds = isa == BFLOAT16 && !single(&s);
        if (n.rounds != rounds) {
            n.rounds = rounds && !in_place(&s);         /* in place forward multiplies as it is */
            naive_forward(&n);
            n.rounds = rounds;
            naive_backward(&n);
        }
        for (int element = 4; element <= (isa == BFLOAT16 ? 4 : 8); element += 4) {
            run(&n, rows, threads, isa, element, UNPACKED);
            if (isa != BFLOAT16) run(&n, rows, threads, isa, element, AS_THEY_ARE);
        }
    }
    snap(&n), n.rounds = 0;
    naive_forward(&n);
    for (int isa = PORTABLE; isa <= AVX512; isa++)
        for (int format = IN_BFLOAT16; format <= IN_INT8 && torchlstm_isa(isa) == isa; format++)
            run(&n, rows, threads, isa, 4, format);
    free_case(&n), free(starts);
}

void check_layer(void) {
    sizes_t s = { .steps = draw(5) ? 1 + (long)draw(12) : 1, .batch = draw_size(), .input = draw_size(), .hidden = draw_size(),
                  .directions = 1 + (int)draw(2), .projected = draw(3) == 0 };
    if (!draw(16)) s.steps = 40;
    s.output = s.hidden;
    if (s.directions == 1) s.reverse = (int)draw(2);
    if (s.projected && s.hidden == 1) s.projected = 0;
    if (s.projected) s.output = 1 + (long)draw((unsigned long)s.hidden - 1);
    long rows;
    int64_t *starts = draw_starts(s.steps, s.batch, &rows);
    check(s, starts, rows, draw_threads());
}

int check_special_layers(void) {
    /* `active`: the sequences of each step, the last number for all that follow; none: dense. */
    static const struct { sizes_t sizes; int threads; long active[8]; } all[] = {
        /* The least there is: one step, more threads than units and rows; one that most sequences do not have. */
        { { .steps = 1, .batch = 1, .input = 1, .hidden = 1, .output = 1, .directions = 1 }, 4, { 0 } },
        { { .steps = 1, .batch = 1, .input = 1, .hidden = 1, .output = 1, .directions = 2 }, 3, { 0 } },
        { { .steps = 1, .batch = 9, .input = 17, .hidden = 33, .output = 33, .directions = 2 }, 4, { 2 } },
        { { .steps = 1, .batch = 5, .input = 2, .hidden = 2, .output = 1, .directions = 2, .projected = 1 }, 4, { 1 } },
        { { .steps = 2, .batch = 1, .input = 1, .hidden = 1, .output = 1, .directions = 2 }, 4, { 0 } },
        /* Every step loses a sequence; all but one end at once, so that most threads have no rows; one sequence of many. */
        { { .steps = 5, .batch = 5, .input = 3, .hidden = 9, .output = 9, .directions = 2 }, 4, { 5, 4, 3, 2, 1 } },
        { { .steps = 40, .batch = 33, .input = 8, .hidden = 16, .output = 16, .directions = 2 }, 4, { 33, 1 } },
        { { .steps = 7, .batch = 40, .input = 7, .hidden = 17, .output = 17, .directions = 1 }, 4, { 1 } },
        { { .steps = 7, .batch = 31, .input = 7, .hidden = 40, .output = 15, .directions = 2, .projected = 1 }, 4, { 31, 17, 2 } },
        /* Few steps of one and two sequences, whose weights are read in place: sequences that end, that never begin; units
           and terms that fill no vector; more steps than the buffer of gates has room for. */
        { { .steps = 6, .batch = 1, .input = 70, .hidden = 33, .output = 33, .directions = 2 }, 4, { 0 } },
        { { .steps = 6, .batch = 2, .input = 31, .hidden = 70, .output = 70, .directions = 2 }, 3, { 2, 2, 1 } },
        { { .steps = 3, .batch = 2, .input = 47, .hidden = 3, .output = 3, .directions = 1, .reverse = 1 }, 4, { 1, 1, 0 } },
        { { .steps = 2, .batch = 2, .input = 16, .hidden = 64, .output = 64, .directions = 1 }, 2, { 0 } },
        { { .steps = 40, .batch = 2, .input = 350, .hidden = 301, .output = 301, .directions = 2 }, 3, { 2, 2, 2, 2, 2, 2, 2, 1 } },
        /* Two directions on an odd number of threads; more threads than the kernel has flags for. */
        { { .steps = 4, .batch = 16, .input = 15, .hidden = 32, .output = 32, .directions = 2 }, 3, { 0 } },
        { { .steps = 3, .batch = 2, .input = 3, .hidden = 20, .output = 20, .directions = 1 }, 300, { 0 } },
        /* What is packed, or summed, a block at a time: more terms of each product, more units, or more steps than one
           block holds.  (An output larger than the hidden size is the short way to many terms of the recurrence.) */
        { { .steps = 2, .batch = 40, .input = 1700, .hidden = 8, .output = 8, .directions = 1 }, 2, { 0 } },
        { { .steps = 3, .batch = 3, .input = 5, .hidden = 300, .output = 300, .directions = 2 }, 4, { 0 } },
        { { .steps = 2, .batch = 150, .input = 3, .hidden = 221, .output = 9, .directions = 1, .projected = 1 }, 3, { 0 } },
        { { .steps = 2, .batch = 300, .input = 3, .hidden = 3, .output = 515, .directions = 2, .projected = 1 }, 4, { 300, 260 } },
        /* Rows that are projected at a time, of more terms than the packed rows of a step take. */
        { { .steps = 1, .batch = 24, .input = 1, .hidden = 2800, .output = 2, .directions = 1, .projected = 1 }, 1, { 0 } },
        { { .steps = 150, .batch = 9, .input = 4, .hidden = 24, .output = 24, .directions = 1 }, 2, { 0 } },
    };
    int count = sizeof all / sizeof *all;
    for (int i = 0; i < count; i++) {
        const sizes_t *s = &all[i].sizes;
        int64_t *starts = all[i].active[0] ? malloc((size_t)(s->steps + 1) * sizeof *starts) : NULL;
        long rows = starts ? 0 : s->steps * s->batch, alive = 0;
        for (long t = 0; starts && t < s->steps; t++) {
            if (t < 8 && all[i].active[t]) alive = all[i].active[t];
            starts[t] = rows, rows += alive;
        }
        if (starts) starts[s->steps] = rows;
        check(*s, starts, rows, all[i].threads);
    }
    return count;
}
