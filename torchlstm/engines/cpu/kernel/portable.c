/* The kernels in plain C vectors of 16 bytes: SSE2, NEON, or whatever the compiler makes of them. */
#define ISA portable
#define TARGET
#define BYTES 16
#if defined __aarch64__
#define COLS 4
#define DOTS 6
#if !defined __clang__
/* A tile is 24 sums, 4 vectors of columns and one element in 32 registers.  GCC's first scheduling pass would load elements early and
 * spill sums. */
#pragma GCC optimize "no-schedule-insns"
#endif
#else
#define COLS 2
#define DOTS 3
#endif
#define MIN_float(a, b) FN(pick)((a) < (b), a, b)
#define MAX_float(a, b) FN(pick)((a) > (b), a, b)
#define MIN_double(a, b) FN(pick)((a) < (b), a, b)
#define MAX_double(a, b) FN(pick)((a) > (b), a, b)
#if defined __SSE2__
#include <emmintrin.h>
/* Pairs of 16 bits: a word is terms 0 and 2, or terms 1 and 3, of the four. */
#define SUMS 1
#define MOST_SLOTS 128
#define OFFSET(s, offset) (void)(offset)
#define EVEN_TERMS(w) _mm_srai_epi16(_mm_slli_epi16(w, 8), 8)
#define ODD_TERMS(w) _mm_srai_epi16(w, 8)
#define PAIRS(a, w) (ivec)_mm_madd_epi16(_mm_set1_epi32((int)(a)), w)
#define ADD_TERMS(s, a, p)                                              \
    {                                                                   \
        __m128i w_ = _mm_loadu_si128((const __m128i *)(p));             \
        (s)[0] += PAIRS((a)[0], EVEN_TERMS(w_)), (s)[0] += PAIRS((a)[1], ODD_TERMS(w_)); \
    }
#define NEAREST(v) (ivec)_mm_cvtps_epi32((__m128)(v))
#define WORD(q, i) ((uint32_t)(q)[i] & 0xffff) | (uint32_t)(q)[(i) + 2] << 16
#define AS_FLOATS(s) (vec)_mm_cvtepi32_ps((__m128i)(s)[0])
#elif defined __ARM_FEATURE_DOTPROD
#include <arm_neon.h>
/* Bytes: a word is the upper bytes of four terms, or their lower bytes less 128. */
#define SUMS 2
#define MOST_SLOTS (1 << 14)
#define OFFSET(s, offset) ((s)[1] = (offset))
#define TERMS(p) vreinterpretq_s8_s32(vld1q_s32((const int32_t *)(const void *)(p)))
#define ADD_TERMS(s, a, w)                                                                                  \
    ((s)[0] = (ivec)vdotq_s32((int32x4_t)(s)[0], TERMS(w), vreinterpretq_s8_u32(vdupq_n_u32((a)[0]))),      \
     (s)[1] = (ivec)vdotq_s32((int32x4_t)(s)[1], TERMS(w), vreinterpretq_s8_u32(vdupq_n_u32((a)[1]))))
#define AS_FLOATS(s) ((vec)vcvtq_f32_s32((int32x4_t)(s)[0]) * 256 + (vec)vcvtq_f32_s32((int32x4_t)(s)[1]))
#define NEAREST(v) (ivec)vcvtnq_s32_f32((float32x4_t)(v))
#define UPPER(q, i) ((uint32_t)((q)[i] >> 8) & 0xff)
#define LOWER(q, i) ((uint32_t)(((q)[i] & 0xff) - 128) & 0xff)
#define FOUR(half, q) (half(q, 0) | half(q, 1) << 8 | half(q, 2) << 16 | half(q, 3) << 24)
#else
/* Terms one by one. */
#define SUMS 1
#define MOST_SLOTS 128
#define OFFSET(s, offset) (void)(offset)
#define TERM(w, i) (((w) << (24 - 8 * (i))) >> 24)
#define FACTOR(a, i) (int16_t)((a)[(i) % 2] >> (i) / 2 * 16)
#define ADD_TERMS(s, a, p)                                                                                  \
    {                                                                                                       \
        ivec w_ = *(const ivec *)(p);                                                                       \
        (s)[0] += TERM(w_, 0) * FACTOR(a, 0) + TERM(w_, 1) * FACTOR(a, 1);                                  \
        (s)[0] += TERM(w_, 2) * FACTOR(a, 2) + TERM(w_, 3) * FACTOR(a, 3);                                  \
    }
#define WORD(q, i) ((uint32_t)(q)[i] & 0xffff) | (uint32_t)(q)[(i) + 2] << 16
#define AS_FLOATS(s) __builtin_convertvector((s)[0], vec)
#if defined __aarch64__
#include <arm_neon.h>
#define NEAREST(v) (ivec)vcvtnq_s32_f32((float32x4_t)(v))
#else
/* In floats of this size the last place is 1: the addition rounds. */
#define NEAREST(v) (ivec)((ivec)((v) + 0x1.8p23f) - (ivec)((vec){0} + 0x1.8p23f))
#endif
#endif
/* The vector q is one slot. */
#if SUMS == 2
#define WORDS(q, to, step, count) ((void)(count), (to)[0] = FOUR(UPPER, q), (to)[1] = FOUR(LOWER, q))
#else
#define WORDS(q, to, step, count) ((void)(count), (to)[0] = WORD(q, 0), (to)[1] = WORD(q, 1))
#endif
#include "isa.h"
