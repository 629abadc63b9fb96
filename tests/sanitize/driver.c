/* Runs the kernel on random cases and compares it with plain loops: for builds with sanitizers.
 *
 *   driver SEED LAYERS PRODUCTS
 */
#include "driver.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

char described[256];

static unsigned long long state;

unsigned long draw(unsigned long below) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;    /* xorshift64 (Marsaglia, 2003) */
    return (unsigned long)(state >> 11) % below;
}

long draw_size(void) {
    static const long edges[] = { 1, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33 };
    return draw(4) ? edges[draw(sizeof edges / sizeof *edges)] : 1 + (long)draw(40);
}

double *draw_numbers(long count, double scale) {
    double *numbers = malloc((size_t)count * sizeof *numbers);
    for (long k = 0; k < count; k++) numbers[k] = scale * ((double)draw(2000001) / 1e6 - 1);
    return numbers;
}

void *buffer(long count, int element) {
    size_t bytes = (size_t)count * (size_t)element;
    void *values = malloc(bytes);
    memset(values, 0xff, bytes);                                        /* a NaN, as float and as double */
    return values;
}

void *buffer_of(const double *from, long count, int element) {
    if (!from) return NULL;
    void *values = buffer(count, element);
    for (long k = 0; k < count; k++)
        if (element == 4) ((float *)values)[k] = (float)from[k];
        else ((double *)values)[k] = from[k];
    return values;
}

int untouched(const void *values, long at, int element) {
    static const unsigned char pattern[8] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
    return !memcmp((const char *)values + at * element, pattern, (size_t)element);
}

void expect(const char *what, const void *values, int element, const double *expected, long rows, long columns, long stride,
            double tolerance) {
    double scale = 1;
    for (long k = 0; k < rows * columns; k++) scale = fmax(scale, fabs(expected[k]));
    for (long row = 0; row < rows; row++)
        for (long column = 0; column < columns; column++) {
            long at = row * stride + column;
            double found = element == 4 ? ((const float *)values)[at] : ((const double *)values)[at];
            double wanted = expected[row * columns + column];
            if (fabs(found - wanted) <= tolerance * scale) continue;    /* false of NaN */
            fprintf(stderr, "%s: %s[%ld, %ld] is %g, expected %g\n", described, what, row, column, found, wanted);
            exit(1);
        }
}

int main(int count, char **arguments) {
    if (count != 4) return fprintf(stderr, "usage: %s SEED LAYERS PRODUCTS\n", arguments[0]), 2;
    state = strtoull(arguments[1], NULL, 10) * 0x9e3779b97f4a7c15 + 1;
    long layers = atol(arguments[2]), products = atol(arguments[3]);
    check_layers_that_are_long();
    for (long i = 0; i < layers; i++) check_layer();
    for (long i = 0; i < products; i++) check_product();
    printf("seed %s: %ld layers, %ld products\n", arguments[1], layers, products);
    return 0;
}
