/* A stream of one LSTM in plain C: one step at a time, on the kernel of torchlstm's CPU engine, without Python.
 *
 *   stream [ISA]       the number of an instruction set, as kernel.h has it; the best one if none is given
 *
 * Prints h after each step, and how far all of it is from `naive_step`, summed up.  Fails if that is more than rounding.
 */
#include "kernel.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { STEPS = 5, INPUT = 7, HIDDEN = 20 };

/* As torch.nn.LSTM has them: (4H, I), (4H, H), (4H,), (4H,); gates i, f, g, o one after the other. */
static float w_ih[4 * HIDDEN][INPUT], w_hh[4 * HIDDEN][HIDDEN], b_ih[4 * HIDDEN], b_hh[4 * HIDDEN];

/* Element k is the same in every language: ((37 k + seed) mod 101 - 50) / 128. */
static void fill(void *to, int count, int seed) {
    for (int k = 0; k < count; k++) ((float *)to)[k] = (float)((37 * k + seed) % 101 - 50) / 128;
}

static double sigmoid(double a) { return 1 / (1 + exp(-a)); }

static void naive_step(const float *x, double *h, double *c) {
    double gates[4][HIDDEN];
    for (int g = 0; g < 4 * HIDDEN; g++) {
        double sum = b_ih[g] + b_hh[g];
        for (int k = 0; k < INPUT; k++) sum += w_ih[g][k] * x[k];
        for (int k = 0; k < HIDDEN; k++) sum += w_hh[g][k] * h[k];
        gates[g / HIDDEN][g % HIDDEN] = sum;
    }
    for (int u = 0; u < HIDDEN; u++) {
        c[u] = sigmoid(gates[1][u]) * c[u] + sigmoid(gates[0][u]) * tanh(gates[2][u]);
        h[u] = sigmoid(gates[3][u]) * tanh(c[u]);
    }
}

int main(int count, char **arguments) {
    const int wanted = count > 1 ? atoi(arguments[1]) : BEST, isa = torchlstm_isa(wanted);
    if (count > 1 && isa != wanted) return fprintf(stderr, "this processor lacks instruction set %d\n", wanted), 3;
    fill(w_ih, 4 * HIDDEN * INPUT, 1), fill(w_hh, 4 * HIDDEN * HIDDEN, 2), fill(b_ih, 4 * HIDDEN, 3), fill(b_hh, 4 * HIDDEN, 4);

    float x[INPUT], y[HIDDEN], h[2][HIDDEN] = { 0 }, c[2][HIDDEN] = { 0 };
    double naive_h[HIDDEN] = { 0 }, naive_c[HIDDEN] = { 0 }, error = 0;
    forward_t call = {
        .sizes = { .steps = 1, .batch = 1, .input = INPUT, .hidden = HIDDEN, .output = HIDDEN, .directions = 1, .element = 4 },
        .weights = { { .w_ih = w_ih, .w_hh = w_hh, .b_ih = b_ih, .b_hh = b_hh } }, .x = x, .y = y,
    };
    const size_t bytes = torchlstm_forward_scratch(&call, 1, isa);
    call.scratch = bytes ? malloc(bytes) : NULL;
    if (bytes && !call.scratch) return fprintf(stderr, "no memory\n"), 2;
    for (int t = 0; t < STEPS; t++) {
        /* The states after this step may not overlap those before it: two buffers take turns. */
        call.h_0 = h[t % 2], call.c_0 = c[t % 2], call.h_n = h[(t + 1) % 2], call.c_n = c[(t + 1) % 2];
        fill(x, INPUT, 5 + t);
        torchlstm_forward(&call, 1, isa);
        naive_step(x, naive_h, naive_c);
        for (int u = 0; u < HIDDEN; u++) {
            printf("%.9g%c", (double)y[u], u == HIDDEN - 1 ? '\n' : ' ');
            error += fabs(y[u] - naive_h[u]);
        }
    }
    free(call.scratch);
    fprintf(stderr, "instruction set %d, %.1e from plain loops\n", isa, error);
    return !(error < 1e-5);
}
