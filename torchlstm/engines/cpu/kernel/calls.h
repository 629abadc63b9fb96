/* The calls from Python, every field of each once.
 *
 * From these lists come the names that Python uses, the check of every value, and the filling of kernel.h's structures.
 * torchlstm/engines/cpu/calls.py declares the same for Python; the two are compared when the extension is loaded.
 *
 *   COUNT, name, least, most       an int
 *   FLAG, name                     True or False
 *   SIZES, name                    what the call `sizes` returned
 *   WRITTEN, name, when, shape...  a contiguous tensor
 *   READ, name, when, shape...     the same, only read
 *   EACH, name, when, shape...     a tuple of D such tensors, one a direction, only read
 *   ROWS, name, shape...           a tensor written whose rows may be further apart than they are long
 *   MATRIX, name, turned, shape... a matrix with a row stride; `turned`: it may lie column by column instead
 *   SCRATCH, name, bytes           a tensor (n,) of that many bytes at least; or None if none are needed
 *   ANY, name                      a tensor of any shape and type
 *
 * `when` is ALWAYS, OPTIONAL (or None), or IF(condition): there if it holds, None if it does not.  Tensors are of one
 * element type, and shapes are in the letters of kernel.h.  `call` is the structure filled so far.
 */
#define SIZES(X)                                                        \
    X(COUNT, isa, PORTABLE, BFLOAT16)                                   \
    X(COUNT, threads, 1, MOST_THREADS)                                  \
    X(COUNT, element, 4, 8) /* bytes: 4 or 8 */                         \
    X(COUNT, steps, 1, MOST)                                            \
    X(COUNT, batch, 1, MOST)                                            \
    X(COUNT, input, 1, MOST)                                            \
    X(COUNT, hidden, 1, MOST)                                           \
    X(COUNT, output, 1, MOST)                                           \
    X(COUNT, directions, 1, 2)                                          \
    X(FLAG, projected)                                                  \
    X(FLAG, reverse)                                                    \
    X(READ, batch_sizes, OPTIONAL, steps) /* int64, never rising */

#define FORWARD_SCRATCH(X) X(SIZES, sizes)
#define FORWARD(X)                                                      \
    X(SIZES, sizes)                                                     \
    X(WRITTEN, y, ALWAYS, P, D * R)                                     \
    X(WRITTEN, h_n, ALWAYS, D, B, R)                                    \
    X(WRITTEN, c_n, ALWAYS, D, B, H)                                    \
    X(WRITTEN, gates, OPTIONAL, D, P, 4 * H)                            \
    X(WRITTEN, cells, IF(call.gates), D, P, H)                          \
    X(READ, x, ALWAYS, P, I)                                            \
    X(READ, h_0, ALWAYS, D, B, R)                                       \
    X(READ, c_0, ALWAYS, D, B, H)                                       \
    X(EACH, w_ih, ALWAYS, 4 * H, I)                                     \
    X(EACH, w_hh, ALWAYS, 4 * H, R)                                     \
    X(EACH, b_ih, OPTIONAL, 4 * H)                                      \
    X(EACH, b_hh, OPTIONAL, 4 * H)                                      \
    X(EACH, w_hr, IF(call.sizes.projected), R, H)                       \
    X(SCRATCH, scratch, torchlstm_forward_scratch(&call, layer->threads, layer->isa))

/* Steps are numbered in the order of the backward pass: kernel.h's [from, to) is [first, end) here. */
#define BACKWARD_SCRATCH(X) X(SIZES, sizes)
#define BACKWARD(X)                                                     \
    X(SIZES, sizes)                                                     \
    X(COUNT, first, 0, T - 1)                                           \
    X(COUNT, end, first + 1, T)                                         \
    X(ROWS, dgates, D, room, 4 * H)                                     \
    X(WRITTEN, before, OPTIONAL, D, room, R)                            \
    X(WRITTEN, dh, IF(call.sizes.projected), D, room, R)                \
    X(WRITTEN, raw, IF(call.sizes.projected), D, room, H)               \
    X(WRITTEN, dh_0, IF(!single(&call.sizes)), D, B, R)                 \
    X(WRITTEN, dc_0, ALWAYS, D, B, H)                                   \
    X(WRITTEN, db, ALWAYS, D, 4 * H)                                    \
    X(READ, gates, ALWAYS, D, P, 4 * H)                                 \
    X(READ, cells, ALWAYS, D, P, H)                                     \
    X(READ, y, IF(call.sizes.projected), P, D * R)                      \
    X(READ, h_0, ALWAYS, D, B, R)                                       \
    X(READ, c_0, ALWAYS, D, B, H)                                       \
    X(READ, dy, OPTIONAL, P, D * R)                                     \
    X(READ, dh_n, OPTIONAL, D, B, R)                                    \
    X(READ, dc_n, OPTIONAL, D, B, H)                                    \
    X(READ, dacts, OPTIONAL, D, P, 4 * H)                               \
    X(READ, dcells, OPTIONAL, D, P, H)                                  \
    X(EACH, w_hh, ALWAYS, 4 * H, R)                                     \
    X(EACH, w_hr, IF(call.sizes.projected), R, H)                       \
    X(SCRATCH, scratch, torchlstm_backward_scratch(&call, layer->threads, layer->isa))

#define GEMM_SCRATCH(X)                                                 \
    X(COUNT, isa, PORTABLE, BFLOAT16)                                   \
    X(COUNT, threads, 1, MOST_THREADS)                                  \
    X(MATRIX, out, 0, M, N)                                             \
    X(MATRIX, left, 1, M, K)                                            \
    X(MATRIX, right, 0, K, N)
#define GEMM_REST(X)                                                    \
    X(FLAG, add)                                                        \
    X(SCRATCH, scratch, product_scratch(&call, threads, isa))
#define GEMM(X) GEMM_SCRATCH(X) GEMM_REST(X)

#define PEAK(X)                                                         \
    X(COUNT, isa, PORTABLE, BFLOAT16)                                   \
    X(COUNT, threads, 1, MOST_THREADS)                                  \
    X(COUNT, element, 4, 8) /* bytes: 4 or 8 */                         \
    X(COUNT, rounds, 1, MOST)

#define READABLE(X)                                                     \
    X(ANY, matrix)                                                      \
    X(FLAG, turned)
#define HUGE_PAGES(X) X(ANY, tensor)
#define ISA(X) X(COUNT, wanted, PORTABLE, BFLOAT16)

/* Each call: its name in Python, and its fields. */
#define CALLS(X)                                                        \
    X(sizes, SIZES)                                                     \
    X(forward_scratch, FORWARD_SCRATCH)                                 \
    X(forward, FORWARD)                                                 \
    X(backward_scratch, BACKWARD_SCRATCH)                               \
    X(backward, BACKWARD)                                               \
    X(gemm_scratch, GEMM_SCRATCH)                                       \
    X(gemm, GEMM)                                                       \
    X(peak, PEAK)                                                       \
    X(readable, READABLE)                                               \
    X(huge, HUGE_PAGES)                                                 \
    X(isa, ISA)
