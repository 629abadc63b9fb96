/* From the lists of calls.h: the descriptions of calls, and macros that read their fields into variables and structures. */
#pragma once
#include "read.h"
#include "calls.h"

/* No count that means anything is larger; products of two of them fit an int64_t. */
#define MOST (INT64_C(1) << 31)
#define MOST_THREADS INT32_MAX

/* Of each call: how many fields, what they are, and a description. */
#define ONE(kind, name, ...) +1
#define TEXT(kind, name, ...) { #name, #kind, #__VA_ARGS__ },
#define DESCRIBE(call, LIST)                                            \
    enum { call##_count = 0 LIST(ONE) };                                \
    static const field_t call##_fields[] = { LIST(TEXT) };              \
    static PyObject *call##_names[call##_count];                        \
    static const call_t call##_call = { #call, call##_count, call##_fields, call##_names };
CALLS(DESCRIBE)

/* Begins a method: the values in the order of the list, at AT_name. */
#define PLACE(kind, name, ...) AT_##name,
#define BEGIN(call_name, LIST)                                                          \
    enum { LIST(PLACE) };                                                               \
    PyObject *given[call_name##_count] = { 0 };                                         \
    reader_t r = { .call = #call_name, .direction = -1 };                               \
    (void)self;                                                                         \
    if (arrange(&call_name##_call, values, n, names, given)) return NULL;
#define BEGIN_ONE(call_name, LIST)                                                      \
    enum { LIST(PLACE) };                                                               \
    PyObject *const given[] = { value };                                                \
    reader_t r = { .call = #call_name, .direction = -1 };                               \
    (void)self;

/* Reads a field, by its kind: counts, flags and matrices become variables, tensors fields of `call`. */
#define FILL(kind, name, ...)                                                           \
    r.field = #name;                                                                    \
    FILL_##kind(name, ##__VA_ARGS__)                                                    \
    if (r.failed) return NULL;
#define FILL_COUNT(name, least, most) const long name = read_count(&r, given[AT_##name], least, most);
#define FILL_FLAG(name) const int name = read_flag(&r, given[AT_##name]);
#define FILL_SIZES(name)
#define FILL_READ(name, when, ...) call.name = read_tensor(&r, given[AT_##name], when, SHAPE(__VA_ARGS__));
#define FILL_WRITTEN FILL_READ
#define FILL_EACH(name, when, ...)                                                      \
    for (int d = 0; d < D && read_tuple(&r, given[AT_##name], (int)D) && !r.failed; d++) { \
        PyObject *one = PyTuple_GetItem(given[AT_##name], d);                           \
        r.direction = d;                                                                \
        call.weights[d].name = read_tensor(&r, one, when, SHAPE(__VA_ARGS__));          \
    }                                                                                   \
    r.direction = -1;
#define FILL_ROWS(name, ...)                                                            \
    int64_t least = rows_of_part(&call.sizes, first, end), room = 0, step = 0;          \
    call.name = read_rows(&r, given[AT_##name], least, &room, &step, SHAPE(__VA_ARGS__));
#define FILL_MATRIX(name, may_turn, rows, columns)                                      \
    const matrix_t name = read_matrix(&r, given[AT_##name], may_turn, AT_##name == AT_out, &rows, &columns, \
                                      #rows ", " #columns);
#define FILL_SCRATCH(name, bytes) call.name = read_scratch(&r, given[AT_##name], bytes);
#define FILL_ANY(name) const dl_tensor_t name = read_any(&r, given[AT_##name]);

/* A check beyond the lists': what a field should have been. */
#define EXPECT(condition, name, ...)                                                    \
    if (!(condition)) {                                                                 \
        text_t expected = { .used = 0 };                                                \
        add(&expected, __VA_ARGS__);                                                    \
        r.field = #name;                                                                \
        refuse(&r, PyExc_ValueError, given[AT_##name], &expected);                      \
        return NULL;                                                                    \
    }
