/* Runs the kernel on random cases and compares it with plain loops: for builds with sanitizers.
 *
 *   driver SEED LAYERS PRODUCTS THREADS [big]
 *
 * LAYERS and PRODUCTS random ones, after a fixed list of special ones or of big ones, on THREADS to MOST_THREADS threads.
 */
#include "driver.h"
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_THREADS = 4 };

static const char *seed;
static char described[256];
static int least_threads;
static unsigned long long state;
unsigned long long bits_seen;

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

int draw_threads(void) { return least_threads + (int)draw((unsigned long)(MOST_THREADS + 1 - least_threads)); }

void draw_team(int threads) {
    /* Calls that do not adapt have all their threads, however late those begin. */
    static int adapts;
    if (!draw(8)) torchlstm_adapt(adapts = !adapts);
    team_limit = threads;
    if (threads > least_threads && !draw(3)) team_limit = least_threads + (int)draw((unsigned long)(threads - least_threads));
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

void describe(const char *format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(described, sizeof described, format, values);
    va_end(values);
}

static void print_case(void) { fprintf(stderr, "seed %s, %s, given %d threads\n", seed, described, team_limit); }

void fail(const char *format, ...) {
    va_list values;
    va_start(values, format);
    print_case();
    vfprintf(stderr, format, values);
    va_end(values);
    fputc('\n', stderr);
    exit(1);
}

void expect(const char *what, const void *values, int element, const double *expected, long rows, long columns, long stride,
            double tolerance) {
    double scale = 1;
    for (long k = 0; k < rows * columns; k++) scale = fmax(scale, fabs(expected[k]));
    for (long row = 0; row < rows; row++)
        for (long column = 0; column < columns; column++) {
            long at = row * stride + column;
            const unsigned char *bytes = (const unsigned char *)values + at * element;
            for (int i = 0; i < element; i++) bits_seen = (bits_seen ^ bytes[i]) * 0x100000001b3;   /* FNV-1a */
            double found = element == 4 ? ((const float *)values)[at] : ((const double *)values)[at];
            double wanted = expected[row * columns + column];
            if (fabs(found - wanted) <= tolerance * scale) continue;    /* false of NaN */
            fail("%s[%ld, %ld] is %g, expected %g", what, row, column, found, wanted);
        }
}

/* Of the sanitizers' runtime: they end the process in their own way, which also should say what ran. */
extern __attribute__((weak)) void __sanitizer_set_death_callback(void (*)(void));

int main(int count, char **arguments) {
    int big = count == 6 && !strcmp(arguments[5], "big");
    if (count != 5 + big) return fprintf(stderr, "usage: %s SEED LAYERS PRODUCTS THREADS [big]\n", arguments[0]), 2;
    seed = arguments[1], state = strtoull(seed, NULL, 10) * 0x9e3779b97f4a7c15 + 1;
    long layers = atol(arguments[2]), products = atol(arguments[3]);
    least_threads = atoi(arguments[4]);
    if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(print_case);
    if (!big) check_pace();
    torchlstm_adapt(0);
    check_denormals();
    int special_layers = big ? check_big_layers() : check_special_layers();
    int special_products = big ? check_big_products() : check_special_products();
    for (long i = 0; i < layers; i++) check_layer();
    for (long i = 0; i < products; i++) check_product();
    printf("seed %s: %ld layers, %ld products\n", seed, layers + special_layers, products + special_products);
    return 0;
}
