/* The kernel's product of matrices against plain loops. */
#include "driver.h"
#include "plan.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The nearest bfloat16, the even one of two. */
static double rounded(double value) {
    float single = (float)value;
    uint32_t bits;
    memcpy(&bits, &single, 4);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
    memcpy(&single, &bits, 4);
    return single;
}

static void round_all(double *numbers, long count, int to_bfloat16) {
    for (long k = 0; k < count; k++) numbers[k] = to_bfloat16 ? rounded(numbers[k]) : (float)numbers[k];
}

static long draw_extent(void) {
    static const long large[] = { 47, 48, 49, 64, 65, 100, 511, 512, 513, 600 };
    return draw(3) ? draw_size() : large[draw(sizeof large / sizeof *large)];
}

static void run(const gemm_t *like, const double *a, long a_rows, const double *b, const double *old, const double *expected,
                int threads, int isa) {
    gemm_t g = *like;
    long out_size = (g.M - 1) * g.ldo + g.N;
    void *given_a = buffer_of(a, (a_rows - 1) * g.lda + (g.turned ? g.M : g.K), g.element);
    void *given_b = buffer_of(b, (g.K - 1) * g.ldb + g.N, g.element), *out = buffer(out_size, g.element);
    for (long m = 0; g.add && m < g.M; m++)
        for (long n = 0; n < g.N; n++)
            if (g.element == 4) ((float *)out)[m * g.ldo + n] = (float)old[m * g.N + n];
            else ((double *)out)[m * g.ldo + n] = old[m * g.N + n];
    size_t bytes = torchlstm_gemm_scratch(&g, threads, isa);
    g.a = given_a, g.b = given_b, g.out = out, g.scratch = bytes ? malloc(bytes) : NULL;
    torchlstm_gemm(&g, threads, isa);
    expect("out", out, g.element, expected, g.M, g.N, g.ldo, g.element == 4 ? 1e-5 : 1e-12);
    for (long at = 0; at < out_size; at++)
        if (at % g.ldo >= g.N && !untouched(out, at, g.element)) {
            fprintf(stderr, "%s: wrote between the rows of out\n", described);
            exit(1);
        }
    free(given_a), free(given_b), free(out), free(g.scratch);
}

void check_product(void) {
    gemm_t g = { .M = draw_extent(), .N = draw_extent(), .K = draw_extent(), .turned = (int)draw(2), .add = (int)draw(2) };
    if (g.M * g.N * g.K > 3000000) g.K = 1 + g.K % 40;
    g.ldo = g.N + (long)draw(4), g.ldb = g.N + (long)draw(4), g.lda = (g.turned ? g.M : g.K) + (long)draw(4);
    long a_rows = g.turned ? g.K : g.M, a_size = a_rows * g.lda, b_size = g.K * g.ldb;
    double *a = draw_numbers(a_size, 1), *b = draw_numbers(b_size, 1), *old = draw_numbers(g.M * g.N, 1);
    double *expected = malloc((size_t)(g.M * g.N) * sizeof *expected);
    round_all(a, a_size, 0), round_all(b, b_size, 0), round_all(old, g.M * g.N, 0);
    int threads = 1 + (int)draw(4);
    team_limit = draw(3) ? threads : 1 + (int)draw((unsigned long)threads);
    for (int isa = PORTABLE; isa < ISAS; isa++) {
        if (torchlstm_isa(isa) != isa) continue;
        if (isa == BFLOAT16 && !is_thin(&g)) round_all(a, a_size, 1), round_all(b, b_size, 1);
        for (long m = 0; m < g.M; m++)
            for (long n = 0; n < g.N; n++) {
                double sum = g.add ? old[m * g.N + n] : 0;
                for (long k = 0; k < g.K; k++) sum += a[g.turned ? k * g.lda + m : m * g.lda + k] * b[k * g.ldb + n];
                expected[m * g.N + n] = sum;
            }
        for (g.element = 4; g.element <= (isa == BFLOAT16 ? 4 : 8); g.element += 4) {
            snprintf(described, sizeof described, "product M=%ld N=%ld K=%ld turned=%d add=%d isa=%d element=%d threads=%d of %d",
                     g.M, g.N, g.K, g.turned, g.add, isa, g.element, team_limit, threads);
            run(&g, a, a_rows, b, old, expected, threads, isa);
        }
    }
    free(a), free(b), free(old), free(expected);
}
