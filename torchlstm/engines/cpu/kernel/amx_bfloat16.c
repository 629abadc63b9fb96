/* The kernels for x86 with AMX: as bfloat16.c, with products by tile registers. */
#include "amx.h"
#if HAVE_AMX
#include <stdint.h>

/* Sums before and after: a row and a vector of 16 columns are `row` and `vector` elements apart. */
typedef struct { const float *at; long row, vector; } tile_from_t;
typedef struct { float *at; long row, vector; } tile_to_t;

/* 16 rows times `columns` vectors of columns, 1 to 4: to = from + a b, or a b if from.at is NULL; it may be to.at.
 *
 *   a   pairs of bfloat16: for each 16 slots (16 rows, 16 slots), for the last ones (16 rows, slots)
 *   b   pairs (slots, 16 columns): slot k of vector v at b + k * slot + v * next */
#if defined EMULATE_AVX512
/* The same on other machines, for tests. */
static float tile_term(const float *pairs, long i, int second) {
    uint32_t bits = ((const uint16_t *)pairs)[2 * i + second];
    return (union { uint32_t bits; float real; }){ bits << 16 }.real;
}
static void tile_products(long columns, const float *a, const float *b, long slots, long slot, long next, tile_from_t from,
                          tile_to_t to) {
    for (long v = 0; v < columns; v++)
        for (long r = 0; r < 16; r++)
            for (long j = 0; j < 16; j++) {
                float sum = from.at ? from.at[r * from.row + v * from.vector + j] : 0;
                for (long k = 0; k < slots; k++) {
                    const long first = k / 16 * 16, width = slots - first < 16 ? slots - first : 16;
                    const long left = first * 16 + r * width + k - first, right = k * slot + v * next + j;
                    for (int i = 0; i < 2; i++) sum += tile_term(a, left, i) * tile_term(b, right, i);
                }
                to.at[r * to.row + v * to.vector + j] = sum;
            }
}
#else
/* Registers 0 to 3 are sums; 4 and 5 rows and weights of 16 slots, 6 and 7 of the last `rest` slots. */
TILES static void shape_tiles(long rest) {
    const uint8_t n = (uint8_t)(rest ? rest : 16);
    const uint16_t width = 4 * n;
    SHAPE_TILES(n, { .palette = 1, .row_bytes = { 64, 64, 64, 64, 64, 64, width, 64 }, .rows = { 16, 16, 16, 16, 16, 16, 16, n } })
}

/* One weights' register is enough: with two or three the products are no faster. */
TILES static void tile_products(long columns, const float *a, const float *b, long slots, long slot, long next, tile_from_t from,
                                tile_to_t to) {
    const long rest = slots % 16, from_row = 4 * from.row, to_row = 4 * to.row, stride = 4 * slot;
    if (rest || !shaped_for) shape_tiles(rest);
#define EACH(columns, DO) DO(0) if (columns > 1) { DO(1) } if (columns > 2) { DO(2) } if (columns > 3) { DO(3) }
#define BEGIN(v) if (from.at) _tile_loadd(v, from.at + v * from.vector, from_row); else _tile_zero(v);
#define WHOLE(v) _tile_loadd(5, b + v * next, stride); _tile_dpbf16ps(v, 4, 5);
#define LAST(v) _tile_loadd(7, b + v * next, stride); _tile_dpbf16ps(v, 6, 7);
#define END(v) _tile_stored(v, to.at + v * to.vector, to_row);
    EACH(columns, BEGIN)
    for (; slots >= 16; slots -= 16, a += 256, b += 16 * slot) {
        _tile_loadd(4, a, 64);
        EACH(columns, WHOLE)
    }
    if (rest) {
        _tile_loadd(6, a, 4 * rest);
        EACH(columns, LAST)
    }
    EACH(columns, END)
#undef EACH
#undef BEGIN
#undef WHOLE
#undef LAST
#undef END
}
#endif

#define TILE_PRODUCTS tile_products
#define ISA amx_bfloat16
#include "bfloat16.c"
#endif
