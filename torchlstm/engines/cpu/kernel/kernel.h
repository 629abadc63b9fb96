/* What the LSTM kernel offers, and the shape, owner and aliasing of every pointer.
 *
 * T steps, B batch, P packed rows, I input size, H hidden size, R output size (proj_size, or H), D directions.
 * Gates always lie i, f, g, o on the 4H axis.  All arrays are C-contiguous, of one element type (float or double),
 * owned by the caller, and no two of them may overlap unless a line below says so.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef struct {
    long steps, batch, input, hidden, output;    /* T, B, I, H, R                                                  */
    int directions;                              /* 1 or 2; direction 1 runs the steps backwards                   */
    int projected;                               /* output is W_hr (o tanh c)                                      */
    int reverse;                                 /* of one direction: it runs the steps backwards                  */
    int element;                                 /* 4: float, 8: double                                            */
    const int64_t *starts;                       /* (T + 1,) first packed row of every step, then P; or NULL: dense */
} sizes_t;

static inline long first_row(const sizes_t *s, long t) { return s->starts ? (long)s->starts[t] : t * s->batch; }
static inline long active(const sizes_t *s, long t) {
    return t < 0 || t >= s->steps ? 0 : s->starts ? (long)(s->starts[t + 1] - s->starts[t]) : s->batch;
}

static inline int backwards(const sizes_t *s, int d) { return d || s->reverse; }

/* One step is too little to pack the weights for; forward and backward have short paths. */
static inline int single(const sizes_t *s) { return s->steps == 1 && !s->projected; }

/* One direction's parameters: (4H, I), (4H, R), (4H,) or NULL, (4H,) or NULL, (R, H) or NULL.  Read only. */
typedef struct { const void *w_ih, *w_hh, *b_ih, *b_hh, *w_hr; } weights_t;

typedef struct {
    void *y;                                     /* (P, D R)  written                                              */
    void *h_n, *c_n;                             /* (D, B, R), (D, B, H)  written                                  */
    void *gates, *cells;                         /* (D, P, 4H), (D, P, H) written for backward; both NULL: not kept */
    const void *x, *h_0, *c_0;                   /* (P, I), (D, B, R), (D, B, H)                                   */
    weights_t weights[2];
    sizes_t sizes;
    void *scratch;                               /* torchlstm_forward_scratch bytes, left undefined                */
} forward_t;

/* Backward over the steps numbered [from, to) in the order of the backward pass, in which direction 0 goes from
 * step T - 1 down and one that runs backwards from step 0 up: calls with consecutive ranges covering [0, T) make one backward.
 * Each direction's slice of `dgates` and its companions holds the rows of that direction's steps of the range, in
 * packed order, from `room` rows on that the buffer has for each direction. */
typedef struct {
    void *dgates, *before;                       /* (D, room, step), (D, room, R) written; before: h of the step before, or NULL */
    void *dh, *raw;                              /* (D, room, R) d h_t, (D, room, H) o tanh c, written; NULL unless projected */
    void *dh_0, *dc_0;                           /* (D, B, R), (D, B, H) written; dc_0 carries over between calls;
                                                    of a single step NULL: dh_0 is dgates W_hh, the caller's product */
    void *db;                                    /* (D, 4H) written by the last call: sum of dgates over all rows  */
    const void *gates, *cells;                   /* as forward left them                                           */
    const void *y;                               /* (P, D R) as forward left it if projected; else not read        */
    const void *h_0, *c_0;
    const void *dy, *dh_n, *dc_n;                /* (P, D R), (D, B, R), (D, B, H), each or NULL: zero             */
    const void *dacts, *dcells;                  /* (D, P, 4H), (D, P, H) of activated gates and c, or NULL: zero  */
    weights_t weights[2];
    sizes_t sizes;
    long from, to, room, step;                   /* step: row stride of dgates, at least 4H                        */
    void *scratch;                               /* torchlstm_backward_scratch bytes, kept between the calls       */
} backward_t;

/* out (M, N) = a b, or += if `add`; a (M, K), or (K, M) if `turned`, b (K, N); each with a row stride.  K at least 1. */
typedef struct {
    void *out;
    const void *a, *b;
    long M, N, K, ldo, lda, ldb;
    int turned, add, element;
    void *scratch;                               /* torchlstm_gemm_scratch bytes, left undefined; not used if 0    */
} gemm_t;

/* Instruction sets: a number above what the machine has means the best it has.  BFLOAT16 is the only one that rounds:
 * the operands of products of float, to bfloat16; where there is none of it, it means BEST. */
enum { PORTABLE, AVX2, AVX512, BEST, BFLOAT16 };

/* `threads` is how many to use at most; results are right with fewer. A backward must be asked with one number. */
int torchlstm_isa(int wanted);
/* Runs multiply-adds in registers, `rounds` times some, on every thread; returns how many operations they were. */
long torchlstm_peak(long rounds, int element, int threads, int isa);
size_t torchlstm_forward_scratch(const forward_t *, int threads, int isa);
size_t torchlstm_backward_scratch(const backward_t *, int threads, int isa);
size_t torchlstm_gemm_scratch(const gemm_t *, int threads, int isa);
void torchlstm_forward(const forward_t *, int threads, int isa);
void torchlstm_backward(const backward_t *, int threads, int isa);
void torchlstm_gemm(const gemm_t *, int threads, int isa);
