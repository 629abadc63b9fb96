/* What both halves of the driver use: random numbers, buffers of exactly the size they should have, comparison. */
#pragma once
#include "kernel.h"
#include "team.h"
#include <string.h>

/* What is compared with is not what is checked: instrumented, it would take most of the time. */
#define PLAIN __attribute__((no_sanitize("address", "undefined", "thread")))

enum { ISAS = 5 };

unsigned long draw(unsigned long below);          /* in [0, below) */
long draw_size(void);                              /* 1 to 40, mostly around multiples of the vector width */
int draw_threads(void);                            /* to ask for */
void draw_team(int threads);                       /* how many of them the next call gets: all, or fewer; does it adapt? */
double *draw_numbers(long count, double scale);

/* The nearest bfloat16, the even one of two.  By way of float, as the kernel has its numbers. */
PLAIN static inline double to_bfloat16(double value) {
    float single = (float)value;
    uint32_t bits;
    memcpy(&bits, &single, 4);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
    memcpy(&single, &bits, 4);
    return single;
}

void *buffer(long count, int element);            /* every element a pattern that no result is */
void *buffer_of(const double *from, long count, int element);  /* NULL of NULL */
int untouched(const void *values, long at, int element);

/* End the process: says which case failed, and how. */
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The bits of all values that were given to `expect` since this was 0. */
extern unsigned long long bits_seen;

/* Fail unless each value is within `tolerance` times the largest of the expected ones, which is taken as at
 * least 1.  `stride` elements between the starts of `rows` rows of `columns` values; expected without gaps. */
void expect(const char *what, const void *values, int element, const double *expected, long rows, long columns, long stride,
            double tolerance);

/* Which case runs now, for the message. */
void describe(const char *format, ...) __attribute__((format(printf, 1, 2)));

void check_pace(void);
void check_layer(void);
int check_special_layers(void);                   /* returns how many */
int check_big_layers(void);
void check_denormals(void);
void check_product(void);
int check_special_products(void);
int check_big_products(void);
