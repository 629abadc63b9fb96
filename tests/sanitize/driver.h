/* What both halves of the driver use: random numbers, buffers of exactly the size they should have, comparison. */
#pragma once
#include "kernel.h"
#include "team.h"

enum { ISAS = 5 };

unsigned long draw(unsigned long below);          /* in [0, below) */
long draw_size(void);                             /* 1 to 40, mostly around multiples of the vector width */
double *draw_numbers(long count, double scale);

void *buffer(long count, int element);            /* every element a pattern that no result is */
void *buffer_of(const double *from, long count, int element);  /* NULL of NULL */
int untouched(const void *values, long at, int element);

/* End the process unless each value is within `tolerance` times the largest of the expected ones, which is taken as at
 * least 1.  `stride` elements between the starts of `rows` rows of `columns` values; expected without gaps. */
void expect(const char *what, const void *values, int element, const double *expected, long rows, long columns, long stride,
            double tolerance);

extern char described[256];                       /* the case that runs, for the message */

void check_layer(void);
void check_layers_that_are_long(void);
void check_product(void);
