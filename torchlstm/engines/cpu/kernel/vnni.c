/* The kernel for x86 with AVX-512 and its VNNI: weights of int8 alone, by products of bytes.  amx.c includes it too. */
#include "dispatch.h"
#if HAVE_VNNI
#include <immintrin.h>
#if !defined ISA
#define ISA vnni
#endif
#define BYTES 64
#define COLS 4
#define DOTS 6
#define ONLY_INTEGERS
/* A word is the upper bytes of four terms, or their lower bytes.  dpbusd takes them as unsigned, so 32768 is added to each term; the
 * offset takes that out of the sum again. */
#define SUMS 2
#define MOST_SLOTS (1 << 13)
#define OFFSET(s, offset) ((s)[0] = -(offset))
#if defined EMULATE_AVX512
/* For tests on machines without AVX-512: the same text, compiled for AVX2. */
#define TARGET __attribute__((target("avx2,fma")))
#define MIN_float(a, b) FN(pick)((a) < (b), a, b)
#define MAX_float(a, b) FN(pick)((a) > (b), a, b)
#define TERM(w, i) (((w) << (24 - 8 * (i))) >> 24) * (INTEGER)(a_ >> 8 * (i) & 0xff)
#define FOUR_TERMS(a, w) ({ uint32_t a_ = (a); TERM(w, 0) + TERM(w, 1) + TERM(w, 2) + TERM(w, 3); })
#define ADD_TERMS(s, a, p)                                                                                  \
    {                                                                                                       \
        ivec w_ = *(const ivec *)(p);                                                                       \
        (s)[0] += FOUR_TERMS((a)[0], w_), (s)[1] += FOUR_TERMS((a)[1], w_);                                 \
    }
#define NEAREST(v) (ivec)((ivec)((v) + 0x1.8p23f) - (ivec)((vec){0} + 0x1.8p23f))
#define LOW_BYTES(q, to) for (int i_ = 0; i_ < LANES; i_++) ((unsigned char *)(to))[i_] = (unsigned char)(q)[i_]
#else
#define TARGET __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512vnni,fma,avx2")))
#define MIN_float(a, b) (vec)_mm512_min_ps((__m512)(a), (__m512)(b))
#define MAX_float(a, b) (vec)_mm512_max_ps((__m512)(a), (__m512)(b))
#define LOWEST(n) ((1u << (n)) - 1)
#define LOAD_float(p, n) (vec)_mm512_maskz_loadu_ps(LOWEST(n), p)
#define STORE_float(p, v, n) _mm512_mask_storeu_ps(p, LOWEST(n), (__m512)(v))
#define DOT(sum, a, w) (ivec)_mm512_dpbusd_epi32((__m512i)(sum), _mm512_set1_epi32((int)(a)), _mm512_loadu_si512(w))
#define ADD_TERMS(s, a, w) ((s)[0] = DOT((s)[0], (a)[0], w), (s)[1] = DOT((s)[1], (a)[1], w))
#define NEAREST(v) (ivec)_mm512_cvtps_epi32((__m512)(v))
#define LOW_BYTES(q, to) _mm_storeu_si128((__m128i *)(void *)(to), _mm512_cvtepi32_epi8((__m512i)(q)))
#endif
#define AS_FLOATS(s) (__builtin_convertvector((s)[0], vec) * 256 + __builtin_convertvector((s)[1], vec))
/* The upper and the lower bytes of LANES terms. */
#define UPPER_AND_LOWER(q, upper, lower)                                                                    \
    {                                                                                                       \
        const ivec moved_ = (q) + 32768, shifted_ = moved_ >> 8;                                            \
        LOW_BYTES(shifted_, upper);                                                                         \
        LOW_BYTES(moved_, lower);                                                                           \
    }
#define WORDS(q, to, step, count)                                                                           \
    {                                                                                                       \
        uint32_t upper_[4], lower_[4];                                                                      \
        UPPER_AND_LOWER(q, upper_, lower_)                                                                  \
        for (long i_ = 0; i_ < (count); i_++) (to)[i_ * (step)] = upper_[i_], (to)[i_ * (step) + 1] = lower_[i_]; \
    }
#include "isa.h"
#endif
