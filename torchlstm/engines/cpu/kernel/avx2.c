/* The kernels for x86 with AVX2 and FMA: 16 registers of 32 bytes. */
#if defined __x86_64__
#include <immintrin.h>
#define ISA avx2
#define TARGET __attribute__((target("avx2,fma")))
#define BYTES 32
#define COLS 2
#define DOTS 3
#define MIN_float(a, b) (vec)_mm256_min_ps((__m256)(a), (__m256)(b))
#define MAX_float(a, b) (vec)_mm256_max_ps((__m256)(a), (__m256)(b))
#define MIN_double(a, b) (vec)_mm256_min_pd((__m256d)(a), (__m256d)(b))
#define MAX_double(a, b) (vec)_mm256_max_pd((__m256d)(a), (__m256d)(b))
#define LOAD_float(p, n) (vec)_mm256_maskload_ps(p, (__m256i)FN(first_lanes)(n))
#define LOAD_double(p, n) (vec)_mm256_maskload_pd(p, (__m256i)FN(first_lanes)(n))
#define PER_SLOT 1
#include "isa.h"
#endif
