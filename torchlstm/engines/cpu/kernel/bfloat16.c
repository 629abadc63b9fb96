/* The kernels for x86 with AVX512-BF16: float, but operands of products are rounded to bfloat16; sums are float.  amx_bfloat16.c includes it
 * too. */
#include "dispatch.h"
#if HAVE_BFLOAT16
#include <immintrin.h>
#if !defined ISA
#define ISA bfloat16
#endif
#define BYTES 64
#define COLS 4
#define DOTS 6
#if defined EMULATE_AVX512
/* For tests on machines without AVX-512: the same text, compiled for AVX2. */
#define TARGET __attribute__((target("avx2,fma")))
#define MIN_float(a, b) FN(pick)((a) < (b), a, b)
#define MAX_float(a, b) FN(pick)((a) > (b), a, b)
typedef uint32_t quad_bits __attribute__((vector_size(16)));
typedef uint32_t vec_bits __attribute__((vector_size(BYTES)));
/* In the upper half of 32 bits the nearest bfloat16, the even one of two; NaN stays NaN. */
#define ROUNDED(type, a)                                                                  \
    ({                                                                                    \
        type u_ = (type)(a), nan_ = (type)((u_ & 0x7fffffff) > 0x7f800000);               \
        (nan_ & (u_ | 0x400000)) | (~nan_ & (u_ + 0x7fff + ((u_ >> 16) & 1)));            \
    })
#define PAIR(type, a, b) ((ROUNDED(type, a) >> 16) | (ROUNDED(type, b) & 0xffff0000))
#define PAIR_NEIGHBOURS(a, b) (quad)PAIR(quad_bits, SHUFFLE(a, b, 0, 2, 4, 6), SHUFFLE(a, b, 1, 3, 5, 7))
#define PAIR_QUADS(a, b) (quad)PAIR(quad_bits, a, b)
#define PAIR_VECS(a, b) (vec)PAIR(vec_bits, a, b)
#define PAIR_TERMS(a, b) \
    (vec)PAIR(vec_bits, SHUFFLE_VECS(ivec, a, b, EVENS), SHUFFLE_VECS(ivec, a, b, ODDS))
#define EVENS 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODDS 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define FIRST(a) (vec)((vec_bits)(a) << 16)
#define SECOND(a) (vec)((vec_bits)(a) & 0xffff0000)
/* A pair is broadcast as an integer: as a float it may be a denormal, which would be flushed. */
#define SPREAD(a) ((vec_bits){0} + (union { float real; uint32_t bits; }){ a }.bits)
#define MULTIPLY_ADD_PAIRS(sum, a, b) \
    ((sum) + FIRST(SPREAD(a)) * FIRST(b) + SECOND(SPREAD(a)) * SECOND(b))
#else
#define TARGET __attribute__((target("avx512f,avx512dq,avx512vl,avx512bf16,fma,avx2")))
#define MIN_float(a, b) (vec)_mm512_min_ps((__m512)(a), (__m512)(b))
#define MAX_float(a, b) (vec)_mm512_max_ps((__m512)(a), (__m512)(b))
#define LOWEST(n) ((1u << (n)) - 1)
#define LOAD_float(p, n) (vec)_mm512_maskz_loadu_ps(LOWEST(n), p)
#define STORE_float(p, v, n) _mm512_mask_storeu_ps(p, LOWEST(n), (__m512)(v))
#define PAIR_NEIGHBOURS(a, b) (quad)_mm_cvtne2ps_pbh((__m128)(b), (__m128)(a))
#define PAIR_QUADS(a, b)                                                                  \
    ({                                                                                    \
        __m128i ab_ = (__m128i)_mm_cvtne2ps_pbh((__m128)(b), (__m128)(a));                \
        (quad)_mm_unpacklo_epi16(ab_, _mm_srli_si128(ab_, 8));                            \
    })
#define PAIR_TERMS(a, b) (vec)_mm512_cvtne2ps_pbh((__m512)(b), (__m512)(a))
#define WIDENED(a) _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)(a)))
#define PAIR_VECS(a, b) (vec)_mm512_or_si512(WIDENED(a), _mm512_slli_epi32(WIDENED(b), 16))
#define MULTIPLY_ADD_PAIRS(sum, a, b) \
    (vec)_mm512_dpbf16_ps((__m512)(sum), (__m512bh)_mm512_set1_ps(a), (__m512bh)(b))
#endif
#include "isa.h"
#endif
