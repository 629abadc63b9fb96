/* Asks the processor, and Linux, for instructions beyond AVX2. */
#pragma once
#include <stdatomic.h>
#include "dispatch.h"

#if defined __x86_64__
/* Kinds of products of tile registers, and that they are known. */
enum { INT8_TILES = 1, BFLOAT16_TILES = 2, KNOWN = 4 };
#if HAVE_AMX && !defined EMULATE_AVX512
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
/* Linux' name for the request, and for the state component that holds the content of the tile registers. */
enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
#endif
#if defined EMULATE_AVX512
static int have_avx512(void) { return 1; }
static int have_bfloat16(void) { return 1; }
static int have_vnni(void) { return 1; }
#if HAVE_AMX
static int have_amx(int of) { return of; }
#endif
#else
static int have_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
static int have_bfloat16(void) {
#if HAVE_BFLOAT16
    return have_avx512() && __builtin_cpu_supports("avx512bf16");
#else
    return 0;
#endif
}
static int have_vnni(void) {
#if HAVE_VNNI
    return have_avx512() && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni");
#else
    return 0;
#endif
}
#if HAVE_AMX
/* Linux gives a process the tile registers only after it has asked for them.  This asks once, when they are wanted first. */
static int have_amx(int of) {
    static atomic_int known;
    int answer = atomic_load_explicit(&known, memory_order_relaxed);
    if (!answer) {
        unsigned a, b, c, d = 0;
        answer = KNOWN;
        if (__get_cpuid_count(7, 0, &a, &b, &c, &d) && d >> 24 & 1 && !syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA))
            answer |= (have_vnni() && d >> 25 & 1 ? INT8_TILES : 0) | (have_bfloat16() && d >> 22 & 1 ? BFLOAT16_TILES : 0);
        atomic_store_explicit(&known, answer, memory_order_relaxed);
    }
    return answer & of;
}
#endif
#endif
#endif
