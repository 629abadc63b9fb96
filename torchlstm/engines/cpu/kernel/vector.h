/* Vectors of LANES elements of type REAL for one instruction set ISA, in GCC/Clang vector extensions.
 *
 * This header and the ones after it (slot.h, product.h, cell.h, forward.h, backward.h, single.h, gemm.h, peak.h) are one text, included once
 * for every instruction set and element type by kernels.h; FN(name) makes the names differ.
 */

#define FN(name) JOIN3(name, REAL, ISA)
#define JOIN3(a, b, c) JOIN3_(a, b, c)
#define JOIN3_(a, b, c) a##_##b##_##c
#define vec FN(vec)
#define ivec FN(ivec)
#define quad FN(quad)
#define iquad FN(iquad)
#define INLINE TARGET static inline __attribute__((always_inline))
#define NOINLINE TARGET static __attribute__((noinline))

typedef REAL vec __attribute__((vector_size(sizeof(REAL) * LANES), aligned(sizeof(REAL)), may_alias));
typedef INTEGER ivec __attribute__((vector_size(sizeof(REAL) * LANES), aligned(sizeof(REAL)), may_alias));

/* The first n lanes, zero in the others.  Out of line: kept off the common path. */
NOINLINE vec FN(load_part)(const REAL *p, long n) {
    REAL v[LANES] = {0};
    for (long j = 0; j < n; j++) v[j] = p[j];
    return *(const vec *)v;
}
NOINLINE void FN(store_part)(REAL *p, vec v, long n) {
    for (long j = 0; j < n; j++) p[j] = v[j];
}
/* `n` lanes; a caller that passes the constant LANES gets plain vector code. */
INLINE vec FN(load)(const REAL *p, long n) {
    return n >= LANES ? *(const vec *)p : FN(load_part)(p, n);
}
INLINE void FN(store)(REAL *p, vec v, long n) {
    if (n >= LANES) *(vec *)p = v;
    else FN(store_part)(p, v, n);
}

/* out[j][r] = in[r][j], for QUAD x QUAD elements: 16 bytes a row. */
typedef REAL quad __attribute__((vector_size(16), aligned(sizeof(REAL)), may_alias));
typedef INTEGER iquad __attribute__((vector_size(16)));
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

INLINE vec FN(pick)(ivec where, vec yes, vec no) {
    return (vec)((where & (ivec)yes) | (~where & (ivec)no));
}

/* min and max that give b where either is NaN, as x86 has it. */
INLINE vec FN(min)(vec a, vec b) { return VECTOR_MIN(a, b); }
INLINE vec FN(max)(vec a, vec b) { return VECTOR_MAX(a, b); }

/* out[g * step] += the sum of the lanes of v[g], for four vectors. */
INLINE void FN(add_sums)(const vec v[4], REAL *out, long step) {
    quad part[4], turned[QUAD];
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) {
        part[g] = ((const quad *)&v[g])[0];
#pragma GCC unroll 8
        for (int i = 1; i < LANES / QUAD; i++) part[g] += ((const quad *)&v[g])[i];
    }
#pragma GCC unroll 2
    for (int g = 0; g < 4; g += QUAD) {
        FN(transpose)(turned, part + g);
#pragma GCC unroll 4
        for (int j = 1; j < QUAD; j++) turned[0] += turned[j];
#pragma GCC unroll 4
        for (int j = 0; j < QUAD; j++) out[(g + j) * step] += turned[0][j];
    }
}

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
