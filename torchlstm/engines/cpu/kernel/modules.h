/* The whole call of a module, when nothing about it is special: plain tensors on the CPU, dense rows.
 *
 * Everything is read before anything is made.  A call that does not fit, an error of the user's included, is handed back to Python by
 * None: the checks that raise are there, and all that this file does not do.
 */
#pragma once
#include "moment.h"
#include "scratch.h"
#include "dispatch.h"

/* Layers whose parameters are known by name. */
enum { LAYERS = 16, KINDS = 5 };

/* A call as its module and its tensors' shapes make it. */
typedef struct {
    sizes_t sizes;                      /* of the first layer; the others' input is D R */
    long layers;
    int cell, batched, batch_first, bias, threads, isa;
    int format;                         /* of the weights: kernel.h */
    dl_dtype_t dtype;
} form_t;

/* A tensor and where it lies. */
typedef struct { PyObject *object; dl_tensor_t view; } tensor_t;

typedef struct {
    form_t form;
    tensor_t x, h, c;                   /* h.object NULL: zeros */
    PyObject *weights[LAYERS * 2 * KINDS];
    int count;                          /* of weights */
    weights_t of[LAYERS][2];
    const char *packed[LAYERS][2];      /* or packed */
} module_call_t;

/* Where the results of a call go: y (P, D R), h_n (L D, B, R), c_n (L D, B, H); y NULL: nobody asks for it.  `turned`: y is
 * (B, T, D R). */
typedef struct { void *y, *h_n, *c_n; int turned; } results_t;

/* --- reading --- */

static int read_plain(PyObject *object, tensor_t *t, dl_dtype_t dtype) {
    t->object = object;
    return look(object, &t->view) && same_dtype(t->view.dtype, dtype);
}
static int read_shaped(PyObject *object, tensor_t *t, dl_dtype_t dtype, int dims, const int64_t *shape) {
    return read_plain(object, t, dtype) && has_shape(&t->view, shape, dims) && is_contiguous(&t->view);
}

/* Names of weights: [0] a cell's, then those of an LSTM's layers and directions. */
static PyObject *weight_names[1 + LAYERS * 2][KINDS];

static int name_weights(void) {
    static const char *const kinds[KINDS] = { "weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr" };
    for (int i = 0; i < 1 + LAYERS * 2; i++)
        for (int k = 0; k < KINDS; k++) {
            char name[40];
            if (i) snprintf(name, sizeof name, "%s_l%d%s", kinds[k], (i - 1) / 2, (i - 1) % 2 ? "_reverse" : "");
            else snprintf(name, sizeof name, "%s", kinds[k]);
            if (!(weight_names[i][k] = PyUnicode_InternFromString(name))) return -1;
        }
    return 0;
}

/* The weights of one layer and direction, by kind, those that there are; 0 if they do not fit.  `partly`: None is no
 * misfit. */
static int read_weights(module_call_t *m, PyObject *const *weights, const sizes_t *s, weights_t *w, int partly) {
    const int64_t gates = 4 * s->hidden;
    const struct { int there, dims; int64_t shape[2]; const void **to; } kinds[KINDS] = {
        { 1, 2, { gates, s->input }, &w->w_ih },    { 1, 2, { gates, s->output }, &w->w_hh },
        { m->form.bias, 1, { gates }, &w->b_ih },   { m->form.bias, 1, { gates }, &w->b_hh },
        { s->projected, 2, { s->output, s->hidden }, &w->w_hr },
    };
    for (int k = 0; k < KINDS; k++) {
        tensor_t t;
        *kinds[k].to = NULL;
        if (!kinds[k].there) continue;
        m->weights[m->count++] = weights[k];
        if (partly && weights[k] == Py_None) continue;
        if (!weights[k] || !read_shaped(weights[k], &t, m->form.dtype, kinds[k].dims, kinds[k].shape)) return 0;
        *kinds[k].to = start_of(&t.view);
    }
    return 1;
}

/* The input: rows of I elements each, in any order. */
static int read_input(module_call_t *m, PyObject *input) {
    form_t *f = &m->form;
    if (!look(input, &m->x.view) || !(is_float(m->x.view.dtype) || is_half(m->x.view.dtype))) return 0;
    const dl_tensor_t *x = &m->x.view;
    int rank = f->cell ? 2 : 3;
    if (x->dims != rank && x->dims != rank - 1) return 0;
    m->x.object = input, f->batched = x->dims == rank, f->dtype = x->dtype;
    f->batch_first = f->batch_first && f->batched;
    sizes_t *s = &f->sizes;
    s->element = x->dtype.bits / 8;
    s->steps = f->cell ? 1 : (long)x->shape[f->batch_first];
    s->batch = !f->batched ? 1 : (long)x->shape[f->cell ? 0 : !f->batch_first];
    for (int i = 0; i < x->dims; i++)
        if (x->shape[i] < 1 || x->shape[i] > INT32_MAX) return 0;
    return x->shape[x->dims - 1] == s->input && (x->strides[x->dims - 1] == 1 || s->input == 1);
}

/* The shape of states (L D, B, F) in the user's form, to `shape` (3,); returns where it begins there. */
static int64_t *shape_of_states(const form_t *f, long width, int64_t *shape, int *dims) {
    shape[0] = f->layers * f->sizes.directions, shape[1] = f->sizes.batch, shape[2] = width;
    *dims = f->cell ? 2 : 3;
    if (f->batched) return shape + f->cell;
    if (f->cell) { *dims = 1; return shape + 2; }
    shape[1] = width, *dims = 2;
    return shape;
}

/* States, each of which may be None for zeros. */
static int read_states(module_call_t *m, PyObject *h, PyObject *c) {
    int64_t shape[3];
    int dims;
    m->h.object = m->c.object = NULL;
    const int64_t *of_h = shape_of_states(&m->form, m->form.sizes.output, shape, &dims);
    if (h != Py_None && !read_shaped(h, &m->h, m->form.dtype, dims, of_h)) return 0;
    const int64_t *of_c = shape_of_states(&m->form, m->form.sizes.hidden, shape, &dims);
    return c == Py_None || read_shaped(c, &m->c, m->form.dtype, dims, of_c);
}

/* Is an attribute None, the instance's or else its class's? */
static int is_none(PyObject *module, PyObject *dict, PyObject *name) {
    PyObject *own = PyDict_GetItemWithError(dict, name);
    if (own) return own == Py_None;
    PyObject *shared = PyObject_GetAttr((PyObject *)Py_TYPE(module), name);
    int none = shared == Py_None;
    Py_XDECREF(shared);
    if (!shared) PyErr_Clear();
    return none;
}

/* What the attributes of a module say; 0 if it is not for here. */
static int read_options(form_t *f, PyObject *module, PyObject *dict) {
    sizes_t *s = &f->sizes;
    s->input = number(dict, word.input_size), s->hidden = number(dict, word.hidden_size), s->output = s->hidden;
    s->directions = 1, f->layers = 1;
    if (f->cell) return s->input > 0 && s->hidden > 0;
    long proj = number(dict, word.proj_size);
    f->layers = number(dict, word.num_layers);
    f->bias = variable(dict, word.bias) == Py_True;
    f->batch_first = variable(dict, word.batch_first) == Py_True;
    s->directions = variable(dict, word.bidirectional) == Py_True ? 2 : 1;
    if (proj > 0) s->output = proj, s->projected = 1;
    if (f->layers > 1 && variable(dict, word.training) != Py_False) {
        PyObject *dropout = variable(dict, word.dropout);
        if (!PyFloat_Check(dropout) || PyFloat_AsDouble(dropout) != 0) return 0;
    }
    return s->input > 0 && s->hidden > 0 && proj >= 0 && f->layers > 0 && f->layers <= LAYERS
           && is_none(module, dict, word.checkpoint_every);
}

/* Reads a call of a module; 0 if it is not for here. */
static int read_module(module_call_t *m, PyObject *module, PyObject *dict, PyObject *input, PyObject *hx) {
    form_t *f = &m->form;
    PyObject *parameters = PyDict_GetItemWithError(dict, word._parameters);
    if (!parameters || !PyDict_Check(parameters) || !read_options(f, module, dict) || !read_input(m, input)) return 0;
    int none = hx == Py_None;
    if (!none && ((PyObject *)Py_TYPE(hx) != (PyObject *)&PyTuple_Type || PyTuple_Size(hx) != 2)) return 0;
    PyObject *h = none ? hx : PyTuple_GetItem(hx, 0), *c = none ? hx : PyTuple_GetItem(hx, 1);
    if ((!none && (h == Py_None || c == Py_None)) || !read_states(m, h, c)) return 0;
    /* A cell has both biases or none, whatever it was made with. */
    if (f->cell) f->bias = variable(parameters, weight_names[0][2]) != Py_None;
    if (f->cell && !f->bias && variable(parameters, weight_names[0][3]) != Py_None) return 0;
    sizes_t s = f->sizes;
    for (int l = 0; l < f->layers; l++, s.input = s.directions * s.output)
        for (int d = 0; d < s.directions; d++) {
            PyObject *weights[KINDS];
            for (int k = 0; k < KINDS; k++)
                weights[k] = PyDict_GetItemWithError(parameters, weight_names[f->cell ? 0 : 1 + l * 2 + d][k]);
            if (!read_weights(m, weights, &s, &m->of[l][d], 0)) return 0;
        }
    return 1;
}

/* Is the input or a state negated?  A contiguous weight cannot be: it has more than one element. */
static int any_negated(const module_call_t *m) {
    const tensor_t *all[] = { &m->x, &m->h, &m->c };
    for (int i = 0; i < 3; i++)
        if (all[i]->object && is_negated(all[i]->object, &all[i]->view)) return 1;
    return 0;
}
static int requires_grad(PyObject *tensor) { return has(tensor, word.requires_grad); }
static int any_requires_grad(const module_call_t *m) {
    int any = requires_grad(m->x.object) || (m->h.object && (requires_grad(m->h.object) || requires_grad(m->c.object)));
    for (int i = 0; i < m->count && !any; i++) any = requires_grad(m->weights[i]);
    return any;
}

/* --- rows --- */

/* Where rows (T, B, F) lie in a tensor of the input's form. */
typedef struct { const char *at; int64_t step, sequence; int in_order; } rows_t;

static rows_t rows_in(const form_t *f, const dl_tensor_t *t, long width) {
    const sizes_t *s = &f->sizes;
    if (s->starts) return (rows_t){ .at = start_of(t), .in_order = 1 };
    int time = f->batch_first ? 1 : 0;
    rows_t r = { .at = start_of(t) };
    r.sequence = f->batched ? t->strides[f->cell ? 0 : !f->batch_first] : 0, r.step = f->cell ? 0 : t->strides[time];
    if (s->batch == 1) r.sequence = width;
    if (s->steps == 1) r.step = s->batch * width;
    r.in_order = r.sequence == width && (s->steps == 1 || r.step == s->batch * width);
    return r;
}

/* The rows in the order of the steps: where they are, or copied to `room`. */
static const void *in_order(const form_t *f, rows_t r, long width, char *room) {
    const sizes_t *s = &f->sizes;
    if (r.in_order) return r.at;
    size_t bytes = (size_t)(width * s->element);
    char *to = room;
    for (long t = 0; t < s->steps; t++)
        for (long b = 0; b < s->batch; b++, to += bytes)
            memcpy(to, r.at + (t * r.step + b * r.sequence) * s->element, bytes);
    return room;
}

/* Copies rows (T, B, F) to (B, T, F). */
static void turn_rows(const form_t *f, const char *rows, size_t bytes, char *to) {
    const sizes_t *s = &f->sizes;
    for (long t = 0; t < s->steps; t++)
        for (long b = 0; b < s->batch; b++, rows += bytes) memcpy(to + (size_t)(b * s->steps + t) * bytes, rows, bytes);
}

/* --- results --- */

/* A new tensor of rows (T, B, F) in the input's form. */
static PyObject *new_rows(const form_t *f, const tensor_t *like, long width, void **data) {
    const sizes_t *s = &f->sizes;
    int64_t shape[3] = { s->steps, s->batch, width }, *from = shape;
    if (s->starts) {
        shape[0] = first_row(s, s->steps), shape[1] = width;
        return new_tensor(like->object, &like->view, 2, shape, data);
    }
    int dims = 3, turn = f->batch_first && s->steps > 1 && s->batch > 1;
    if (f->batch_first && !turn) shape[0] = s->batch, shape[1] = s->steps;
    if (f->cell) from++, dims--;
    if (!f->batched) { dims--; if (f->cell) from++; else shape[1] = width; }
    PyObject *made = new_tensor(like->object, &like->view, dims, from, data);
    if (!made || !turn) return made;
    PyObject *turned = PyObject_CallMethodObjArgs(made, word.transpose_, word.zero, word.one, NULL);
    Py_DECREF(made);
    return turned;
}

/* A new tensor of states (L D, B, F) in the user's form. */
static PyObject *new_states(const form_t *f, const tensor_t *given, const tensor_t *x, long width, void **data) {
    int64_t shape[3];
    int dims;
    const int64_t *from = shape_of_states(f, width, shape, &dims);
    const tensor_t *like = given->object ? given : x;
    return new_tensor(like->object, &like->view, dims, from, data);
}

/* (y, (h_n, c_n)), of a cell (h, c); takes over all three, of which y is NULL for a cell. */
static PyObject *results_of(PyObject *y, PyObject *h_n, PyObject *c_n) {
    PyObject *state = PyTuple_Pack(2, h_n, c_n), *result = state;
    Py_DECREF(h_n), Py_DECREF(c_n);
    if (!y) return state;
    result = state ? PyTuple_Pack(2, y, state) : NULL;
    Py_DECREF(y);
    Py_XDECREF(state);
    return result;
}

/* --- the call without gradients --- */

/* Multiplications for which it pays to let other threads of Python run meanwhile: to get the interpreter's lock back may take 5
 * ms.  Measured with cells of 256 units, 524000 multiplications or 50 us, on two cores: two threads that both call make 27800 calls
 * a second if each lets the other run, and 19000 if not; one beside a thread that spins in Python, 60 and 13000. */
enum { RELEASE_WORK = 1000000 };
static int is_long(const form_t *f) {
    const sizes_t *s = &f->sizes;
    return (double)f->layers * s->directions * 4. * (double)s->hidden * (double)(s->input + s->output)
               * (double)first_row(s, s->steps) > RELEASE_WORK;
}

/* The most bytes of scratch that a layer of `job` needs; its input changes. */
static size_t scratch_of_layers(const form_t *f, forward_t *job) {
    size_t first = torchlstm_forward_scratch(job, f->threads, f->isa);
    if (f->layers == 1) return first;
    job->sizes.input = job->sizes.directions * job->sizes.output;
    size_t other = torchlstm_forward_scratch(job, f->threads, f->isa);
    return other > first ? other : first;
}

/* Runs all layers; 0 if there is no memory.  The last states may be written over the first: `same`. */
static int run_layers(const module_call_t *m, results_t to, int same) {
    const form_t *f = &m->form;
    const sizes_t *first = &f->sizes;
    const long D = first->directions, R = first->output, H = first->hidden, B = first->batch, P = first_row(first, first->steps);
    const size_t element = (size_t)first->element, row = (size_t)(D * R) * element;
    const size_t of_h = (size_t)(D * B * R) * element, of_c = (size_t)(D * B * H) * element;
    forward_t job = { .sizes = *first, .format = f->format };
    const size_t kernel = scratch_of_layers(f, &job);
    rows_t rows = rows_in(f, &m->x.view, first->input);
    scratch_t scratch = { 0 };
    size_t work = reserve(&scratch, kernel), between[2] = { 0 };
    size_t zeros = reserve(&scratch, m->h.object ? 0 : of_h > of_c ? of_h : of_c);
    size_t ordered = reserve(&scratch, rows.in_order ? 0 : (size_t)(P * first->input) * element);
    size_t before = reserve(&scratch, same ? of_h + of_c : 0);
    const long inner = f->layers - (to.y && !to.turned);     /* layers whose output is not a result's memory */
    if (inner > 0) between[0] = reserve(&scratch, (size_t)P * row);
    if (inner > 1) between[1] = reserve(&scratch, (size_t)P * row);
    if (!take_scratch(&scratch)) return 0;

    PyThreadState *released = is_long(f) ? PyEval_SaveThread() : NULL;
    memset(scratch.at + zeros, 0, ordered - zeros);
    job.x = in_order(f, rows, first->input, scratch.at + ordered);
    job.scratch = kernel ? scratch.at + work : NULL;
    for (long l = 0; l < f->layers; l++) {
        job.sizes.input = l ? D * R : first->input;
        job.h_0 = m->h.object ? (const char *)start_of(&m->h.view) + (size_t)l * of_h : scratch.at + zeros;
        job.c_0 = m->c.object ? (const char *)start_of(&m->c.view) + (size_t)l * of_c : scratch.at + zeros;
        if (same) {
            job.h_0 = memcpy(scratch.at + before, job.h_0, of_h), job.c_0 = memcpy(scratch.at + before + of_h, job.c_0, of_c);
        }
        job.h_n = (char *)to.h_n + (size_t)l * of_h, job.c_n = (char *)to.c_n + (size_t)l * of_c;
        job.y = l < inner ? scratch.at + between[l % 2] : to.y;
        for (long d = 0; d < D; d++) job.weights[d] = m->of[l][d], job.packed[d] = m->packed[l][d];
        torchlstm_forward(&job, f->threads, f->isa);
        job.x = job.y;
    }
    if (to.turned) turn_rows(f, job.y, row, to.y);
    if (released) PyEval_RestoreThread(released);
    give_scratch(&scratch);
    return 1;
}

/* The results of a call whose layers `run` runs. */
static PyObject *infer(const module_call_t *m, int (*run)(const module_call_t *, results_t, int same)) {
    const form_t *f = &m->form;
    const sizes_t *s = &f->sizes;
    results_t to = { 0 };
    PyObject *out = f->cell ? NULL : new_rows(f, &m->x, s->directions * s->output, &to.y);
    PyObject *hs = out || f->cell ? new_states(f, &m->h, &m->x, s->output, &to.h_n) : NULL;
    PyObject *cs = hs ? new_states(f, &m->c, &m->x, s->hidden, &to.c_n) : NULL;
    if (cs && run(m, to, 0)) return results_of(out, hs, cs);
    Py_XDECREF(out), Py_XDECREF(hs), Py_XDECREF(cs);
    return cs ? PyErr_NoMemory() : NULL;
}
