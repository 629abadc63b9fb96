/* The kernel for x86 with AMX: as vnni.c, and more than three rows at a time by the products of its tile registers. */
#include "amx.h"
#if HAVE_AMX
#include <string.h>

/* Products of bytes: (rows, 64 blocks) by (64 blocks, 16) for each of `columns` vectors of columns.
 *
 *   rows     4 to 16
 *   columns  1 to 4
 *   a        for each block of 64 terms the upper bytes of the rows, (rows, 64), then the lower ones
 *   b        int8 (slots, 16, 4): slot k of vector v at b + k * slot + v * vector, in elements of 4 bytes
 *   sums     (2, 4, 16, 16), of which `columns` are written: of the upper and of the lower bytes, by columns, rows and lanes */
#if defined EMULATE_AVX512
/* The same on other machines, for tests. */
static void tile_products(long rows, long columns, const unsigned char *a, long blocks, const void *b, long slot, long vector,
                          int32_t sums[2][4][16][16]) {
    memset(sums, 0, 2 * sizeof *sums);
    for (long half = 0; half < 2; half++)
        for (long v = 0; v < columns; v++)
            for (long r = 0; r < rows; r++)
                for (long k = 0; k < blocks * 64; k++) {
                    const int32_t term = a[k / 64 * rows * 128 + (half * rows + r) * 64 + k % 64];
                    const signed char *w = (const signed char *)b + (k / 4 * slot + v * vector) * 4 + k % 4;
                    for (long j = 0; j < 16; j++) sums[half][v][r][j] += term * w[j * 4];
                }
}
#else
/* Registers 0 to 3 are sums, 4 and 5 both halves of the rows, 6 and 7 weights. */
TILES static void shape_tiles(long rows) {
    const uint8_t n = (uint8_t)rows;
    SHAPE_TILES(rows, { .palette = 1, .row_bytes = { 64, 64, 64, 64, 64, 64, 64, 64 }, .rows = { n, n, n, n, n, n, 16, 16 } })
}

/* Two vectors of columns, or one.  Four vectors by one half of the rows at a time is up to a tenth slower. */
TILES static void two_columns(const unsigned char *a, long rows, long blocks, const char *w, long slot, long vector,
                              int32_t upper[2][16][16], int32_t lower[2][16][16]) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (long i = 0; i < blocks; i++, a += rows * 128, w += slot * 16) {
        _tile_loadd(4, a, 64);
        _tile_loadd(6, w, slot);
        _tile_loadd(5, a + rows * 64, 64);
        _tile_loadd(7, w + vector, slot);
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 5, 6);
        _tile_dpbusd(2, 4, 7);
        _tile_dpbusd(3, 5, 7);
    }
    _tile_stored(0, upper[0], 64);
    _tile_stored(1, lower[0], 64);
    _tile_stored(2, upper[1], 64);
    _tile_stored(3, lower[1], 64);
}
TILES static void one_column(const unsigned char *a, long rows, long blocks, const char *w, long slot, int32_t upper[16][16],
                             int32_t lower[16][16]) {
    _tile_zero(0);
    _tile_zero(1);
    for (long i = 0; i < blocks; i++, a += rows * 128, w += slot * 16) {
        _tile_loadd(4, a, 64);
        _tile_loadd(6, w, slot);
        _tile_loadd(5, a + rows * 64, 64);
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 5, 6);
    }
    _tile_stored(0, upper, 64);
    _tile_stored(1, lower, 64);
}

static void tile_products(long rows, long columns, const unsigned char *a, long blocks, const void *b, long slot, long vector,
                          int32_t sums[2][4][16][16]) {
    const char *w = b;
    slot *= 4, vector *= 4;
    shape_tiles(rows);
    for (long v = 0; v < columns; v += 2, w += 2 * vector)
        if (v + 1 < columns) two_columns(a, rows, blocks, w, slot, vector, sums[0] + v, sums[1] + v);
        else one_column(a, rows, blocks, w, slot, sums[0][v], sums[1][v]);
}

#endif

#define TILE_PRODUCTS tile_products
#define ISA amx
#include "vnni.c"
#endif
