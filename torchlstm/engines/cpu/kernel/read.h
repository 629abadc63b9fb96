/* Reads what Python hands over: fields by their names, numbers, and tensors through DLPack, each checked.
 *
 * Whatever is wrong sets a Python error that names the field, what was expected and what came, and `failed`; nothing
 * has been written by then.  No reference is taken: the caller holds the tensors until his call returns.
 */
#pragma once
#define Py_LIMITED_API 0x030A0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "dlpack.h"

/* What the extension was loaded with: torch's functions, and the types whose tensors it may be asked about.  No subclass
 * but Parameter: a tensor that stands for something else has an address too. */
static int (*view_of)(void *object, dl_tensor_t *out);
static int (*give)(dl_owned_t *memory, void **object);
static PyObject *tensor_type, *parameter_type;

/* A call: its fields in the order of its list.  `kind` and `rest` are the list's own text. */
typedef struct { const char *name, *kind, *rest; } field_t;
typedef struct {
    const char *name;
    int count;
    const field_t *fields;
    PyObject **names;                   /* (count,) interned */
} call_t;

/* Where reading stands. */
typedef struct {
    const char *call, *field;           /* for errors                                        */
    int direction;                      /* of a field that has a tensor for each; else -1    */
    dl_dtype_t dtype;                   /* of tensors; no bits: the first one decides        */
    int failed;
} reader_t;

/* May a tensor be missing? */
typedef enum { ABSENT, OPTIONAL, ALWAYS } when_t;
#define IF(condition) ((condition) ? ALWAYS : ABSENT)

static const dl_dtype_t INT64 = { DL_INT, 64, 1 };
static int is_float(dl_dtype_t t) { return t.code == DL_FLOAT && t.lanes == 1 && (t.bits == 32 || t.bits == 64); }
static int is_half(dl_dtype_t t) { return (t.code == DL_FLOAT || t.code == DL_BFLOAT) && t.lanes == 1 && t.bits == 16; }
static dl_dtype_t floats(int element) { return (dl_dtype_t){ DL_FLOAT, (uint8_t)(8 * element), 1 }; }
static int same_dtype(dl_dtype_t a, dl_dtype_t b) { return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes; }

/* --- errors --- */

typedef struct { char at[320]; size_t used; } text_t;

__attribute__((format(printf, 2, 3))) static void add(text_t *t, const char *format, ...) {
    va_list rest;
    va_start(rest, format);
    int n = vsnprintf(t->at + t->used, sizeof t->at - t->used, format, rest);
    va_end(rest);
    if (n > 0) t->used = t->used + (size_t)n < sizeof t->at ? t->used + (size_t)n : sizeof t->at - 1;
}
static void add_numbers(text_t *t, const int64_t *v, int n) {
    add(t, "(");
    for (int i = 0; i < n; i++) add(t, i ? ", %lld" : "%lld", (long long)v[i]);
    add(t, n == 1 ? ",)" : ")");
}
static void add_dtype(text_t *t, dl_dtype_t dtype) {
    static const char *const codes[] = { "int%d", "uint%d", "float%d", "opaque%d", "bfloat%d", "complex%d" };
    if (dtype.code <= DL_COMPLEX) add(t, codes[dtype.code], dtype.bits);
    else add(t, dtype.code == DL_BOOL ? "bool" : "another dtype");
}

static int is_tensor(PyObject *object) {
    PyObject *type = (PyObject *)Py_TYPE(object);
    return type == tensor_type || type == parameter_type;
}

/* What came. */
static void add_object(text_t *t, PyObject *object) {
    dl_tensor_t found;
    if (is_tensor(object) && !view_of(object, &found)) {
        add_dtype(t, found.dtype);
        add(t, " ");
        add_numbers(t, found.shape, found.dims);
        if (found.strides) add(t, ", strides "), add_numbers(t, found.strides, found.dims);
        if (found.device.type != DL_CPU && found.device.type != DL_CUDA_HOST) add(t, ", not on the CPU");
        if (!found.data) add(t, ", without memory");
        return;
    }
    PyErr_Clear();
    int by_value = object == Py_None || PyLong_Check(object);
    PyObject *shown = by_value ? PyObject_Repr(object) : PyObject_Str((PyObject *)Py_TYPE(object));
    const char *utf8 = shown ? PyUnicode_AsUTF8AndSize(shown, NULL) : NULL;
    PyErr_Clear();
    add(t, "%s", utf8 ? utf8 : "something else");
    Py_XDECREF(shown);
}

static void refuse(reader_t *r, PyObject *error, PyObject *object, const text_t *expected) {
    text_t got = { .used = 0 }, field = { .used = 0 };
    add_object(&got, object);
    add(&field, r->direction < 0 ? "%s" : "%s[%d]", r->field, r->direction);
    PyErr_Format(error, "%s(%s): expected %s, got %s", r->call, field.at, expected->at, got.at);
    r->failed = 1;
}

/* --- fields by name --- */

/* Sorts the values of a call into the order of its list; every field has to be there. */
static int arrange(const call_t *call, PyObject *const *values, Py_ssize_t unnamed, PyObject *names, PyObject **given) {
    Py_ssize_t n = names ? PyTuple_Size(names) : 0;
    if (unnamed) {
        PyErr_Format(PyExc_TypeError, "%s takes fields by name only, got %zd without", call->name, unnamed);
        return -1;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *name = PyTuple_GetItem(names, i);
        int at = (int)i;
        /* Names in code are interned, and call sites keep the order of the list: mostly one comparison. */
        if (at >= call->count || call->names[at] != name)
            for (at = 0; at < call->count && call->names[at] != name && PyUnicode_Compare(call->names[at], name); at++) {}
        if (at == call->count || given[at]) {
            const char *why = at == call->count ? "%s has no field %R" : "%s got the field %R twice";
            PyErr_Format(PyExc_TypeError, why, call->name, name);
            return -1;
        }
        given[at] = values[i];
    }
    for (int i = 0; i < call->count; i++)
        if (!given[i]) {
            PyErr_Format(PyExc_TypeError, "%s: the field %R is missing", call->name, call->names[i]);
            return -1;
        }
    return 0;
}

/* --- numbers --- */

static long read_count(reader_t *r, PyObject *object, long long least, long long most) {
    long long value = 0;
    int is_int = PyLong_Check(object) && !PyBool_Check(object), overflow = 0;
    if (is_int) value = PyLong_AsLongLongAndOverflow(object, &overflow);
    if (is_int && !overflow && value >= least && value <= most) return (long)value;
    text_t expected = { .used = 0 };
    add(&expected, "an int from %lld to %lld", least, most);
    refuse(r, is_int ? PyExc_ValueError : PyExc_TypeError, object, &expected);
    return 0;
}

static int read_flag(reader_t *r, PyObject *object) {
    if (PyBool_Check(object)) return object == Py_True;
    text_t expected = { .used = 0 };
    add(&expected, "True or False");
    refuse(r, PyExc_TypeError, object, &expected);
    return 0;
}

/* --- tensors --- */

/* The view of a tensor on the CPU that has memory if it has elements; else 0, and no error is set. */
static int look(PyObject *object, dl_tensor_t *found) {
    if (!is_tensor(object)) return 0;
    if (view_of(object, found)) { PyErr_Clear(); return 0; }
    if (found->device.type != DL_CPU && found->device.type != DL_CUDA_HOST) return 0;
    for (int i = 0; i < found->dims; i++)
        if (!found->shape[i]) return 1;
    return found->data != NULL;
}
static void *start_of(const dl_tensor_t *t) { return (char *)t->data + t->byte_offset; }

/* An axis of length 1 may have any stride, and so may all of a tensor without elements. */
static int is_contiguous(const dl_tensor_t *t) {
    int64_t step = 1;
    int contiguous = 1;
    for (int i = t->dims - 1; i >= 0; i--) {
        if (t->shape[i] == 0) return 1;
        contiguous &= t->shape[i] == 1 || t->strides[i] == step;
        step *= t->shape[i];
    }
    return contiguous;
}
static int has_shape(const dl_tensor_t *t, const int64_t *shape, int dims) {
    if (t->dims != dims) return 0;
    for (int i = 0; i < dims; i++)
        if (t->shape[i] != shape[i]) return 0;
    return 1;
}

/* A shape as its list has it: text, number of axes, values. */
#define SHAPE(...)                                                                      \
    #__VA_ARGS__, (int)(sizeof((int64_t[]){ __VA_ARGS__ }) / sizeof(int64_t)), (const int64_t[]){ __VA_ARGS__ }

static void refuse_tensor(reader_t *r, PyObject *object, when_t when, const char *layout, const char *letters, int dims,
                          const int64_t *shape) {
    text_t expected = { .used = 0 };
    dl_tensor_t found;
    int wrong_type = !look(object, &found) ? !is_tensor(object)
                     : r->dtype.bits       ? !same_dtype(found.dtype, r->dtype)
                                           : !is_float(found.dtype);
    if (when == ABSENT) {
        add(&expected, "None");
    } else {
        if (r->dtype.bits) add_dtype(&expected, r->dtype);
        else add(&expected, "float32 or float64");
        add(&expected, dims == 1 ? " (%s,)" : " (%s)", letters);
        if (shape) add(&expected, " = "), add_numbers(&expected, shape, dims);
        add(&expected, ", %s, on the CPU%s", layout, when == OPTIONAL ? ", or None" : "");
    }
    refuse(r, wrong_type || when == ABSENT ? PyExc_TypeError : PyExc_ValueError, object, &expected);
}

/* Any tensor on the CPU. */
static dl_tensor_t read_any(reader_t *r, PyObject *object) {
    dl_tensor_t found = { 0 };
    if (look(object, &found)) return found;
    text_t expected = { .used = 0 };
    add(&expected, "a tensor on the CPU");
    refuse(r, is_tensor(object) ? PyExc_ValueError : PyExc_TypeError, object, &expected);
    return found;
}

/* The memory of a contiguous tensor of this shape, or NULL. */
static void *read_tensor(reader_t *r, PyObject *object, when_t when, const char *letters, int dims,
                         const int64_t *shape) {
    dl_tensor_t found;
    if (object == Py_None && when != ALWAYS) return NULL;
    if (when != ABSENT && look(object, &found) && same_dtype(found.dtype, r->dtype) && has_shape(&found, shape, dims)
        && is_contiguous(&found))
        return start_of(&found);
    refuse_tensor(r, object, when, "contiguous", letters, dims, shape);
    return NULL;
}

/* The tuple that a field has for `n` directions; it holds its tensors. */
static PyObject *read_tuple(reader_t *r, PyObject *object, int n) {
    if (PyTuple_Check(object) && PyTuple_Size(object) == n) return object;
    text_t expected = { .used = 0 };
    add(&expected, "a tuple of %d, one for each direction", n);
    if (PyTuple_Check(object)) add(&expected, " and not of %zd", PyTuple_Size(object));
    refuse(r, PyTuple_Check(object) ? PyExc_ValueError : PyExc_TypeError, object, &expected);
    return NULL;
}

/* The memory of at least `bytes` in a tensor (n,), or NULL if that is 0. */
static void *read_scratch(reader_t *r, PyObject *object, size_t bytes) {
    dl_tensor_t found;
    if (object == Py_None && !bytes) return NULL;
    size_t element = r->dtype.bits / 8;
    int64_t need = (int64_t)((bytes + element - 1) / element);
    if (look(object, &found) && same_dtype(found.dtype, r->dtype) && found.dims == 1 && is_contiguous(&found)
        && found.shape[0] >= need)
        return start_of(&found);
    refuse_tensor(r, object, bytes ? ALWAYS : OPTIONAL, "contiguous", "at least", 1, &need);
    return NULL;
}

/* The memory of a tensor (D, room, width) with `room` for at least so many rows, which are a `step` apart. */
static void *read_rows(reader_t *r, PyObject *object, int64_t least, int64_t *room, int64_t *step, const char *letters,
                       int dims, const int64_t *shape) {
    dl_tensor_t t;
    int64_t want[] = { shape[0], least, shape[2] };
    if (look(object, &t) && same_dtype(t.dtype, r->dtype) && t.dims == dims && t.shape[0] == shape[0]
        && t.shape[1] >= least && t.shape[2] == shape[2]) {
        *room = t.shape[1];
        *step = *room > 1 ? t.strides[1] : shape[0] > 1 ? t.strides[0] : shape[2];
        if (*step >= shape[2] && t.strides[2] == 1 && (shape[0] == 1 || t.strides[0] == *room * *step))
            return start_of(&t);
    }
    refuse_tensor(r, object, ALWAYS, "or more rows, each contiguous and one step after the other", letters, dims, want);
    return NULL;
}

typedef struct {
    void *data;
    int64_t rows, columns, step;        /* between rows, or if turned between columns */
    int turned;                         /* it lies column by column                   */
} matrix_t;

/* How a view (rows, columns) lies in memory; 0 if as no matrix.  Strides of axes of length 1 say nothing. */
static int lies(const dl_tensor_t *t, int may_turn, matrix_t *m) {
    if (t->dims != 2) return 0;
    int64_t rows = t->shape[0], columns = t->shape[1], row = t->strides[0], column = t->strides[1];
    *m = (matrix_t){ start_of(t), rows, columns, row, 0 };
    if (column == 1) return 1;
    m->turned = 1, m->step = column;
    if (may_turn && row == 1) return 1;
    if (columns <= 1) { m->turned = 0, m->step = row; return 1; }
    return may_turn && rows <= 1;
}

/* A matrix (rows, columns); a number that is negative is whatever comes. */
static matrix_t read_matrix(reader_t *r, PyObject *object, int may_turn, int written, int64_t *rows, int64_t *columns,
                            const char *letters) {
    dl_tensor_t t;
    matrix_t m = { 0 };
    if (look(object, &t) && (r->dtype.bits ? same_dtype(t.dtype, r->dtype) : is_float(t.dtype))
        && lies(&t, may_turn, &m) && (*rows < 0 || *rows == m.rows) && (*columns < 0 || *columns == m.columns)
        && (!written || m.rows <= 1 || m.step >= m.columns)) {
        r->dtype = t.dtype, *rows = m.rows, *columns = m.columns;
        return m;
    }
    int64_t want[] = { *rows, *columns };
    const char *layout = may_turn ? "its rows or its columns contiguous" : "its rows contiguous";
    refuse_tensor(r, object, ALWAYS, layout, letters, 2, *rows < 0 || *columns < 0 ? NULL : want);
    return m;
}
