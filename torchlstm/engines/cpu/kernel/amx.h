/* What amx.c and amx_bfloat16.c share: the shapes of the tile registers, and their release. */
#pragma once
#include "dispatch.h"
#if HAVE_AMX && !defined EMULATE_AVX512
#include <immintrin.h>
#include <stdint.h>

#define TILES __attribute__((target("amx-tile,amx-int8,amx-bf16")))

/* The shapes, as the processor reads them: of each register the bytes of a row, and its rows. */
typedef struct { uint8_t palette, start, reserved[14]; uint16_t row_bytes[16]; uint8_t rows[16]; } tile_shapes_t;

/* Which shapes this thread's registers have, a number of the including file's own; 0: they are not in use.  Loading shapes takes 100 ns, as
 * long as the products of 256 terms.  GCC 12's _tile_loadconfig tells the compiler of the first 8 bytes only: the others are written because
 * the empty assembly may read them. */
static _Thread_local long shaped_for;
#define SHAPE_TILES(number, ...)                                                                                              \
    if (shaped_for != (number)) {                                                                                             \
        const tile_shapes_t shapes_ = __VA_ARGS__;                                                                            \
        __asm__ volatile("" : : "r"(&shapes_) : "memory");                                                                    \
        _tile_loadconfig(&shapes_);                                                                                           \
        shaped_for = (number);                                                                                                \
    }

/* Gives the registers back when a call ends: as long as they are in use, every switch of threads saves them. */
TILES static void release_tiles(void) {
    if (!shaped_for) return;
    _tile_release();
    shaped_for = 0;
}
#define RELEASE_TILES() release_tiles()
#else
#define RELEASE_TILES() (void)0
#endif
