/* The training of one layer's call in C: the forward, which keeps what the backward needs, and the calls of modules.
 *
 * The Function in torchlstm/engines/cpu/training.py calls `keep`, with tensors in the form that the user gave them.
 */
#pragma once
#include "halves.h"

#define FORM "torchlstm.engines.cpu.form"
static void free_form(PyObject *capsule) { PyMem_Free(PyCapsule_GetPointer(capsule, FORM)); }
static PyObject *new_form(const form_t *f) {
    form_t *kept = PyMem_Malloc(sizeof *kept);
    if (!kept) return PyErr_NoMemory();
    *kept = *f;
    PyObject *capsule = PyCapsule_New(kept, FORM, free_form);
    if (!capsule) PyMem_Free(kept);
    return capsule;
}

/* The arguments of the Function, from item `at` of a tuple on: the input, both states, and the weights of all directions,
 * those that there are.  `partly`: any of them may be None. */
static int read_arguments(module_call_t *m, PyObject *tuple, Py_ssize_t at, int partly) {
    const form_t kept = m->form;
    const sizes_t *s = &kept.sizes;
    const int there[KINDS] = { 1, 1, kept.bias, kept.bias, s->projected };
    if (PyTuple_Size(tuple) != at + 3 + (2 + 2 * kept.bias + s->projected) * s->directions) return 0;
    PyObject *x = PyTuple_GetItem(tuple, at++);
    m->x.object = NULL, m->count = 0;
    if (!partly || x != Py_None) {
        if (!read_input(m, x) || m->form.sizes.steps != s->steps || m->form.sizes.batch != s->batch
            || m->form.batched != kept.batched || !same_dtype(m->form.dtype, kept.dtype))
            return 0;
    }
    if (!read_states(m, PyTuple_GetItem(tuple, at), PyTuple_GetItem(tuple, at + 1))) return 0;
    at += 2;
    for (int d = 0; d < s->directions; d++) {
        PyObject *weights[KINDS] = { 0 };
        for (int k = 0; k < KINDS; k++)
            if (there[k]) weights[k] = PyTuple_GetItem(tuple, at++);
        if (!read_weights(m, weights, s, &m->of[0][d], partly)) return 0;
    }
    return 1;
}

static int is_tuple(PyObject *object) { return (PyObject *)Py_TYPE(object) == (PyObject *)&PyTuple_Type; }

/* --- forward --- */

/* keep(form, arguments) -> (results, saved): results in the user's form, (y, h_n, c_n), of a cell (h, c); saved: gates
 * (D, P, 4H), cells (D, P, H), and with a projection a copy of y (P, D R). */
static PyObject *keep(PyObject *self, PyObject *const *values, Py_ssize_t n) {
    (void)self;
    const form_t *f = n == 2 && PyCapsule_IsValid(values[0], FORM) ? PyCapsule_GetPointer(values[0], FORM) : NULL;
    module_call_t m = { 0 };
    if (f) m.form = *f;
    if (!f || !is_tuple(values[1]) || !read_arguments(&m, values[1], 0, 0)) {
        PyErr_SetString(PyExc_ValueError, "keep: arguments that are not those the form was made of");
        return NULL;
    }
    const sizes_t *s = &f->sizes;
    const long D = s->directions, R = s->output, H = s->hidden, B = s->batch, P = s->steps * B;
    const size_t element = (size_t)s->element;
    forward_t job = { .sizes = *s };
    rows_t rows = rows_in(f, &m.x.view, s->input);
    scratch_t scratch = { 0 };
    size_t work = reserve(&scratch, torchlstm_forward_scratch(&job, f->threads, f->isa));
    size_t zeros = reserve(&scratch, m.h.object && m.c.object ? 0 : (size_t)(D * B * (R > H ? R : H)) * element);
    size_t ordered = reserve(&scratch, rows.in_order ? 0 : (size_t)(P * s->input) * element);
    size_t output = reserve(&scratch, f->cell ? (size_t)(P * R) * element : 0);

    void *y = NULL, *copy = NULL;
    const int64_t of_gates[] = { D, P, 4 * H }, of_cells[] = { D, P, H }, of_copy[] = { P, D * R };
    PyObject *out = f->cell ? NULL : new_rows(f, &m.x, D * R, &y);
    PyObject *hs = out || f->cell ? new_states(f, &m.h, &m.x, R, &job.h_n) : NULL;
    PyObject *cs = hs ? new_states(f, &m.c, &m.x, H, &job.c_n) : NULL;
    PyObject *gates = cs ? new_tensor(m.x.object, &m.x.view, 3, of_gates, &job.gates) : NULL;
    PyObject *cells = gates ? new_tensor(m.x.object, &m.x.view, 3, of_cells, &job.cells) : NULL;
    PyObject *h = cells && s->projected ? new_tensor(m.x.object, &m.x.view, 2, of_copy, &copy) : NULL;
    int made = cells && (h || !s->projected);
    if (!made || !take_scratch(&scratch)) {
        Py_XDECREF(out), Py_XDECREF(hs), Py_XDECREF(cs), Py_XDECREF(gates), Py_XDECREF(cells), Py_XDECREF(h);
        return made ? PyErr_NoMemory() : NULL;
    }
    PyThreadState *released = is_long(f) ? PyEval_SaveThread() : NULL;
    memset(scratch.at + zeros, 0, ordered - zeros);
    job.x = in_order(f, rows, s->input, scratch.at + ordered);
    job.h_0 = m.h.object ? start_of(&m.h.view) : scratch.at + zeros;
    job.c_0 = m.c.object ? start_of(&m.c.view) : scratch.at + zeros;
    job.y = y ? y : scratch.at + output;
    job.scratch = scratch.at + work;
    for (long d = 0; d < D; d++) job.weights[d] = m.of[0][d];
    torchlstm_forward(&job, f->threads, f->isa);
    if (copy) memcpy(copy, job.y, (size_t)(P * D * R) * element);
    if (released) PyEval_RestoreThread(released);
    give_scratch(&scratch);

    PyObject *results = out ? PyTuple_Pack(3, out, hs, cs) : PyTuple_Pack(2, hs, cs);
    PyObject *saved = h ? PyTuple_Pack(3, gates, cells, h) : PyTuple_Pack(2, gates, cells);
    PyObject *both = results && saved ? PyTuple_Pack(2, results, saved) : NULL;
    Py_XDECREF(out), Py_DECREF(hs), Py_DECREF(cs), Py_DECREF(gates), Py_DECREF(cells), Py_XDECREF(h);
    Py_XDECREF(results), Py_XDECREF(saved);
    return both;
}

/* form(form) -> (T, B, D, batch_first, batched, cell, projected): what Python needs to compute the same. */
static PyObject *shape_of_form(PyObject *self, PyObject *capsule) {
    (void)self;
    const form_t *f = PyCapsule_GetPointer(capsule, FORM);
    if (!f) return NULL;
    const sizes_t *s = &f->sizes;
    return Py_BuildValue("llliiii", s->steps, s->batch, (long)s->directions, f->batch_first, f->batched, f->cell,
                         s->projected);
}

/* --- calls of modules --- */

/* (y, (h_n, c_n)) of a tuple (y, h_n, c_n), which is given up. */
static PyObject *paired(PyObject *three) {
    PyObject *result = NULL;
    if (PyTuple_Check(three) && PyTuple_Size(three) == 3) {
        PyObject *all[3];
        for (int i = 0; i < 3; i++) all[i] = PyTuple_GetItem(three, i), Py_INCREF(all[i]);
        result = results_of(all[0], all[1], all[2]);
    } else {
        PyErr_SetString(PyExc_TypeError, "a layer has three results");
    }
    Py_DECREF(three);
    return result;
}

/* The results of a call, what `apply` makes of (form, input, h, c, weights...) where gradients are wanted, or None. */
static PyObject *call_module(PyObject *const *values, Py_ssize_t n, int cell) {
    if (n != 4) {
        PyErr_Format(PyExc_TypeError, "expected (module, input, hx, apply), got %zd values", n);
        return NULL;
    }
    module_call_t m = { .form = { .cell = cell } };
    PyObject *result = NULL, *dict = torch.connected && is_tensor(values[1]) ? PyObject_GenericGetDict(values[0], NULL) : NULL;
    int fits = dict && PyDict_Check(dict) && read_module(&m, values[0], dict, values[1], values[2]);
    /* Another thread may replace a weight as soon as Python runs. */
    for (int i = 0; i < m.count && fits; i++) Py_INCREF(m.weights[i]);
    const int held = fits ? m.count : 0;
    fits = fits && tensors_are_plain() && nobody_watches() && !any_negated(&m) && (m.form.isa = isa_now()) >= 0;
    const int half = is_half(m.form.dtype);
    if (half && m.form.dtype.code == DL_BFLOAT && m.form.isa >= AVX512) m.form.isa = BFLOAT16;
    if (fits) {
        if (!(m.form.threads = threads_now())) {
            result = NULL;
        } else if (!ask(torch.is_grad_enabled) || !any_requires_grad(&m)) {
            if (!half) result = infer(&m, run_layers);
            else if (widens_little(&m.form)) result = infer(&m, run_halves);
            else fits = 0;
        } else if (m.form.layers == 1 && !half) {
            PyObject *form = new_form(&m.form), *arguments = form ? PyTuple_New(4 + m.count) : NULL;
            if (arguments) {
                PyObject *h = m.h.object ? m.h.object : Py_None, *c = m.c.object ? m.c.object : Py_None;
                PyObject *four[] = { form, m.x.object, h, c };
                for (int i = 0; i < 4 + m.count; i++) {
                    PyObject *one = i < 4 ? four[i] : m.weights[i - 4];
                    Py_INCREF(one);
                    PyTuple_SetItem(arguments, i, one);
                }
                result = PyObject_CallObject(values[3], arguments);
                if (result && !cell) result = paired(result);
            }
            Py_XDECREF(form), Py_XDECREF(arguments);
        } else {
            fits = 0;
        }
    }
    for (int i = 0; i < held; i++) Py_DECREF(m.weights[i]);
    Py_XDECREF(dict);
    if (fits) return result;
    if (PyErr_Occurred()) PyErr_Clear();
    Py_RETURN_NONE;
}
static PyObject *call_lstm(PyObject *self, PyObject *const *values, Py_ssize_t n) { (void)self; return call_module(values, n, 0); }
static PyObject *call_cell(PyObject *self, PyObject *const *values, Py_ssize_t n) { (void)self; return call_module(values, n, 1); }
