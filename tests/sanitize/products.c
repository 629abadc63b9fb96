/* The kernel's product of matrices against plain loops. */
#include "driver.h"
#include "plan.h"
#include <stdlib.h>

static void to_floats(double *numbers, long count) {
    for (long k = 0; k < count; k++) numbers[k] = (float)numbers[k];
}

static long draw_extent(void) {
    static const long large[] = { 47, 48, 49, 64, 65, 100, 511, 512, 513, 600 };
    return draw(3) ? draw_size() : large[draw(sizeof large / sizeof *large)];
}

PLAIN static void multiply(const gemm_t *g, const double *a, const double *b, const double *old, int rounds, double *out) {
    for (long m = 0; m < g->M; m++) {
        double *row = out + m * g->N;
        for (long n = 0; n < g->N; n++) row[n] = g->add ? old[m * g->N + n] : 0;
        for (long k = 0; k < g->K; k++) {
            double left = a[g->turned ? k * g->lda + m : m * g->lda + k];
            for (long n = 0; n < g->N; n++)
                row[n] += rounds ? to_bfloat16(left) * to_bfloat16(b[k * g->ldb + n]) : left * b[k * g->ldb + n];
        }
    }
}

static void run(const gemm_t *like, const double *a, const double *b, const double *old, const double *expected, int threads,
                int isa) {
    gemm_t g = *like;
    long out_size = (g.M - 1) * g.ldo + g.N;
    long a_size = (g.turned ? g.K - 1 : g.M - 1) * g.lda + (g.turned ? g.M : g.K);
    void *given_a = buffer_of(a, a_size, g.element), *given_b = buffer_of(b, (g.K - 1) * g.ldb + g.N, g.element);
    void *out = buffer(out_size, g.element);
    for (long m = 0; g.add && m < g.M; m++)
        for (long n = 0; n < g.N; n++)
            if (g.element == 4) ((float *)out)[m * g.ldo + n] = (float)old[m * g.N + n];
            else ((double *)out)[m * g.ldo + n] = old[m * g.N + n];
    describe("product M=%ld N=%ld K=%ld turned=%d add=%d rows at %ld, %ld, %ld, isa=%d element=%d threads=%d", g.M, g.N, g.K,
             g.turned, g.add, g.ldo, g.lda, g.ldb, isa, g.element, threads);
    size_t bytes = torchlstm_gemm_scratch(&g, threads, isa);
    g.a = given_a, g.b = given_b, g.out = out, g.scratch = bytes ? buffer((long)bytes, 1) : NULL;
    draw_team(threads);
    torchlstm_gemm(&g, threads, isa);
    expect("out", out, g.element, expected, g.M, g.N, g.ldo, g.element == 4 ? 1e-5 : 1e-12);
    for (long at = 0; at < out_size; at++)
        if (at % g.ldo >= g.N && !untouched(out, at, g.element)) fail("wrote between the rows of out");
    free(given_a), free(given_b), free(out), free(g.scratch);
}

/* On every instruction set and element type; `g` has the extents, and what is between the rows. */
static void check(gemm_t g, int threads) {
    g.ldo += g.N, g.ldb += g.N, g.lda += g.turned ? g.M : g.K;
    long a_size = (g.turned ? g.K : g.M) * g.lda, b_size = g.K * g.ldb;
    double *a = draw_numbers(a_size, 1), *b = draw_numbers(b_size, 1), *old = draw_numbers(g.M * g.N, 1);
    double *expected = malloc((size_t)(g.M * g.N) * sizeof *expected);
    to_floats(a, a_size), to_floats(b, b_size), to_floats(old, g.M * g.N);
    for (int isa = PORTABLE, rounds = -1; isa < ISAS; isa++) {
        if (torchlstm_isa(isa) != isa) continue;
        if (rounds != (isa == BFLOAT16 && !is_thin(&g)))
            rounds = isa == BFLOAT16 && !is_thin(&g), multiply(&g, a, b, old, rounds, expected);
        for (g.element = 4; g.element <= (rounds ? 4 : 8); g.element += 4) {
            bits_seen = 0, run(&g, a, b, old, expected, threads, isa);
            unsigned long long seen = bits_seen;
            bits_seen = 0, run(&g, a, b, old, expected, 1, isa);
            if (bits_seen != seen) fail("other bits than on %d threads", threads);
        }
    }
    free(a), free(b), free(old), free(expected);
}

void check_product(void) {
    gemm_t g = { .M = draw_extent(), .N = draw_extent(), .K = draw_extent(), .turned = (int)draw(2), .add = (int)draw(2),
                 .ldo = (long)draw(4), .ldb = (long)draw(4), .lda = (long)draw(4) };
    if (g.M * g.N * g.K > 3000000) g.K = 1 + g.K % 40;
    check(g, draw_threads());
}

typedef struct { long M, N, K; } extents_t;

static void check_one(const extents_t *of, int turned, int add) {
    check((gemm_t){ .M = of->M, .N = of->N, .K = of->K, .turned = turned, .add = add }, draw_threads());
}

/* The least there is; both sides of what is thin; whole vectors and tiles, and one more; more terms than are packed at a
 * time, of float and of bfloat16; fewer rows, and fewer columns, than threads. */
int check_special_products(void) {
    static const extents_t all[] = {
        { 1, 1, 1 }, { 1, 1, 40 }, { 2, 3, 1 }, { 32, 33, 32 }, { 33, 33, 32 }, { 32, 33, 33 }, { 33, 33, 33 }, { 48, 64, 48 },
        { 49, 65, 49 }, { 34, 1, 40 }, { 40, 2, 1030 }, { 35, 70, 1537 }, { 33, 17, 2051 }, { 3, 70, 1100 }, { 100, 40, 3 },
    };
    int count = sizeof all / sizeof *all;
    for (int i = 0; i < 4 * count; i++) check_one(&all[i / 4], i & 1, i >> 1 & 1);
    return 4 * count;
}

int check_big_products(void) {
    static const extents_t all[] = { { 200, 300, 1100 }, { 70, 1030, 530 }, { 5, 2000, 1500 }, { 2100, 7, 600 } };
    int count = sizeof all / sizeof *all;
    for (int i = 0; i < count; i++) check_one(&all[i], i & 1, i >> 1);
    return count;
}
