/* The kernels of one instruction set and element type, as dispatch.c calls them: every thread with its own part. */
#pragma once
#include "plan.h"

typedef struct {
    int lanes, width;                   /* of a vector, and of a tile */
    void (*pack_forward)(const forward_t *, const part_t *, const forward_plan_t *);
    void (*forward)(const forward_t *, part_t *, const forward_plan_t *);
    void (*forward_in_place)(const forward_t *, part_t *, const forward_plan_t *);
    void (*pack_backward)(const backward_t *, const part_t *, const backward_plan_t *);
    void (*backward)(const backward_t *, part_t *, const backward_plan_t *);
    void (*sum_biases)(const backward_t *, const backward_plan_t *);
    void (*gemm)(const gemm_t *, int rank, int threads, flag_t *);
    void (*gemm_thin)(const gemm_t *, int rank, int threads); /* NULL of bfloat16 */
    long (*peak)(long rounds);
} kernels_t;

/* [0] float, [1] double. */
extern const kernels_t *const torchlstm_avx512[2], *const torchlstm_avx2[2], *const torchlstm_portable[2];
extern const kernels_t *const torchlstm_bfloat16[1], *const torchlstm_amx_bfloat16[1];
/* For packed weights in fewer bits, by format from IN_BFLOAT16 on, NULL where there is none; forward is all that they have. */
extern const kernels_t *const torchlstm_packed_avx512[3], *const torchlstm_packed_avx2[3], *const torchlstm_packed_portable[3];
extern const kernels_t *const torchlstm_packed_vnni[3], *const torchlstm_packed_amx[3];

/* Does the compiler know AVX512-BF16, AVX512-VNNI and AMX?  AMX is asked of Linux.  Tests of the others define WITHOUT_AMX. */
#if defined __x86_64__ && (defined __clang__ || __GNUC__ >= 10)
#define HAVE_BFLOAT16 1
#define HAVE_VNNI 1
#if defined __linux__ && !defined WITHOUT_AMX && (!defined __clang__ || __clang_major__ >= 12) && (defined __clang__ || __GNUC__ >= 11)
#define HAVE_AMX 1
#endif
#endif
