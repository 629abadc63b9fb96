/* What torch is doing while a call is made: the states in which a kernel must not read a tensor's memory, and the number of threads. */
#pragma once
#include <stdlib.h>
#include "read.h"
#include "scratch.h"

/* What Python hands over once: functions without arguments, but for empty_like, the dicts of modules whose variables
 * are read, and the numbers of instruction sets by their names. */
#define MOMENT(X)                                                                                         \
    X(is_grad_enabled) X(is_tracing) X(transforms) X(modes) X(function_modes) X(is_autocast) \
    X(count_threads) X(empty_like) X(forward_ad) X(profiler) X(engine) X(isas)
#define MEMBER(name) PyObject *name;
static struct { MOMENT(MEMBER) int connected; } torch;

/* Names of attributes and methods, interned. */
#define WORDS(X)                                                                                          \
    X(_parameters) X(input_size) X(hidden_size) X(num_layers) X(bias) X(batch_first) X(dropout) X(training) \
    X(bidirectional) X(proj_size) X(checkpoint_every) X(requires_grad) X(is_neg) X(new_empty) X(contiguous) \
    X(transpose_) X(_current_level) X(_is_profiler_enabled) X(_isa)
static struct { WORDS(MEMBER) PyObject *zero, *one; } word;

/* Is what a call returned true?  An error is not. */
static int is_true(PyObject *result) {
    int yes = result ? result != Py_None && PyObject_IsTrue(result) > 0 : 0;
    if (!result) PyErr_Clear();
    Py_XDECREF(result);
    return yes;
}
static int ask(PyObject *function) { return is_true(PyObject_CallNoArgs(function)); }

/* A variable of a module, borrowed, or None. */
static PyObject *variable(PyObject *dict, PyObject *name) {
    PyObject *value = PyDict_GetItemWithError(dict, name);
    return value ? value : Py_None;
}
/* An int that an attribute holds, or -1. */
static long number(PyObject *dict, PyObject *name) {
    PyObject *value = PyDict_GetItemWithError(dict, name);
    long n = value && PyLong_Check(value) && !PyBool_Check(value) ? PyLong_AsLong(value) : -1;
    if (PyErr_Occurred()) PyErr_Clear(), n = -1;
    return n;
}

/* Is a tensor just its memory now?  Under a trace, a transform or a mode it stands for something else. */
static int tensors_are_plain(void) {
    PyObject *level = variable(torch.forward_ad, word._current_level);
    if (!PyLong_Check(level) || PyLong_AsLong(level) >= 0) return 0;
    PyObject *transforms = PyObject_CallNoArgs(torch.transforms);
    int none = transforms == Py_None;
    Py_XDECREF(transforms);
    return none && !ask(torch.is_tracing) && !ask(torch.modes);
}
/* Is nobody changing or watching what a module computes: no function mode, autocast or profiler? */
static int nobody_watches(void) {
    return !ask(torch.function_modes) && !ask(torch.is_autocast)
           && variable(torch.profiler, word._is_profiler_enabled) != Py_True;
}

/* How many threads a call may ask for; 0 with an error set: it is a function in Python, where Ctrl-C arrives. */
static int threads_now(void) {
    PyObject *n = PyObject_CallNoArgs(torch.count_threads);
    long count = n ? PyLong_AsLong(n) : 0;
    Py_XDECREF(n);
    return PyErr_Occurred() ? 0 : count < 1 ? 1 : (int)count;
}

/* The number of the instruction set that is asked for, or -1. */
static int isa_now(void) {
    PyObject *number = PyDict_GetItemWithError(torch.isas, variable(torch.engine, word._isa));
    return number && PyLong_Check(number) ? (int)PyLong_AsLong(number) : -1;
}

/* Is an attribute of a tensor true? */
static int has(PyObject *tensor, PyObject *question) { return is_true(PyObject_GetAttr(tensor, question)); }
/* Does the memory of a tensor hold the negatives of its values?  It does where the tensor is the imaginary part of a conjugated
 * one.  The real parts lie between, so such a tensor has no odd stride.  Others are not asked: the question lets other threads of
 * Python run, and the interpreter's lock may be 5 ms away. */
static int is_negated(PyObject *tensor, const dl_tensor_t *view) {
    for (int i = 0; i < view->dims; i++)
        if (view->shape[i] > 1 && view->strides[i] % 2) return 0;
    return is_true(PyObject_CallMethodObjArgs(tensor, word.is_neg, NULL));
}

/* The bytes of a contiguous tensor, SIZE_MAX if they are more. */
static size_t bytes_of_tensor(dl_dtype_t dtype, int dims, const int64_t *shape) {
    size_t bytes = dtype.bits / 8;
    for (int i = 0; i < dims; i++)
        if (__builtin_mul_overflow(bytes, (size_t)shape[i], &bytes)) return SIZE_MAX;
    return bytes;
}

/* Tensors of so few bytes lie in memory of ours: torch's allocator takes twice the time, and lets other threads of Python run
 * meanwhile, from which the interpreter's lock comes back after 5 ms and more.  Their storage cannot grow. */
enum { SMALL_BYTES = 64 << 10, LINE = 64, MOST_DIMS = 3 };
typedef struct { dl_owned_t memory; int64_t shape[MOST_DIMS], strides[MOST_DIMS]; } small_t;
static void free_small(dl_owned_t *memory) { free(memory); }

static PyObject *small_tensor(dl_dtype_t dtype, int dims, const int64_t *shape, size_t bytes, void **data) {
    small_t *s = malloc(sizeof *s + LINE - 1 + bytes);
    if (!s) return PyErr_NoMemory();
    *data = (void *)(((uintptr_t)(s + 1) + LINE - 1) / LINE * LINE);
    s->memory = (dl_owned_t){ .version = { DL_MAJOR, 0 }, .free = free_small };
    s->memory.tensor = (dl_tensor_t){ .data = *data, .device = { DL_CPU, 0 }, .dims = dims, .dtype = dtype, .shape = s->shape,
                                      .strides = s->strides };
    int64_t step = 1;
    for (int i = dims - 1; i >= 0; step *= shape[i--]) s->shape[i] = shape[i], s->strides[i] = step;
    void *made;
    return give(&s->memory, &made) ? NULL : made;
}

/* A new tensor of this shape, of the dtype of a plain tensor; by `like` if that has the shape and is contiguous, in half
 * the time.  NULL with an error set if there is no memory. */
static PyObject *new_tensor(PyObject *like, const dl_tensor_t *view, int dims, const int64_t *shape, void **data) {
    const size_t bytes = bytes_of_tensor(view->dtype, dims, shape);
    if (bytes <= SMALL_BYTES) return small_tensor(view->dtype, dims, shape, bytes, data);
    int same = has_shape(view, shape, dims);
    int64_t step = 1;
    for (int i = dims - 1; i >= 0 && same; step *= shape[i--]) same = view->strides[i] == step;
    PyObject *made;
    if (same) {
        made = PyObject_CallFunctionObjArgs(torch.empty_like, like, NULL);
    } else {
        PyObject *sizes = PyTuple_New(dims);
        for (int i = 0; i < dims && sizes; i++) {
            PyObject *n = PyLong_FromLongLong(shape[i]);
            if (!n || PyTuple_SetItem(sizes, i, n)) { Py_DECREF(sizes); return NULL; }
        }
        made = sizes ? PyObject_CallMethodObjArgs(like, word.new_empty, sizes, NULL) : NULL;
        Py_XDECREF(sizes);
    }
    dl_tensor_t found;
    if (!made) return NULL;
    if (!look(made, &found) || !has_shape(&found, shape, dims) || !is_contiguous(&found)) {
        Py_DECREF(made);
        PyErr_SetString(PyExc_RuntimeError, "a new tensor is not the one that was asked for");
        return NULL;
    }
    *data = start_of(&found);
    if (bytes >= HUGE_BYTES) ask_huge_pages(*data, bytes);
    return made;
}
