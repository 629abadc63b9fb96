/* The kernels for x86 with AVX2 and FMA: 16 registers of 32 bytes. */
#if defined __x86_64__
#include <immintrin.h>
#define ISA avx2
#define TARGET __attribute__((target("avx2,fma,f16c")))
#define BYTES 32
#define COLS 2
#define DOTS 3
#define MIN_float(a, b) (vec)_mm256_min_ps((__m256)(a), (__m256)(b))
#define MAX_float(a, b) (vec)_mm256_max_ps((__m256)(a), (__m256)(b))
#define MIN_double(a, b) (vec)_mm256_min_pd((__m256d)(a), (__m256d)(b))
#define MAX_double(a, b) (vec)_mm256_max_pd((__m256d)(a), (__m256d)(b))
#define LOAD_float(p, n) (vec)_mm256_maskload_ps(p, (__m256i)FN(first_lanes)(n))
#define LOAD_double(p, n) (vec)_mm256_maskload_pd(p, (__m256i)FN(first_lanes)(n))
#define WIDEN_HALVES(p) (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p)))
/* Pairs of 16 bits: a word is two terms. */
#define SUMS 1
#define MOST_SLOTS 128
#define OFFSET(s, offset) (void)(offset)
#define WIDE(p, half) _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(p) + (half)))
#define PAIRS(a, w) (ivec)_mm256_madd_epi16(_mm256_set1_epi32((int)(a)), w)
#define ADD_TERMS(s, a, w) ((s)[0] += PAIRS((a)[0], WIDE(w, 0)), (s)[0] += PAIRS((a)[1], WIDE(w, 1)))
#define AS_FLOATS(s) (vec)_mm256_cvtepi32_ps((__m256i)(s)[0])
#define NEAREST(v) (ivec)_mm256_cvtps_epi32((__m256)(v))
#define WORD(q, i) ((uint32_t)(q)[i] & 0xffff) | (uint32_t)(q)[(i) + 1] << 16
#define WORDS(q, to, step, count) \
    for (long i_ = 0; i_ < (count); i_++) (to)[i_ * (step)] = WORD(q, 4 * i_), (to)[i_ * (step) + 1] = WORD(q, 4 * i_ + 2)
#include "isa.h"
#endif
