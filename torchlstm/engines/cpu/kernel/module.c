/* The extension module: every argument is an integer (a size, a flag or an address; 0 is NULL). */
#define Py_LIMITED_API 0x030A0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#if defined __linux__
#include <sys/mman.h>
#endif
#include "dispatch.h"

enum { SIZES = 12, MOST = 48 };

/* Reads `n` arguments, of which there must be `fixed` and `each` for every direction. */
static int integers(PyObject *const *args, Py_ssize_t n, int fixed, int each, long long *v) {
    if (n < SIZES || n > MOST) { PyErr_Format(PyExc_TypeError, "%zd arguments are too few or too many", n); return -1; }
    for (Py_ssize_t i = 0; i < n; i++) {
        v[i] = PyLong_AsLongLong(args[i]);
        if (v[i] == -1 && PyErr_Occurred()) return -1;
    }
    if (n != fixed + each * v[8]) {
        PyErr_Format(PyExc_TypeError, "%d arguments expected, not %zd", (int)(fixed + each * v[8]), n);
        return -1;
    }
    return 0;
}
#define AT(i) ((void *)(intptr_t)v[i])

/* isa, threads, element, T, B, I, H, R, D, projected, reverse, starts */
static sizes_t sizes(const long long *v) {
    return (sizes_t){ .element = (int)v[2], .steps = (long)v[3], .batch = (long)v[4], .input = (long)v[5],
                      .hidden = (long)v[6], .output = (long)v[7], .directions = (int)v[8], .projected = (int)v[9],
                      .reverse = (int)v[10], .starts = AT(11) };
}

/* scratch(sizes..., backward) -> bytes */
static PyObject *scratch(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    (void)self;
    long long v[MOST];
    if (integers(args, n, SIZES + 1, 0, v)) return NULL;
    forward_t f = { .sizes = sizes(v) };
    backward_t b = { .sizes = f.sizes };
    return PyLong_FromSize_t(v[SIZES] ? torchlstm_backward_scratch(&b, (int)v[1], (int)v[0])
                                      : torchlstm_forward_scratch(&f, (int)v[1], (int)v[0]));
}

/* forward(sizes..., y, h_n, c_n, gates, cells, x, h_0, c_0, scratch, (w_ih, w_hh, b_ih, b_hh, w_hr) per direction...) */
static PyObject *forward(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    (void)self;
    long long v[MOST];
    if (integers(args, n, SIZES + 9, 5, v)) return NULL;
    int i = SIZES + 9;
    forward_t f = { AT(12), AT(13), AT(14), AT(15), AT(16), AT(17), AT(18), AT(19), .sizes = sizes(v), .scratch = AT(20) };
    for (int d = 0; d < f.sizes.directions; d++, i += 5)
        f.weights[d] = (weights_t){ AT(i), AT(i + 1), AT(i + 2), AT(i + 3), AT(i + 4) };
    Py_BEGIN_ALLOW_THREADS
    torchlstm_forward(&f, (int)v[1], (int)v[0]);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* backward(sizes..., dgates, before, dh, raw, dh_0, dc_0, db, gates, cells, y, h_0, c_0, dy, dh_n, dc_n, dacts, dcells,
 *          from, to, room, step, scratch, (w_hh, w_hr) per direction...) */
static PyObject *backward(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    (void)self;
    long long v[MOST];
    if (integers(args, n, SIZES + 22, 2, v)) return NULL;
    int i = SIZES + 22;
    backward_t b = { AT(12), AT(13), AT(14), AT(15), AT(16), AT(17), AT(18), AT(19), AT(20), AT(21), AT(22), AT(23),
                     AT(24), AT(25), AT(26), AT(27), AT(28), .sizes = sizes(v), .from = (long)v[29], .to = (long)v[30],
                     .room = (long)v[31], .step = (long)v[32], .scratch = AT(33) };
    for (int d = 0; d < b.sizes.directions; d++, i += 2)
        b.weights[d] = (weights_t){ .w_hh = AT(i), .w_hr = AT(i + 1) };
    Py_BEGIN_ALLOW_THREADS
    torchlstm_backward(&b, (int)v[1], (int)v[0]);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* isa, threads, element, turned, add, M, N, K, ldo, lda, ldb */
static int product(PyObject *const *args, Py_ssize_t n, int more, long long *v, gemm_t *g) {
    if (n != 11 + more) { PyErr_Format(PyExc_TypeError, "%d arguments expected, not %zd", 11 + more, n); return -1; }
    for (Py_ssize_t i = 0; i < n; i++) {
        v[i] = PyLong_AsLongLong(args[i]);
        if (v[i] == -1 && PyErr_Occurred()) return -1;
    }
    *g = (gemm_t){ .element = (int)v[2], .turned = (int)v[3], .add = (int)v[4], .M = (long)v[5], .N = (long)v[6],
                   .K = (long)v[7], .ldo = (long)v[8], .lda = (long)v[9], .ldb = (long)v[10] };
    return 0;
}

/* gemm_scratch(isa..., ldb) -> bytes */
static PyObject *gemm_scratch(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    (void)self;
    long long v[MOST];
    gemm_t g;
    if (product(args, n, 0, v, &g)) return NULL;
    return PyLong_FromSize_t(torchlstm_gemm_scratch(&g, (int)v[1], (int)v[0]));
}

/* gemm(isa..., ldb, out, a, b, scratch) */
static PyObject *gemm(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    (void)self;
    long long v[MOST];
    gemm_t g;
    if (product(args, n, 4, v, &g)) return NULL;
    g.out = AT(11), g.a = AT(12), g.b = AT(13), g.scratch = AT(14);
    Py_BEGIN_ALLOW_THREADS
    torchlstm_gemm(&g, (int)v[1], (int)v[0]);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* huge(address, bytes): asks for large pages, of which a fresh large buffer costs fewer faults; a hint only. */
static PyObject *huge(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    (void)self;
    if (n != 2) { PyErr_SetString(PyExc_TypeError, "2 arguments expected"); return NULL; }
    long long at = PyLong_AsLongLong(args[0]), bytes = PyLong_AsLongLong(args[1]);
    if (PyErr_Occurred()) return NULL;
#if defined MADV_HUGEPAGE
    const long long page = 2 << 20;
    long long from = (at + page - 1) / page * page, to = (at + bytes) / page * page;
    if (to > from) madvise((void *)(intptr_t)from, (size_t)(to - from), MADV_HUGEPAGE);
#else
    (void)at, (void)bytes;
#endif
    Py_RETURN_NONE;
}

/* isa(wanted) -> the one that is used */
static PyObject *isa(PyObject *self, PyObject *wanted) {
    (void)self;
    long n = PyLong_AsLong(wanted);
    if (n == -1 && PyErr_Occurred()) return NULL;
    return PyLong_FromLong(torchlstm_isa((int)n));
}

#define FAST(name) { #name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, NULL }
static PyMethodDef methods[] = {
    FAST(scratch), FAST(forward), FAST(backward), FAST(gemm_scratch), FAST(gemm), FAST(huge), { "isa", isa, METH_O, NULL }, { 0 },
};
static int start(PyObject *m) { return PyModule_AddIntConstant(m, "openmp", have_openmp()); }
static PyModuleDef_Slot slots[] = { { Py_mod_exec, (void *)start }, { 0 } };
static struct PyModuleDef module = { PyModuleDef_HEAD_INIT, "_kernel", NULL, 0, methods, slots, 0, 0, 0 };
PyMODINIT_FUNC PyInit__kernel(void) { return PyModuleDef_Init(&module); }
