/* Vectors of LANES elements of type REAL for one instruction set ISA, in GCC/Clang vector extensions.
 *
 * This header and those beside it in template.h are one text, compiled for each kind.
 */

typedef REAL vec __attribute__((vector_size(sizeof(REAL) * LANES), aligned(sizeof(REAL)), may_alias));
typedef INTEGER ivec __attribute__((vector_size(sizeof(REAL) * LANES), aligned(sizeof(REAL)), may_alias));

/* The types of parameters: GCC 14 for Arm fails on a parameter whose type is both aligned and may_alias. */
#if defined __aarch64__
typedef REAL given __attribute__((vector_size(sizeof(REAL) * LANES)));
typedef INTEGER igiven __attribute__((vector_size(sizeof(REAL) * LANES)));
#else
typedef vec given;
typedef ivec igiven;
#endif

/* All ones in the first, or the last, n lanes. */
static const INTEGER FN(ones)[3 * LANES] = { [LANES ... 2 * LANES - 1] = -1 };
INLINE ivec FN(first_lanes)(long n) { return *(const ivec *)(FN(ones) + 2 * LANES - n); }
INLINE ivec FN(last_lanes)(long n) { return *(const ivec *)(FN(ones) + n); }

/* The first n lanes, fewer than all, and zero in the others: a masked load where there is one, else a loop out of line. */
#if defined LOAD_float
INLINE vec FN(load_part)(const REAL *p, long n) { return OF_TYPE(LOAD)(p, n); }
#else
NOINLINE vec FN(load_part)(const REAL *p, long n) {
    REAL v[LANES] = {0};
    for (long j = 0; j < n; j++) v[j] = p[j];
    return *(const vec *)v;
}
#endif
#if defined STORE_float
INLINE void FN(store_part)(REAL *p, given v, long n) { OF_TYPE(STORE)(p, v, n); }
#else
NOINLINE void FN(copy)(REAL *to, const REAL *from, long n) {
    for (long j = 0; j < n; j++) to[j] = from[j];
}
INLINE void FN(store_part)(REAL *p, given v, long n) {
    const vec all = v;
    FN(copy)(p, (const REAL *)&all, n);
}
#endif
/* n lanes; a caller that passes the constant LANES gets a plain load or store. */
INLINE vec FN(load)(const REAL *p, long n) {
    return n >= LANES ? *(const vec *)p : FN(load_part)(p, n);
}
INLINE void FN(store)(REAL *p, given v, long n) {
    if (n >= LANES) *(vec *)p = v;
    else FN(store_part)(p, v, n);
}

typedef REAL quad __attribute__((vector_size(16), aligned(sizeof(REAL)), may_alias));
typedef INTEGER iquad __attribute__((vector_size(16)));
typedef REAL half __attribute__((vector_size(32), aligned(sizeof(REAL)), may_alias)); /* of the widest */

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

/* v[j][i] becomes v[i][j], for LANES x LANES elements. */
INLINE void FN(transpose_all)(vec v[LANES]) {
    vec part[QUAD][QUADS];
    UNROLL(4)
    for (long i = 0; i < QUADS; i++) {
        vec out[QUAD];
        FN(transpose_each)(out, v + i * QUAD);
        UNROLL(4)
        for (long j = 0; j < QUAD; j++) part[j][i] = out[j];
    }
    UNROLL(4)
    for (long j = 0; j < QUAD; j++) {
        vec out[QUADS];
        FN(transpose_quads)(out, part[j]);
        UNROLL(4)
        for (long i = 0; i < QUADS; i++) v[i * QUAD + j] = out[i];
    }
}

/* The sum of a vector's quads, pair by pair. */
INLINE quad FN(sum_quads)(const given v) {
#if LANES == 4 * QUAD
    half h = ((const half *)&v)[0] + ((const half *)&v)[1];
    return ((const quad *)&h)[0] + ((const quad *)&h)[1];
#elif LANES == 2 * QUAD
    return ((const quad *)&v)[0] + ((const quad *)&v)[1];
#else
    return *(const quad *)&v;
#endif
}

/* Quads side by side as a vector, in registers: a load of a vector from where quads were just stored would stall. */
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

INLINE vec FN(pick)(igiven where, given yes, given no) {
    return (vec)((where & (ivec)yes) | (~where & (ivec)no));
}

/* min and max that give b where either is NaN, as x86 has it. */
INLINE vec FN(min)(given a, given b) { return OF_TYPE(MIN)(a, b); }
INLINE vec FN(max)(given a, given b) { return OF_TYPE(MAX)(a, b); }

/* The numbers of exp.  1 / e^EXP_TOP is a denormal, which is flushed; products of three e^EXP_SHARED stay finite.  Adding EXP_ROUND
 * rounds to an integer.  EXP_SHIFT: bits of the mantissa; EXP_ONE: the bits of 1; EXP_TERMS: the polynomial 2^f - 1,
 * highest term first. */
#define EXP_TOP OF_TYPE(EXP_TOP)
#define EXP_TOP_float 88.f
#define EXP_TOP_double 709.
#define EXP_SHARED OF_TYPE(EXP_SHARED)
#define EXP_SHARED_float 29.f
#define EXP_SHARED_double 230.
#define EXP_ROUND_float 0x1.8p23f
#define EXP_ROUND_double 0x1.8p52
#define EXP_SHIFT_float 23
#define EXP_SHIFT_double 52
#define EXP_ONE_float 0x3f800000
#define EXP_ONE_double 0x3ff0000000000000
#define EXP_TERMS_float 0.000154035122f, 0.00133907353f, 0.00961823761f, 0.0555035733f, 0.240226492f, 0.693147182f
/* ln(2)^n / n! */
#define EXP_TERMS_double 1.3691488853904128e-12, 2.5678435993488206e-11, 4.4455382718708116e-10, 7.0549116208011234e-09, \
    1.01780860092397e-07, 1.321548679014431e-06, 1.5252733804059841e-05, 0.00015403530393381609, 0.0013333558146428443, \
    0.0096181291076284769, 0.055504108664821583, 0.24022650695910072, 0.69314718055994529

/* e^(kx) + plus, where plus is -1 (to a few ulp also near 0) or 1; |kx| is clamped to `most`.  NaN stays NaN.
 * 2^f - 1 on |f| <= 1/2 is a polynomial; the integer part goes into the exponent. */
INLINE vec FN(exp)(given x, const REAL k, const REAL plus, const REAL most) {
    const REAL log2e = (REAL)1.442695040888963407, top = most / (k > 0 ? k : -k);
    x = FN(max)((vec){0} - top, FN(min)((vec){0} + top, x));
    vec t = x * (k * log2e) + OF_TYPE(EXP_ROUND), n = t - OF_TYPE(EXP_ROUND), f = x * (k * log2e) - n;
    static const REAL term[] = { OF_TYPE(EXP_TERMS) };
    const int terms = sizeof term / sizeof *term;
    vec p = (vec){0} + term[0];
    UNROLL(16)
    for (int i = 1; i < terms; i++) p = p * f + term[i];
    vec s = (vec)(((ivec)t << OF_TYPE(EXP_SHIFT)) + OF_TYPE(EXP_ONE));
    return p * (f * s) + (s + plus);
}

/* tanh x, from |x|: e = e^(2|x|) - 1 is exact to its last place where for x < 0 it would be near -1 and lose the
 * places that 1 - tanh^2 is made of. */
INLINE vec FN(tanh)(given x) {
    const ivec sign = (ivec)(-(vec){0});
    vec e = FN(exp)((vec)((ivec)x & ~sign), 2, -1, EXP_TOP);
    return (vec)((ivec)(e / (e + 2)) | ((ivec)x & sign));
}
