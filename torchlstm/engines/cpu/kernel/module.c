/* The extension module: the calls of calls.h, from Python's values to kernel.h's structures. */
#include "fields.h"
#include "dispatch.h"
#include "gradients.h"
#include "frozen.h"

/* --- the sizes of a layer, checked once for all calls about it --- */

typedef struct {
    sizes_t sizes;
    int threads, isa;
    int64_t starts[];                   /* (T + 1,), of a ragged batch */
} layer_t;

#define LAYER "torchlstm.engines.cpu.sizes"
static void free_layer(PyObject *capsule) { PyMem_Free(PyCapsule_GetPointer(capsule, LAYER)); }

static const layer_t *read_layer(reader_t *r, PyObject *object) {
    if (PyCapsule_IsValid(object, LAYER)) return PyCapsule_GetPointer(object, LAYER);
    text_t expected = { .used = 0 };
    add(&expected, "what the call sizes returned");
    r->field = "sizes";
    refuse(r, PyExc_TypeError, object, &expected);
    return NULL;
}

/* Where the packed rows of every step begin.  A size is read once: nobody changes it between check and use. */
static int fill_starts(const char *call, const int64_t *sizes, long steps, long batch, int64_t *starts) {
    int64_t most = batch;
    starts[0] = 0;
    for (long t = 0; t < steps; t++) {
        int64_t size = sizes[t];
        if (size < 0 || size > most) {
            PyErr_Format(PyExc_ValueError, "%s(batch_sizes[%ld]): expected an int from 0 to %lld, got %lld", call, t,
                         (long long)most, (long long)size);
            return -1;
        }
        starts[t + 1] = starts[t] + size, most = size;
    }
    return 0;
}

static PyObject *sizes(PyObject *self, PyObject *const *values, Py_ssize_t n, PyObject *names) {
    BEGIN(sizes, SIZES)
    struct { const int64_t *batch_sizes; } call;
    r.dtype = INT64;
    SIZES(FILL)
    EXPECT(element == 4 || element == 8, element, "4 or 8")
    EXPECT(projected || output == hidden, output, "hidden = %ld without a projection", hidden)
    EXPECT(directions == 1 || !reverse, reverse, "False with two directions")
    layer_t *layer = PyMem_Malloc(sizeof *layer + (call.batch_sizes ? ((size_t)steps + 1) * sizeof(int64_t) : 0));
    if (!layer) return PyErr_NoMemory();
    *layer = (layer_t){ .threads = (int)threads, .isa = (int)isa };
    layer->sizes = (sizes_t){ .steps = steps, .batch = batch, .input = input, .hidden = hidden, .output = output,
                              .directions = (int)directions, .projected = projected, .reverse = reverse,
                              .element = (int)element, .starts = call.batch_sizes ? layer->starts : NULL };
    PyObject *capsule = NULL;
    if (!call.batch_sizes || !fill_starts(r.call, call.batch_sizes, steps, batch, layer->starts))
        capsule = PyCapsule_New(layer, LAYER, free_layer);
    if (!capsule) PyMem_Free(layer);
    return capsule;
}

/* The letters of shapes. */
#define LETTERS(s)                                                                      \
    __attribute__((unused)) const int64_t T = (s).steps, B = (s).batch, I = (s).input, H = (s).hidden, \
                                          R = (s).output, D = (s).directions, P = first_row(&(s), (s).steps);

/* --- the time loop --- */

static PyObject *forward_scratch(PyObject *self, PyObject *value) {
    BEGIN_ONE(forward_scratch, FORWARD_SCRATCH)
    const layer_t *layer = read_layer(&r, given[AT_sizes]);
    if (!layer) return NULL;
    forward_t call = { .sizes = layer->sizes };
    size_t bytes = torchlstm_forward_scratch(&call, layer->threads, layer->isa);
    return PyLong_FromSize_t(bytes / (size_t)call.sizes.element);
}

static PyObject *forward(PyObject *self, PyObject *const *values, Py_ssize_t n, PyObject *names) {
    BEGIN(forward, FORWARD)
    const layer_t *layer = read_layer(&r, given[AT_sizes]);
    if (!layer) return NULL;
    LETTERS(layer->sizes)
    forward_t call = { .sizes = layer->sizes };
    r.dtype = floats(call.sizes.element);
    FORWARD(FILL)
    Py_BEGIN_ALLOW_THREADS
    torchlstm_forward(&call, layer->threads, layer->isa);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *backward_scratch(PyObject *self, PyObject *value) {
    BEGIN_ONE(backward_scratch, BACKWARD_SCRATCH)
    const layer_t *layer = read_layer(&r, given[AT_sizes]);
    if (!layer) return NULL;
    backward_t call = { .sizes = layer->sizes };
    size_t bytes = torchlstm_backward_scratch(&call, layer->threads, layer->isa);
    return PyLong_FromSize_t(bytes / (size_t)call.sizes.element);
}

/* How many rows a buffer needs for each direction's part of steps [first, end). */
static int64_t rows_of_part(const sizes_t *s, long first, long end) {
    int64_t most = 0;
    for (int d = 0; d < s->directions; d++) {
        long low = backwards(s, d) ? first : s->steps - end, high = low + end - first;
        int64_t rows = first_row(s, high) - first_row(s, low);
        if (rows > most) most = rows;
    }
    return most;
}

static PyObject *backward(PyObject *self, PyObject *const *values, Py_ssize_t n, PyObject *names) {
    BEGIN(backward, BACKWARD)
    const layer_t *layer = read_layer(&r, given[AT_sizes]);
    if (!layer) return NULL;
    LETTERS(layer->sizes)
    backward_t call = { .sizes = layer->sizes };
    r.dtype = floats(call.sizes.element);
    BACKWARD(FILL)
    call.from = first, call.to = end, call.room = (long)room, call.step = (long)step;
    Py_BEGIN_ALLOW_THREADS
    torchlstm_backward(&call, layer->threads, layer->isa);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* --- products --- */

static gemm_t product(const matrix_t *out, const matrix_t *left, const matrix_t *right, dl_dtype_t dtype) {
    return (gemm_t){ .out = out->data, .a = left->data, .b = right->data, .M = out->rows, .N = out->columns,
                     .K = left->columns, .ldo = out->step, .lda = left->step, .ldb = right->step,
                     .turned = left->turned, .element = dtype.bits / 8 };
}
/* Without terms or results there is nothing to multiply. */
static int is_empty(const gemm_t *g) { return !g->M || !g->N || !g->K; }
static size_t product_scratch(const gemm_t *g, long threads, long isa) {
    return is_empty(g) ? 0 : torchlstm_gemm_scratch(g, (int)threads, (int)isa);
}

static PyObject *gemm_scratch(PyObject *self, PyObject *const *values, Py_ssize_t n, PyObject *names) {
    BEGIN(gemm_scratch, GEMM_SCRATCH)
    int64_t M = -1, N = -1, K = -1;
    GEMM_SCRATCH(FILL)
    gemm_t g = product(&out, &left, &right, r.dtype);
    return PyLong_FromSize_t(product_scratch(&g, threads, isa) / (size_t)g.element);
}

static PyObject *gemm(PyObject *self, PyObject *const *values, Py_ssize_t n, PyObject *names) {
    BEGIN(gemm, GEMM)
    int64_t M = -1, N = -1, K = -1;
    GEMM_SCRATCH(FILL)
    gemm_t call = product(&out, &left, &right, r.dtype);
    GEMM_REST(FILL)
    call.add = add;
    if (is_empty(&call)) {
        for (long m = 0; m < call.M && call.N && !call.add; m++)
            memset((char *)call.out + m * call.ldo * call.element, 0, (size_t)(call.N * call.element));
        Py_RETURN_NONE;
    }
    Py_BEGIN_ALLOW_THREADS
    torchlstm_gemm(&call, (int)threads, (int)isa);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* readable(matrix, turned) -> can a product read it where it is? */
static PyObject *readable(PyObject *self, PyObject *const *values, Py_ssize_t n, PyObject *names) {
    BEGIN(readable, READABLE)
    READABLE(FILL)
    matrix_t m;
    return PyBool_FromLong(lies(&matrix, turned, &m));
}

/* --- the rest --- */

/* huge(tensor): asks for large pages, of which a fresh large buffer costs fewer faults; a hint only. */
static PyObject *huge(PyObject *self, PyObject *value) {
    BEGIN_ONE(huge, HUGE_PAGES)
    HUGE_PAGES(FILL)
    EXPECT(is_contiguous(&tensor), tensor, "a contiguous tensor")
    size_t bytes = tensor.dtype.bits / 8;
    for (int i = 0; i < tensor.dims; i++) bytes *= (size_t)tensor.shape[i];
    ask_huge_pages(start_of(&tensor), bytes);
    Py_RETURN_NONE;
}

/* isa(wanted) -> the one that is used */
static PyObject *isa(PyObject *self, PyObject *value) {
    BEGIN_ONE(isa, ISA)
    ISA(FILL)
    return PyLong_FromLong(torchlstm_isa((int)wanted));
}

/* threads() -> of this thread's latest layer or product: given, worth, wanted, used; and processors now */
static PyObject *threads(PyObject *self, PyObject *nothing) {
    (void)self, (void)nothing;
    threads_t t = torchlstm_threads();
    return Py_BuildValue("iiiii", t.given, t.worth, t.wanted, t.used, torchlstm_processors());
}

/* adapt(on): see kernel.h */
static PyObject *adapt(PyObject *self, PyObject *value) {
    BEGIN_ONE(adapt, ADAPT)
    ADAPT(FILL)
    torchlstm_adapt(on);
    Py_RETURN_NONE;
}

/* peak(isa, threads, element, rounds) -> operations: multiply-adds in registers, on every thread */
static PyObject *peak(PyObject *self, PyObject *const *values, Py_ssize_t n, PyObject *names) {
    BEGIN(peak, PEAK)
    PEAK(FILL)
    EXPECT(element == 4 || element == 8, element, "4 or 8")
    long operations;
    Py_BEGIN_ALLOW_THREADS
    operations = torchlstm_peak(rounds, (int)element, (int)threads, (int)isa);
    Py_END_ALLOW_THREADS
    return PyLong_FromLong(operations);
}

/* --- whole calls of modules --- */

/* connect(functions): what calls of modules ask of torch, by the names in moment.h. */
static PyObject *connect_torch(PyObject *self, PyObject *functions) {
    (void)self;
    if (!PyDict_Check(functions)) {
        PyErr_SetString(PyExc_TypeError, "connect(functions): a dict");
        return NULL;
    }
    torch.connected = 0;
#define TAKE(name)                                                                      \
    PyObject *name = PyDict_GetItemString(functions, #name);                            \
    if (!name) { PyErr_SetString(PyExc_KeyError, #name); return NULL; }
    MOMENT(TAKE)
#define KEEP(name) Py_INCREF(name), Py_XDECREF(torch.name), torch.name = name;
    MOMENT(KEEP)
    torch.connected = 1;
    Py_RETURN_NONE;
}

/* --- the module --- */

/* The type of a field, as Python's declaration writes it. */
static const char *type_of(const field_t *f) {
    int always = !strncmp(f->rest, "ALWAYS", 6);
    if (!strcmp(f->kind, "COUNT")) return "int";
    if (!strcmp(f->kind, "FLAG")) return "bool";
    if (!strcmp(f->kind, "SIZES")) return "Sizes";
    if (!strcmp(f->kind, "EACH")) return always ? "tuple[Tensor, ...]" : "tuple[Tensor | None, ...]";
    if (!strcmp(f->kind, "READ") || !strcmp(f->kind, "WRITTEN")) return always ? "Tensor" : "Tensor | None";
    return strcmp(f->kind, "SCRATCH") ? "Tensor" : "Tensor | None";
}

/* Interns the names of a call's fields, and adds {name: type} of them to `calls`. */
static int describe(const call_t *call, PyObject *calls) {
    PyObject *fields = PyDict_New();
    int bad = !fields;
    for (int i = 0; i < call->count && !bad; i++) {
        PyObject *type = PyUnicode_FromString(type_of(&call->fields[i]));
        call->names[i] = PyUnicode_InternFromString(call->fields[i].name);
        bad = !type || !call->names[i] || PyDict_SetItem(fields, call->names[i], type);
        Py_XDECREF(type);
    }
    bad = bad || PyDict_SetItemString(calls, call->name, fields);
    Py_XDECREF(fields);
    return bad ? -1 : 0;
}

/* Finds torch's table of C functions for tensors. */
static int connect(void) {
    PyObject *torch = PyImport_ImportModule("torch"), *parameter = PyImport_ImportModule("torch.nn.parameter");
    tensor_type = torch ? PyObject_GetAttrString(torch, "Tensor") : NULL;
    parameter_type = parameter ? PyObject_GetAttrString(parameter, "Parameter") : NULL;
    Py_XDECREF(torch), Py_XDECREF(parameter);
    if (!tensor_type || !parameter_type) return -1;
    const char *attribute = "__dlpack_c_exchange_api__", *name = "dlpack_exchange_api";
    PyObject *capsule = PyObject_GetAttrString(tensor_type, attribute);
    if (!capsule || !PyCapsule_IsValid(capsule, name)) {
        Py_XDECREF(capsule);
        PyErr_Clear();
        PyErr_Format(PyExc_ImportError, "torch.Tensor.%s is no capsule %s; that of torch 2.11 and newer is", attribute, name);
        return -1;
    }
    /* The capsule is torch's, and its table static: neither goes away. */
    const dl_header_t *newest = PyCapsule_GetPointer(capsule, name), *found = newest;
    Py_DECREF(capsule);
    while (found && found->version.major != DL_MAJOR) found = found->previous;
    const dl_exchange_t *table = (const dl_exchange_t *)found;
    if (found && table->view && table->give) {
        view_of = table->view, give = table->give;
        return 0;
    }
    PyErr_Format(PyExc_ImportError, "torch's tensors speak DLPack %u.%u; functions of DLPack %d are needed",
                 (unsigned)newest->version.major, (unsigned)newest->version.minor, DL_MAJOR);
    return -1;
}

/* use_openmp(addresses): of the entry points, in the order of openmp_t. */
static PyObject *use_openmp(PyObject *self, PyObject *const *values, Py_ssize_t n) {
    void *at[4] = { 0 };
    for (int i = 0; i < 4 && i < n; i++) at[i] = PyLong_AsVoidPtr(values[i]);
    if (PyErr_Occurred()) return NULL;
    torchlstm_openmp = (openmp_t){ at[0], at[1], at[2], at[3] };
    if (PyModule_AddIntConstant(self, "openmp", have_openmp())) return NULL;
    Py_RETURN_NONE;
}

static int start(PyObject *m) {
    PyObject *calls = PyDict_New();
    int bad = !calls || connect();
#define ADD(call, LIST) bad = bad || describe(&call##_call, calls);
    CALLS(ADD)
#define INTERN(name) bad = bad || !(word.name = PyUnicode_InternFromString(#name));
    WORDS(INTERN)
    bad = bad || !(word.zero = PyLong_FromLong(0)) || !(word.one = PyLong_FromLong(1)) || name_weights();
    bad = bad || PyModule_AddObjectRef(m, "CALLS", calls) || PyModule_AddIntConstant(m, "openmp", have_openmp());
    Py_XDECREF(calls);
    return bad ? -1 : 0;
}

#define NAMED(call) { #call, (PyCFunction)(void (*)(void))call, METH_FASTCALL | METH_KEYWORDS, NULL }
#define PLACED(name, call) { name, (PyCFunction)(void (*)(void))call, METH_FASTCALL, NULL }
#define ALONE(call) { #call, call, METH_O, NULL }
static PyMethodDef methods[] = {
    NAMED(sizes), ALONE(forward_scratch), NAMED(forward), ALONE(backward_scratch), NAMED(backward),
    NAMED(gemm_scratch), NAMED(gemm), NAMED(readable), ALONE(huge), ALONE(isa), NAMED(peak),
    { "connect", connect_torch, METH_O, NULL }, PLACED("lstm", call_lstm), PLACED("cell", call_cell), PLACED("keep", keep),
    PLACED("gradients", gradients), { "form", shape_of_form, METH_O, NULL }, { "frozen", frozen, METH_VARARGS, NULL },
    PLACED("frozen_lstm", frozen_lstm), PLACED("frozen_cell", frozen_cell), PLACED("frozen_step", frozen_step),
    { "threads", threads, METH_NOARGS, NULL }, ALONE(adapt), PLACED("use_openmp", use_openmp), { 0 },
};
static PyModuleDef_Slot slots[] = { { Py_mod_exec, (void *)start }, { 0 } };
static struct PyModuleDef module = { PyModuleDef_HEAD_INIT, "_kernel", NULL, 0, methods, slots, 0, 0, 0 };
PyMODINIT_FUNC PyInit__kernel(void) { return PyModuleDef_Init(&module); }
