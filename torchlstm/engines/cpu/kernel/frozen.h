/* Whole calls of modules whose weights were packed before: see torchlstm/engines/cpu/frozen.py, which packs them. */
#pragma once
#include "modules.h"

/* What packed weights are of: sizes without steps and batch, and the bytes of all layers and directions, one after the other. */
typedef struct {
    sizes_t sizes;
    long layers;
    int format, isa;
    dl_dtype_t dtype;
    size_t bytes;
} frozen_t;

#define FROZEN "torchlstm.engines.cpu.frozen"
static void free_frozen(PyObject *capsule) { PyMem_Free(PyCapsule_GetPointer(capsule, FROZEN)); }

static sizes_t sizes_of_layer(const frozen_t *z, long layer) {
    sizes_t s = z->sizes;
    if (layer) s.input = s.directions * s.output;
    return s;
}

/* frozen(isa, format, element, input, hidden, proj, layers, directions) -> (handle, isa, lanes, beside, bytes of each layer's
 * direction): how such weights are packed (kernel.h). */
static PyObject *frozen(PyObject *self, PyObject *values) {
    (void)self;
    int isa, format, element, directions;
    long input, hidden, proj, layers;
    if (!PyArg_ParseTuple(values, "iiilllli:frozen", &isa, &format, &element, &input, &hidden, &proj, &layers, &directions))
        return NULL;
    const long most = INT32_MAX;
    if (isa < PORTABLE || isa > BFLOAT16 || format < AS_THEY_ARE || format > IN_INT8 || input < 1 || hidden < 1 || input > most
        || hidden > most || proj < 0 || proj > most || layers < 1 || layers > LAYERS || directions < 1 || directions > 2
        || (element != 4 && (element != 8 || format != AS_THEY_ARE))) {
        PyErr_SetString(PyExc_ValueError, "frozen: no such instruction set, format or sizes");
        return NULL;
    }
    frozen_t *z = PyMem_Malloc(sizeof *z);
    PyObject *bytes = z ? PyList_New(layers) : NULL;
    if (!bytes) { PyMem_Free(z); return PyErr_NoMemory(); }
    *z = (frozen_t){ .layers = layers, .format = format, .dtype = floats(element) };
    z->sizes = (sizes_t){ .steps = 1, .batch = 1, .input = input, .hidden = hidden, .output = proj ? proj : hidden,
                          .directions = directions, .projected = proj > 0, .element = element };
    packed_t p = { 0 };
    for (long l = 0; l < layers; l++) {
        const sizes_t s = sizes_of_layer(z, l);
        p = torchlstm_packed(&s, format, isa);
        z->bytes += p.bytes * (size_t)directions;
        PyList_SetItem(bytes, l, PyLong_FromSize_t(p.bytes));
    }
    z->isa = p.isa;
    PyObject *capsule = PyCapsule_New(z, FROZEN, free_frozen);
    if (!capsule) { PyMem_Free(z); Py_DECREF(bytes); return NULL; }
    return Py_BuildValue("NiiiN", capsule, p.isa, p.lanes, p.beside, bytes);
}

/* The call is not for here. */
static PyObject *nothing(void) {
    if (PyErr_Occurred()) PyErr_Clear();
    Py_RETURN_NONE;
}

/* Points a call at its packed weights; 0 if these are not what the handle is of. */
static int read_frozen(module_call_t *m, PyObject *handle, PyObject *data, int cell) {
    if (!torch.connected || !tensors_are_plain() || !nobody_watches() || !PyCapsule_IsValid(handle, FROZEN)) return 0;
    const frozen_t *z = PyCapsule_GetPointer(handle, FROZEN);
    dl_tensor_t t;
    const int64_t bytes = (int64_t)z->bytes;
    if (!look(data, &t) || t.dtype.code != DL_UINT || t.dtype.bits != 8 || !has_shape(&t, &bytes, 1) || !is_contiguous(&t)) return 0;
    m->form = (form_t){ .sizes = z->sizes, .layers = z->layers, .cell = cell, .format = z->format, .isa = z->isa };
    if (cell && (z->layers > 1 || z->sizes.directions > 1 || z->sizes.projected)) return 0;
    const char *at = start_of(&t);
    for (long l = 0; l < z->layers; l++) {
        const sizes_t s = sizes_of_layer(z, l);
        const size_t one = torchlstm_packed(&s, z->format, z->isa).bytes;
        for (int d = 0; d < s.directions; d++, at += one) m->packed[l][d] = at;
    }
    return 1;
}

/* The rows (P, I) of a ragged batch, sizes of whose steps never rise, to `starts` (T + 1,). */
static int read_ragged(module_call_t *m, PyObject *rows, const dl_tensor_t *sizes, int64_t *starts) {
    form_t *f = &m->form;
    const int64_t *of_step = start_of(sizes);
    const long T = (long)sizes->shape[0];
    starts[0] = 0;
    for (long t = 0; t < T; t++) {
        if (of_step[t] < 1 || of_step[t] > INT32_MAX || (t && of_step[t] > of_step[t - 1])) return 0;
        starts[t + 1] = starts[t] + of_step[t];
    }
    if (!look(rows, &m->x.view) || !is_float(m->x.view.dtype)) return 0;
    const int64_t shape[] = { starts[T], f->sizes.input };
    m->x.object = rows, f->dtype = m->x.view.dtype, f->batched = 1, f->batch_first = 0;
    f->sizes.steps = T, f->sizes.batch = (long)of_step[0], f->sizes.starts = starts;
    return has_shape(&m->x.view, shape, 2) && is_contiguous(&m->x.view);
}

/* Is one thread enough for all layers?  Then nobody needs to ask how many there may be, which takes longer than a small step. */
static int is_small(const frozen_t *z, const sizes_t *given) {
    sizes_t s = *given;
    const long between = s.directions * s.output;
    if (z->layers > 1 && between > s.input) s.input = between;
    return torchlstm_forward_is_small(&s);
}

/* Reads what comes with the weights; `starts` (T + 1,) is for a ragged batch.  The states of a `step` are a stream's own, earlier
 * results without gradients.  0: not for here. */
static int read_frozen_call(module_call_t *m, const frozen_t *z, PyObject *x, PyObject *h, PyObject *c, const dl_tensor_t *sizes,
                            int64_t *starts, int batch_first, int step) {
    m->form.batch_first = batch_first;
    if (sizes ? !read_ragged(m, x, sizes, starts) : !read_input(m, x)) return 0;
    if (!same_dtype(m->form.dtype, z->dtype) || (h == Py_None) != (c == Py_None) || !read_states(m, h, c)) return 0;
    if (any_negated(m) || ((step ? requires_grad(x) : any_requires_grad(m)) && ask(torch.is_grad_enabled))) return 0;
    return (m->form.threads = step && is_small(z, &m->form.sizes) ? 1 : threads_now()) > 0;
}

/* Is `out` where the output may go? */
static int read_out(const module_call_t *m, PyObject *out, results_t *to) {
    const form_t *f = &m->form;
    const sizes_t *s = &f->sizes;
    const int64_t width = s->directions * s->output, turned[] = { s->batch, s->steps, width };
    const int64_t shape[] = { s->steps, s->batch, width }, flat[] = { s->starts ? first_row(s, s->steps) : s->steps, width };
    const int64_t *wanted = f->batch_first ? turned : !f->batched || s->starts ? flat : shape;
    tensor_t t;
    int dims = !f->batched || s->starts ? 2 : 3;
    if (f->cell || !read_shaped(out, &t, f->dtype, dims, wanted) || is_negated(out, &t.view) || requires_grad(out)) return 0;
    to->y = start_of(&t.view), to->turned = f->batch_first && s->steps > 1 && s->batch > 1;
    return 1;
}

/* A call on packed weights.  values: handle, data, x, h, c, then of an LSTM batch_sizes, batch_first, out. */
static PyObject *call_frozen(PyObject *const *values, int cell, int step) {
    module_call_t m = { 0 };
    if (!read_frozen(&m, values[0], values[1], cell)) return nothing();
    const frozen_t *z = PyCapsule_GetPointer(values[0], FROZEN);
    PyObject *x = values[2], *h = values[3], *c = values[4], *given = cell ? Py_None : values[7], *result = NULL;
    dl_tensor_t sizes;
    int ragged = !cell && values[5] != Py_None, fits = 0;
    int64_t *starts = NULL;
    if (ragged) {
        if (!look(values[5], &sizes) || !same_dtype(sizes.dtype, INT64) || sizes.dims != 1 || !is_contiguous(&sizes)
            || sizes.shape[0] < 1)
            return nothing();
        starts = PyMem_Malloc(((size_t)sizes.shape[0] + 1) * sizeof *starts);
        if (!starts) return PyErr_NoMemory();
    }
    if (read_frozen_call(&m, z, x, h, c, ragged ? &sizes : NULL, starts, !cell && values[6] == Py_True, step)) {
        results_t to = { 0 };
        if (given != Py_None && !read_out(&m, given, &to)) {
            fits = 0;
        } else if (step && m.h.object) {
            /* The states are written where they are. */
            PyObject *out = given;
            to.h_n = start_of(&m.h.view), to.c_n = start_of(&m.c.view), fits = 1;
            if (cell) out = Py_True;
            Py_INCREF(out);
            if (!cell && given == Py_None) {
                Py_DECREF(out);
                out = new_rows(&m.form, &m.x, m.form.sizes.directions * m.form.sizes.output, &to.y);
            }
            result = out && run_layers(&m, to, 1) ? out : out ? PyErr_NoMemory() : NULL;
            if (!result) Py_XDECREF(out);
        } else if (!step && given == Py_None) {
            result = infer(&m, run_layers), fits = 1;
        } else if (!step) {
            PyObject *hs = new_states(&m.form, &m.h, &m.x, m.form.sizes.output, &to.h_n);
            PyObject *cs = hs ? new_states(&m.form, &m.c, &m.x, m.form.sizes.hidden, &to.c_n) : NULL;
            fits = 1;
            if (cs && run_layers(&m, to, 0)) Py_INCREF(given), result = results_of(given, hs, cs);
            else if (cs) PyErr_NoMemory(), Py_DECREF(hs), Py_DECREF(cs);
            else Py_XDECREF(hs);
        }
    }
    PyMem_Free(starts);
    return fits || PyErr_Occurred() ? result : nothing();
}
static PyObject *right_count(const char *name, Py_ssize_t n, Py_ssize_t want) {
    return PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, got %zd", name, want, n);
}
static PyObject *frozen_lstm(PyObject *self, PyObject *const *values, Py_ssize_t n) {
    (void)self;
    return n == 8 ? call_frozen(values, 0, 0) : right_count("frozen_lstm", n, 8);
}
static PyObject *frozen_cell(PyObject *self, PyObject *const *values, Py_ssize_t n) {
    (void)self;
    return n == 5 ? call_frozen(values, 1, 0) : right_count("frozen_cell", n, 5);
}
static PyObject *frozen_step(PyObject *self, PyObject *const *values, Py_ssize_t n) {
    (void)self;
    return n == 5 ? call_frozen(values, 1, 1) : n == 8 ? call_frozen(values, 0, 1) : right_count("frozen_step", n, 8);
}
