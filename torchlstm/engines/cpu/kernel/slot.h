/* Slots of a product: how terms of either operand are read into what the microkernel multiplies.
 *
 * K terms take SLOTS(K) slots; slot k holds the terms from k * PER_SLOT on.  A last slot that is not full is filled
 * with zeros.
 */
/* How many of K terms are in slots [k0, k1). */
INLINE long FN(terms)(long k0, long k1, long K) { return (k1 * PER_SLOT < K ? k1 * PER_SLOT : K) - k0 * PER_SLOT; }

/* multiply_add  sum + the products of the terms of two slots
 * slots, slots_vec
 *               slots k .. k + QUAD - 1, or LANES of them, of terms side by side, all of them full
 * slot, slot_quad, slot_vec
 *               slot k of K terms that lie `stride` apart: of one column, of QUAD, of n out of LANES
 * weight        the weights beside element i of a slot's left operand */
#if SLOT_HOLDS == FOUR_BYTES
/* integers.h has its own. */
#elif SLOT_HOLDS == TWO_SHORTS
#if defined WIDENS_BY_INTEGERS
typedef uint16_t FN(shorts) __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
INLINE vec FN(widen_halves)(const uint16_t *p) {
    const ivec h = __builtin_convertvector(*(const FN(shorts) *)p, ivec), low = (h & 0x7c00) == 0;
    const ivec bits = ((h & 0x7fff) << 13) + (112 << 23);
    /* Of a denormal the mantissa counts from 2^-14, as if there were a leading one. */
    const vec small = (vec)(bits + (1 << 23)) - 0x1p-14f;
    return (vec)((low & (ivec)small) | (~low & bits) | (h & 0x8000) << 16);
}
#endif
INLINE vec FN(weight)(const REAL *p, int i) { return JOIN2(WIDEN, KIND)(p, i); }
INLINE vec FN(multiply_add)(given sum, REAL a, given b) { return sum + a * b; }
INLINE quad FN(slots)(const REAL *p, long k) { return *(const quad *)(p + k); }
INLINE REAL FN(slot)(const REAL *p, long stride, long k, long K) { return k < K ? p[k * stride] : 0; }
#elif SLOT_HOLDS == ONE_TERM
INLINE vec FN(weight)(const REAL *p, int i) { (void)i; return *(const vec *)p; }
INLINE vec FN(multiply_add)(given sum, REAL a, given b) { return sum + a * b; }
INLINE quad FN(slots)(const REAL *p, long k) { return *(const quad *)(p + k); }
INLINE vec FN(slots_vec)(const REAL *p, long k) { return *(const vec *)(p + k); }
INLINE REAL FN(slot)(const REAL *p, long stride, long k, long K) { (void)K; return p[k * stride]; }
INLINE quad FN(slot_quad)(const REAL *p, long stride, long k, long K) { (void)K; return *(const quad *)(p + k * stride); }
INLINE vec FN(slot_vec)(const REAL *p, long stride, long k, long K, long n) { (void)K; return FN(load)(p + k * stride, n); }
#else
INLINE vec FN(weight)(const REAL *p, int i) { (void)i; return *(const vec *)p; }
INLINE vec FN(multiply_add)(given sum, REAL a, given b) { return MULTIPLY_ADD_PAIRS(sum, a, b); }
INLINE quad FN(slots)(const REAL *p, long k) {
    return PAIR_NEIGHBOURS(*(const quad *)(p + 2 * k), *(const quad *)(p + 2 * k + 4));
}
INLINE vec FN(slots_vec)(const REAL *p, long k) {
    quad q[QUADS];
    UNROLL(4)
    for (long i = 0; i < QUADS; i++) q[i] = FN(slots)(p, k + i * QUAD);
    return FN(join)(q);
}
INLINE REAL FN(slot)(const REAL *p, long stride, long k, long K) {
    quad first = { p[2 * k * stride] }, second = { 2 * k + 1 < K ? p[(2 * k + 1) * stride] : 0 };
    return (PAIR_QUADS(first, second))[0];
}
INLINE quad FN(slot_quad)(const REAL *p, long stride, long k, long K) {
    const REAL *next = p + (2 * k + 1) * stride;
    return PAIR_QUADS(*(const quad *)(p + 2 * k * stride), 2 * k + 1 < K ? *(const quad *)next : (quad){0});
}
INLINE vec FN(slot_vec)(const REAL *p, long stride, long k, long K, long n) {
    const REAL *next = p + (2 * k + 1) * stride;
    return PAIR_VECS(FN(load)(p + 2 * k * stride, n), 2 * k + 1 < K ? FN(load)(next, n) : (vec){0});
}
#endif
