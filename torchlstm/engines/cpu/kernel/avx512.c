/* The kernels for x86 with AVX-512: 32 registers of 64 bytes. */
#if defined __x86_64__
#include <immintrin.h>
#define ISA avx512
#define BYTES 64
#define COLS 4
#define DOTS 6
#if defined EMULATE_AVX512
/* For tests on machines without AVX-512: the same text, compiled for AVX2. */
#define TARGET __attribute__((target("avx2,fma")))
#define MIN_float(a, b) FN(pick)((a) < (b), a, b)
#define MAX_float(a, b) FN(pick)((a) > (b), a, b)
#define MIN_double(a, b) FN(pick)((a) < (b), a, b)
#define MAX_double(a, b) FN(pick)((a) > (b), a, b)
#else
#define TARGET __attribute__((target("avx512f,avx512dq,avx512vl,fma,avx2")))
#define MIN_float(a, b) (vec)_mm512_min_ps((__m512)(a), (__m512)(b))
#define MAX_float(a, b) (vec)_mm512_max_ps((__m512)(a), (__m512)(b))
#define MIN_double(a, b) (vec)_mm512_min_pd((__m512d)(a), (__m512d)(b))
#define MAX_double(a, b) (vec)_mm512_max_pd((__m512d)(a), (__m512d)(b))
#define LOWEST(n) ((1u << (n)) - 1)
#define LOAD_float(p, n) (vec)_mm512_maskz_loadu_ps(LOWEST(n), p)
#define STORE_float(p, v, n) _mm512_mask_storeu_ps(p, LOWEST(n), (__m512)(v))
#define LOAD_double(p, n) (vec)_mm512_maskz_loadu_pd(LOWEST(n), p)
#define STORE_double(p, v, n) _mm512_mask_storeu_pd(p, LOWEST(n), (__m512d)(v))
#endif
#if !defined EMULATE_AVX512
#define WIDEN_HALVES(p) (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p)))
#endif
#include "isa.h"
#endif
