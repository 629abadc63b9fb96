/* The LSTM kernel's interface: its calls, and the shape, owner and aliasing of every pointer.
 *
 * Nothing here, nor in the sources but module.c, knows of Python: examples/kernel_from_c calls it from plain C.
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

/* Packing the weights does not pay for one step: backward leaves the product with them to the caller. */
static inline int single(const sizes_t *s) { return s->steps == 1 && !s->projected; }

/* Does forward read the weights where they are, by dot products, instead of packing them?  One step, or few of one or two
 * sequences; neither the number of threads nor what is kept for backward matters.  Measured (AMD Zen 4, AVX-512 and AVX2, I = H
 * from 16 to 512): at I + H = 16 T both take as long for two sequences, for one the products in place 5 to 15 % less;
 * packing costs a pass over the weights, and a dot product a sum over the lanes, at every step.
 * Three sequences and more are packed from the second step on: a sequence's bits do not depend on T then. */
enum { FEW_SEQUENCES = 2, TERMS_A_STEP = 16 };
static inline int in_place(const sizes_t *s) {
    return single(s) || (!s->projected && s->batch <= FEW_SEQUENCES && s->steps * TERMS_A_STEP <= s->input + s->hidden);
}

/* One direction's parameters: (4H, I), (4H, R), (4H,) or NULL, (4H,) or NULL, (R, H) or NULL.  Read only. */
typedef struct { const void *w_ih, *w_hh, *b_ih, *b_hh, *w_hr; } weights_t;

/* Weights that were packed before the call, so that it reads nothing else of them: in their own type, bfloat16, float16, or int8
 * with a scale for each row.  torchlstm_packed says how they lie. */
enum { UNPACKED, AS_THEY_ARE, IN_BFLOAT16, IN_FLOAT16, IN_INT8 };

/* Weights in a slot of a packed panel: 4 bytes of one column, 8 of double. */
static inline int terms_of_slot(int format) { return format == IN_INT8 ? 4 : format >= IN_BFLOAT16 ? 2 : 1; }

/* Does forward read the weights where they are?  Only weights in their own type. */
static inline int reads_in_place(const sizes_t *s, int format) { return format <= AS_THEY_ARE && in_place(s); }

typedef struct {
    void *y;                                     /* (P, D R)  written                                              */
    void *h_n, *c_n;                             /* (D, B, R), (D, B, H)  written                                  */
    void *gates, *cells;                         /* (D, P, 4H), (D, P, H) written for backward; both NULL: not kept */
    const void *x, *h_0, *c_0;                   /* (P, I), (D, B, R), (D, B, H)                                   */
    weights_t weights[2];                        /* unpacked                                                       */
    const void *packed[2];                       /* or packed, each direction's; of float but AS_THEY_ARE          */
    int format;
    sizes_t sizes;
    void *scratch;                               /* torchlstm_forward_scratch bytes, left undefined; not used if 0 */
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

/* Instruction sets: a number above what the machine has means the best it has.  BFLOAT16 is the only one that rounds, the operands of
 * products of float to bfloat16; a machine without it takes BEST. */
enum { PORTABLE, AVX2, AVX512, BEST, BFLOAT16 };

/* How weights in a format are packed for an instruction set: the one that reads them, `lanes` units in a block, terms of a slot
 * that are side by side, and the bytes of one direction.  A slot of `lanes` columns is (terms / beside, lanes, beside).
 * A panel is (slots, 4, lanes), of the projection (slots, lanes). */
typedef struct { int isa, lanes, beside; size_t bytes; } packed_t;
packed_t torchlstm_packed(const sizes_t *, int format, int isa);

/* The functions may be called from any thread, and from several at once.
 *
 * `threads` is how many to use at most: what the caller may use, torch's number for one.  A call uses fewer where the work
 * is too little, where the process may use fewer processors, and for a while after threads of any call had to wait for one
 * that did not run (pace.h).  That number is chosen anew in every call.  Scratch is asked for with the number that the call
 * is then given, and is right for any number up to it; all calls of one backward are given one number, and one scratch. */
int torchlstm_isa(int wanted);
size_t torchlstm_forward_scratch(const forward_t *, int threads, int isa);
size_t torchlstm_backward_scratch(const backward_t *, int threads, int isa);
size_t torchlstm_gemm_scratch(const gemm_t *, int threads, int isa);
void torchlstm_forward(const forward_t *, int threads, int isa);
/* Is one thread enough for a layer forward, however many may be used? */
int torchlstm_forward_is_small(const sizes_t *);
void torchlstm_backward(const backward_t *, int threads, int isa);
void torchlstm_gemm(const gemm_t *, int threads, int isa);

/* Of the calling thread's latest layer or product: how many threads it was given, how many its work is worth, how many of these the
 * process has processors for, and how many it used. */
typedef struct { int given, worth, wanted, used; } threads_t;
threads_t torchlstm_threads(void);

/* How many processors the process may use now. */
int torchlstm_processors(void);

/* For tests and comparisons: with 0, calls use all threads that their work is worth, however long they wait.  Forgets any stall. */
void torchlstm_adapt(int on);

/* Runs multiply-adds in registers, `rounds` times some, on every thread; returns how many operations they were. */
long torchlstm_peak(long rounds, int element, int threads, int isa);
