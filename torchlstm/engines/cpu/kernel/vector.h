/* Vectors of LANES elements of type REAL for one instruction set ISA, in GCC/Clang vector extensions.
 *
 * This header and the ones after it (slot.h, product.h, cell.h, forward.h, backward.h, in_place.h, gemm.h, peak.h) are one text, included once
 * for every instruction set and element type by kernels.h, and but for the last ones for every format of packed weights by formats.h;
 * FN(name) makes the names differ.
 */

#define FN(name) JOIN3(name, KIND, ISA)
#define JOIN3(a, b, c) JOIN3_(a, b, c)
#define JOIN3_(a, b, c) a##_##b##_##c
#define vec FN(vec)
#define ivec FN(ivec)
#define quad FN(quad)
#define half FN(half)
#define iquad FN(iquad)
#define INLINE TARGET static inline __attribute__((always_inline))
#define NOINLINE TARGET static __attribute__((noinline, unused))

typedef REAL vec __attribute__((vector_size(sizeof(REAL) * LANES), aligned(sizeof(REAL)), may_alias));
typedef INTEGER ivec __attribute__((vector_size(sizeof(REAL) * LANES), aligned(sizeof(REAL)), may_alias));

/* All ones in the first, or the last, n lanes. */
static const INTEGER FN(ones)[3 * LANES] = { [LANES ... 2 * LANES - 1] = -1 };
INLINE ivec FN(first_lanes)(long n) { return *(const ivec *)(FN(ones) + 2 * LANES - n); }
INLINE ivec FN(last_lanes)(long n) { return *(const ivec *)(FN(ones) + n); }

/* The first n lanes, fewer than all, zero in the others: one instruction where there is one, or a loop out of line. */
#if defined LOAD_FIRST
INLINE vec FN(load_part)(const REAL *p, long n) { return LOAD_FIRST(p, n); }
#else
NOINLINE vec FN(load_part)(const REAL *p, long n) {
    REAL v[LANES] = {0};
    for (long j = 0; j < n; j++) v[j] = p[j];
    return *(const vec *)v;
}
#endif
#if defined STORE_FIRST
INLINE void FN(store_part)(REAL *p, vec v, long n) { STORE_FIRST(p, v, n); }
#else
NOINLINE void FN(store_part)(REAL *p, vec v, long n) {
    for (long j = 0; j < n; j++) p[j] = v[j];
}
#endif
/* `n` lanes; a caller that passes the constant LANES gets plain vector code. */
INLINE vec FN(load)(const REAL *p, long n) {
    return n >= LANES ? *(const vec *)p : FN(load_part)(p, n);
}
INLINE void FN(store)(REAL *p, vec v, long n) {
    if (n >= LANES) *(vec *)p = v;
    else FN(store_part)(p, v, n);
}

typedef REAL quad __attribute__((vector_size(16), aligned(sizeof(REAL)), may_alias));
typedef INTEGER iquad __attribute__((vector_size(16)));
typedef REAL half __attribute__((vector_size(32), aligned(sizeof(REAL)), may_alias)); /* of the widest */

/* A vector is QUADS quads.  SHUFFLE_EACH: the same shuffle of each quad of a with the quad of b beside it, whose elements
 * are numbered from QUAD on.  QUAD_OF: the elements of a quad. */
#define QUADS (LANES / QUAD)
#define IN_QUAD(q, i) ((i) % QUAD + (q) * QUAD + (i) / QUAD * LANES)
#if QUAD == 4
#define ONE_QUAD(q, a, b, c, d) IN_QUAD(q, a), IN_QUAD(q, b), IN_QUAD(q, c), IN_QUAD(q, d)
#define QUAD_OF(q) (q) * 4, (q) * 4 + 1, (q) * 4 + 2, (q) * 4 + 3
#else
#define ONE_QUAD(q, a, b) IN_QUAD(q, a), IN_QUAD(q, b)
#define QUAD_OF(q) (q) * 2, (q) * 2 + 1
#endif
#if LANES == QUAD
#define EACH_QUAD(...) ONE_QUAD(0, __VA_ARGS__)
#elif LANES == 2 * QUAD
#define EACH_QUAD(...) ONE_QUAD(0, __VA_ARGS__), ONE_QUAD(1, __VA_ARGS__)
#else
#define EACH_QUAD(...) ONE_QUAD(0, __VA_ARGS__), ONE_QUAD(1, __VA_ARGS__), ONE_QUAD(2, __VA_ARGS__), ONE_QUAD(3, __VA_ARGS__)
#endif
#define SHUFFLE_EACH(a, b, ...) SHUFFLE_VECS(ivec, a, b, EACH_QUAD(__VA_ARGS__))

/* out[j][r] = in[r][j] for QUAD x QUAD elements, 16 bytes a row; and the same in each quad of vectors. */
INLINE void FN(transpose)(quad out[QUAD], const quad in[QUAD]) {
    quad a = in[0], b = in[1];
#if QUAD == 4
    quad c = in[2], d = in[3];
    quad ab = SHUFFLE(a, b, 0, 4, 1, 5), cd = SHUFFLE(c, d, 0, 4, 1, 5);
    out[0] = SHUFFLE(ab, cd, 0, 1, 4, 5), out[1] = SHUFFLE(ab, cd, 2, 3, 6, 7);
    ab = SHUFFLE(a, b, 2, 6, 3, 7), cd = SHUFFLE(c, d, 2, 6, 3, 7);
    out[2] = SHUFFLE(ab, cd, 0, 1, 4, 5), out[3] = SHUFFLE(ab, cd, 2, 3, 6, 7);
#else
    out[0] = SHUFFLE(a, b, 0, 2), out[1] = SHUFFLE(a, b, 1, 3);
#endif
}
INLINE void FN(transpose_each)(vec out[QUAD], const vec in[QUAD]) {
    vec a = in[0], b = in[1];
#if QUAD == 4
    vec c = in[2], d = in[3];
    vec ab = SHUFFLE_EACH(a, b, 0, 4, 1, 5), cd = SHUFFLE_EACH(c, d, 0, 4, 1, 5);
    out[0] = SHUFFLE_EACH(ab, cd, 0, 1, 4, 5), out[1] = SHUFFLE_EACH(ab, cd, 2, 3, 6, 7);
    ab = SHUFFLE_EACH(a, b, 2, 6, 3, 7), cd = SHUFFLE_EACH(c, d, 2, 6, 3, 7);
    out[2] = SHUFFLE_EACH(ab, cd, 0, 1, 4, 5), out[3] = SHUFFLE_EACH(ab, cd, 2, 3, 6, 7);
#else
    out[0] = SHUFFLE_EACH(a, b, 0, 2), out[1] = SHUFFLE_EACH(a, b, 1, 3);
#endif
}

/* Quad j of out[r] = quad r of in[j], for QUADS x QUADS quads. */
INLINE void FN(transpose_quads)(vec out[QUADS], const vec in[QUADS]) {
    vec a = in[0];
#if LANES == QUAD
    out[0] = a;
#elif LANES == 2 * QUAD
    vec b = in[1];
    out[0] = SHUFFLE_VECS(ivec, a, b, QUAD_OF(0), QUAD_OF(2)), out[1] = SHUFFLE_VECS(ivec, a, b, QUAD_OF(1), QUAD_OF(3));
#else
#define EVEN(a, b) SHUFFLE_VECS(ivec, a, b, QUAD_OF(0), QUAD_OF(2), QUAD_OF(4), QUAD_OF(6))
#define ODD(a, b) SHUFFLE_VECS(ivec, a, b, QUAD_OF(1), QUAD_OF(3), QUAD_OF(5), QUAD_OF(7))
    vec b = in[1], c = in[2], d = in[3];
    vec ab = EVEN(a, b), cd = EVEN(c, d);
    out[0] = EVEN(ab, cd), out[2] = ODD(ab, cd);
    ab = ODD(a, b), cd = ODD(c, d);
    out[1] = EVEN(ab, cd), out[3] = ODD(ab, cd);
#undef EVEN
#undef ODD
#endif
}

/* The sum of a vector's quads, pair by pair. */
INLINE quad FN(sum_quads)(const vec v) {
#if LANES == 4 * QUAD
    half h = ((const half *)&v)[0] + ((const half *)&v)[1];
    return ((const quad *)&h)[0] + ((const quad *)&h)[1];
#elif LANES == 2 * QUAD
    return ((const quad *)&v)[0] + ((const quad *)&v)[1];
#else
    return *(const quad *)&v;
#endif
}

/* Quads side by side as a vector: in registers, since a vector that is loaded from where quads were just stored waits. */
INLINE vec FN(join)(const quad q[LANES / QUAD]) {
#if LANES == QUAD
    return *(const vec *)q;
#elif defined __clang__ || __GNUC__ >= 12
#if QUAD == 4
    half low = __builtin_shufflevector(q[0], q[1], 0, 1, 2, 3, 4, 5, 6, 7);
#else
    half low = __builtin_shufflevector(q[0], q[1], 0, 1, 2, 3);
#endif
#if LANES == 2 * QUAD
    return (vec)low;
#elif QUAD == 4
    half high = __builtin_shufflevector(q[2], q[3], 0, 1, 2, 3, 4, 5, 6, 7);
    return (vec)__builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#else
    half high = __builtin_shufflevector(q[2], q[3], 0, 1, 2, 3);
    return (vec)__builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
#endif
#else
    return *(const vec *)q;
#endif
}

INLINE vec FN(pick)(ivec where, vec yes, vec no) {
    return (vec)((where & (ivec)yes) | (~where & (ivec)no));
}

/* min and max that give b where either is NaN, as x86 has it. */
INLINE vec FN(min)(vec a, vec b) { return VECTOR_MIN(a, b); }
INLINE vec FN(max)(vec a, vec b) { return VECTOR_MAX(a, b); }

/* e^(kx) + plus, where plus is -1 (to a few ulp also near 0) or 1; |kx| is clamped to `most`.  NaN stays NaN.
 * 2^f - 1 on |f| <= 1/2 is a polynomial; the integer part goes into the exponent. */
INLINE vec FN(exp)(vec x, const REAL k, const REAL plus, const REAL most) {
    const REAL log2e = (REAL)1.442695040888963407, top = most / (k > 0 ? k : -k);
    x = FN(max)((vec){0} - top, FN(min)((vec){0} + top, x));
    vec t = x * (k * log2e) + EXP_ROUND, n = t - EXP_ROUND, f = x * (k * log2e) - n;
    static const REAL term[] = { EXP_TERMS };
    const int terms = sizeof term / sizeof *term;
    vec p = (vec){0} + term[0];
#pragma GCC unroll 16
    for (int i = 1; i < terms; i++) p = p * f + term[i];
    vec s = (vec)(((ivec)t << EXP_SHIFT) + EXP_ONE);
    return p * (f * s) + (s + plus);
}

/* tanh x, from |x|: e = e^(2|x|) - 1 is exact to its last place where for x < 0 it would be near -1 and lose the
 * places that 1 - tanh^2 is made of. */
INLINE vec FN(tanh)(vec x) {
    const ivec sign = (ivec)(-(vec){0});
    vec e = FN(exp)((vec)((ivec)x & ~sign), 2, -1, EXP_TOP);
    return (vec)((ivec)(e / (e + 2)) | ((ivec)x & sign));
}
