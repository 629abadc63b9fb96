/* Who does what: a thread's part of the work, and where things lie in the scratch memory.
 *
 * The threads form teams (one for each direction, or one for all); a team's threads either own rows of the batch
 * each, and never wait, or own hidden units each, and meet once a step.
 */
#pragma once
#include "kernel.h"
#include "threads.h"

typedef struct { long from, to; } range_t;          /* [from, to) */

typedef struct {
    int rank, threads;                  /* among all threads of the call                                  */
    struct { int from, to; } directions;/* those of this thread's team                                    */
    int me, members;                    /* among the threads that share this thread's rows                */
    int group;                          /* the row group of this thread within its team                   */
    range_t rows;                       /* this thread's rows of the batch                                */
    flag_t *all, *mine;                 /* (threads,) flags of all; (members,) flags of those that share  */
    long met;                           /* how often `mine` have met                                      */
    long call;                          /* how many calls of this caller read the same weights before     */
} part_t;

/* How many rows of step t are this thread's; they begin at rows.from. */
static inline long my_rows(const sizes_t *s, const part_t *p, long t) {
    long n = active(s, t);
    return n <= p->rows.from ? 0 : (n < p->rows.to ? n : p->rows.to) - p->rows.from;
}

/* Share i of n of `count` things, [*from, *to). */
static inline void share(long count, long i, long n, long *from, long *to) {
    *from = count * i / n, *to = count * (i + 1) / n;
}

/* The next step's number is published, and the other threads of the same rows are waited for. */
static inline void meet_mine(part_t *p) { meet(p->mine, p->members, p->me, ++p->met); }

/* A sweep reads the weights of all blocks of units once.  Every other one goes from the last block to the first: of weights that exceed the
 * cache it then finds a part there.  The next call on the same weights goes on with that.
 * Are the weights of step t, or of the inputs, read backwards? */
static inline int turned(const sizes_t *s, const part_t *p, long t) { return (p->call * s->steps + t) & 1; }
static inline int inputs_turned(const part_t *p) { return p->call & 1; }
/* Block i of a sweep. */
static inline long in_turn(range_t units, long i, int back) { return back ? units.to - 1 - i : units.from + i; }

/* A single step of few rows takes as many units at a time as have so many bytes of weights, of the inputs and the recurrence together: a
 * sweep then ends with both.  Measured (Emerald Rapids, again and again): int8 with 640 units takes 101 us, with all units at a time 117.
 * The rows are packed anew for each part; 1, 2 and 4 rows gain. */
enum { STEP_BYTES = 512 << 10, STEP_ROWS = 4 };

static inline long blocks(long n, int lanes) { return (n + lanes - 1) / lanes; }

/* Forward: a thread's buffer of gates before activation holds as many steps as fit it, for all of which W_ih is read once.  It is as
 * large as the thread's part of W_ih: writing and reading the buffer then costs about as much as reading W_ih once more.
 * Measured (Emerald Rapids, nn.LSTM beside it): against 192 KB for all sizes, one thread takes 16 % less for 16 sequences of 512
 * units and 22 % less for one of 1,024; two threads take 0 to 13 % less; 128 units gain nothing. */
enum { GATES_LEAST = 192 << 10, GATES_MOST = 16 << 20 };
static inline long gates_room(const sizes_t *s, int format, int threads) {
    long room = 4 * s->hidden * blocks(s->input, terms_of_slot(format)) * s->directions / threads;
    long least = GATES_LEAST / s->element, most = GATES_MOST / s->element;
    return room < least ? least : room < most ? room : most;
}

/* Rows of the left operand of a product are packed, as many terms at a time as fit LEFT_BYTES: they should stay in a
 * cache while the columns change, the last one at least.  But at least LEFT_LEAST terms: starting a sum costs too. */
enum { LEFT_BYTES = 2 << 20, LEFT_LEAST = 256 };

/* Rows that packing may add: two parts of a step, each filled up to tiles of 16 (LEFT_ROWS). */
enum { LEFT_SPARE = 32 };

/* Most slots of a block of a sum (product.h): in the time loop, and in products of matrices.  Measured (AMD Zen 4): against
 * one chain BLOCK_MOST 128 costs 0 to 2 % of inference, 64 with two blocks at least 2 to 5 %; GEMM_BLOCK 32 costs 1 % of
 * a training step more than 64.  A product of matrices sums over as many terms as a batch has rows, where nn.LSTM adds
 * up the sums of steps: to be as exact it needs shorter blocks.  `torchlstm parity` prints the errors. */
enum { BLOCK_MOST = 128, GEMM_BLOCK = 64 };

/* A product of matrices: terms and rows that are packed at a time, and slack after the rows, in elements. */
enum { GEMM_DEPTH = 512, GEMM_ROWS = 48, GEMM_SLACK = 64 };

/* A product of few rows or few terms is thin: b is read where it is.  Measured (AMD Zen 4, 1024 terms, 1024 columns): at
 * 8 rows 2.3 times as fast as with b packed, at 24 rows 1.4 times, from 96 rows on no gain. */
enum { GEMM_THIN = 32 };
static inline int is_thin(const gemm_t *g) { return g->M <= GEMM_THIN || g->K <= GEMM_THIN; }
/* Elements of scratch for each thread of a thin product: packed rows, and a part of a vector of columns. */
static inline long thin_room(long depth, long lanes) { return GEMM_ROWS * depth + GEMM_SLACK + depth * lanes; }

/* Rows whose outputs are projected at a time. */
enum { OUTPUT_ROWS = 24 };

/* Elements for the packed rows of a step, or of those that are projected, with slack.  A row of int8 is packed whole, to
 * blocks of TILE_SLOTS slots where there are tiles, and has up to 8 elements before them. */
static inline long left_room(const sizes_t *s, int format) {
    long longest = s->input > s->output ? s->input : s->output, most = LEFT_BYTES / s->element, least = (s->batch + LEFT_SPARE) * LEFT_LEAST;
    long outputs = s->projected ? OUTPUT_ROWS * (s->hidden + 40) : 0, whole = format == IN_INT8 ? s->batch * (longest / 2 + 40) : 0;
    most = most > least ? most : least, outputs = outputs > whole ? outputs : whole;
    return (most > outputs ? most : outputs) + 32;
}

/* Slots that a tile of int8 products takes at a time (amx.c).  Of the last ones of a panel it may read beyond the panel, for
 * products with zeros: behind all weights is room for that. */
enum { TILE_SLOTS = 16 };

/* Where the packed weights of one direction lie: panels of the inputs, the recurrence, the projection; the biases, (blocks of
 * units, 4, lanes); of int8 for each of the three the scales of its columns and as many offsets.  All offsets count elements,
 * those of 16 and 8 bits 4 bytes. */
typedef struct { long x, h, r, bias, scales, total; } packed_plan_t;

static inline packed_plan_t plan_packed(const sizes_t *s, int format, int lanes) {
    long units = blocks(s->hidden, lanes) * lanes * 4, outputs = s->projected ? blocks(s->output, lanes) * lanes : 0, at = 0;
    int slot = terms_of_slot(format);
    packed_plan_t p;
    p.x = at, at += units * blocks(s->input, slot);
    p.h = at, at += units * blocks(s->output, slot);
    p.r = at, at += outputs * blocks(s->hidden, slot);
    p.bias = at, at += units;
    p.scales = at, at += format == IN_INT8 ? 4 * units + 2 * outputs + TILE_SLOTS * 4 * lanes : 0;
    p.total = blocks(at, 32) * 32;
    return p;
}

/* All in elements; a row of a block of gates takes 4 LANES of them. */
typedef struct {
    packed_plan_t packed;               /* weights of one direction: in the scratch memory, or packed before */
    long raw;                           /* (B, H) o tanh c if projected                                    */
    long direction;                     /* what one direction takes                                        */
    long gates, left, thread;           /* a thread's gate buffer; its packed rows; what one thread takes  */
    long threads;                       /* where the threads' begin                                        */
    long total;
} forward_plan_t;

static inline forward_plan_t plan_forward(const sizes_t *s, int format, int threads, int lanes) {
    long width = blocks(s->hidden, lanes) * lanes * 4;
    forward_plan_t p;
    if (reads_in_place(s, format)) {
        /* A buffer of gates for each thread, of several steps. */
        long all = s->steps * s->batch * width, least = s->batch * width, room = gates_room(s, format, threads);
        p = (forward_plan_t){ .gates = single(s) ? 0 : blocks(all < room ? all : least < room ? room : least, 32) * 32 };
        p.thread = p.gates, p.total = threads * p.thread;
        return p;
    }
    p.packed = plan_packed(s, format, lanes);
    p.raw = format == UNPACKED ? p.packed.total : 0;
    p.direction = blocks(p.raw + (s->projected ? s->batch * s->hidden : 0), 32) * 32;
    p.threads = p.direction * s->directions;
    long least = s->batch * 4 * lanes, room = gates_room(s, format, threads);
    long most = s->steps * s->batch * width;
    p.gates = blocks(room < least ? least : room < most ? room : most, 32) * 32;
    p.left = p.gates;
    p.thread = p.gates + left_room(s, format);
    p.total = p.threads + p.thread * threads;
    return p;
}

/* Recurrent weights up to this size are read from a core's own cache: each thread may then take rows of its own,
 * and read all of them, instead of waiting for the others every step. */
enum { ROWS_BYTES = 320 << 10, ROWS_LEAST = 4 };
static inline int by_rows(const sizes_t *s, int members) {
    return !s->projected && s->steps > 1 && 4 * s->hidden * s->output * s->element <= ROWS_BYTES
           && s->batch >= ROWS_LEAST * members;
}

/* How many sums of the gradient of the biases are kept until the end: one; or, where threads may share the rows, one for each row, so
 * that the order of summation does not depend on which thread has which row. */
static inline long bias_sums(const sizes_t *s) { return by_rows(s, 2) ? s->batch : 1; }

typedef struct {
    long h, r;                          /* packed weights of one direction: recurrence, projection     */
    long dh, draw;                      /* (R blocks, B, LANES), and (H blocks, B, LANES) if projected */
    long db, biases;                    /* (bias_sums, 4H rounded up), and their row stride            */
    long direction, threads, thread, total;     /* each thread: packed rows                            */
} backward_plan_t;

static inline backward_plan_t plan_backward(const sizes_t *s, int threads, int lanes) {
    long width = blocks(s->hidden, lanes) * lanes, out = blocks(s->output, lanes) * lanes, at = 0;
    backward_plan_t p;
    p.h = at, at += single(s) ? 0 : out * 4 * s->hidden;
    p.r = at, at += s->projected ? width * s->output : 0;
    p.dh = at, at += out * s->batch;
    p.draw = at, at += s->projected ? width * s->batch : 0;
    p.biases = 4 * width;
    p.db = at = blocks(at, 32) * 32, at += bias_sums(s) * p.biases;
    p.direction = at = blocks(at, 32) * 32;
    p.threads = at * s->directions;
    p.thread = single(s) ? 0 : left_room(s, UNPACKED);
    p.total = p.threads + p.thread * threads;
    return p;
}
