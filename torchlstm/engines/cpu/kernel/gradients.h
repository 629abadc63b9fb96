/* The gradients of one layer's call in C: the time loop backward, and the products that it feeds.
 *
 * The Function in torchlstm/engines/cpu/training.py calls `gradients`, with tensors in the form that the user gave them.
 */
#pragma once
#include "training.h"

/* Bytes of dgates that a part of the backward makes before the weight products consume it, and elements between two
 * rows of them: as in torchlstm/engines/cpu/engine.py, where the measurement stands. */
enum { PART_BYTES = 8 << 20, ROW_PAD = 16 };

/* A gradient that comes in: of these rows or states, or NULL for zero. */
typedef struct { PyObject *made; tensor_t t; } incoming_t;

/* `rows`: the elements of each are side by side, and the rows in any order; else all is contiguous. */
static int read_incoming(incoming_t *in, PyObject *object, dl_dtype_t dtype, int dims, const int64_t *shape, int rows) {
    const dl_tensor_t *view = &in->t.view;
    in->made = NULL, in->t.object = NULL;
    if (object == Py_None) return 1;
    if (!read_plain(object, &in->t, dtype) || !has_shape(view, shape, dims) || is_negated(object, view)) return 0;
    if (rows ? view->strides[dims - 1] == 1 || shape[dims - 1] == 1 : is_contiguous(view)) return 1;
    in->made = PyObject_CallMethodObjArgs(object, word.contiguous, NULL);
    return in->made && read_plain(in->made, &in->t, dtype);
}
static const void *data_of(const incoming_t *in) { return in->t.object ? start_of(&in->t.view) : NULL; }

/* A product of the backward: out (M, N) (+)= a b; or, called without memory, what it needs. */
typedef struct { const form_t *f; char *scratch; size_t need; } products_t;

static void multiply(products_t *p, void *out, long ldo, const void *a, long lda, int turned, const void *b, long ldb,
                     long M, long N, long K, int add) {
    gemm_t g = { .out = out, .a = a, .b = b, .M = M, .N = N, .K = K, .ldo = ldo, .lda = lda, .ldb = ldb,
                 .turned = turned, .add = add, .element = p->f->sizes.element, .scratch = p->scratch };
    if (p->scratch) { torchlstm_gemm(&g, p->f->threads, p->f->isa); return; }
    size_t need = torchlstm_gemm_scratch(&g, p->f->threads, p->f->isa);
    if (need > p->need) p->need = need;
}

/* All that the backward of one call reads and writes. */
typedef struct {
    const form_t *f;
    const module_call_t *m;
    const char *x;                                /* (P, I) in order, if a weight's gradient wants it */
    const void *h_0;
    char *dx, *dw_ih[2], *dw_hh[2], *dw_hr[2];    /* NULL: not wanted */
    char *dh_0;                                   /* of one step      */
    backward_t job;
} gradients_t;

/* The products of the rows [low, low + n) of direction d, that came in this part of the buffers. */
static void products_of_part(const gradients_t *g, products_t *p, long d, long low, long n, int first) {
    const sizes_t *s = &g->f->sizes;
    const backward_t *job = &g->job;
    const long I = s->input, R = s->output, H = s->hidden, room = job->room, step = job->step;
    const size_t e = (size_t)s->element;
    const char *dgates = (const char *)job->dgates + (size_t)(d * room * step) * e;
    const char *before = job->before ? (const char *)job->before + (size_t)(d * room * R) * e : g->h_0;
    if (!job->before) before += (size_t)(d * s->batch * R) * e;
    if (g->dx)
        multiply(p, g->dx + (size_t)(low * I) * e, I, dgates, step, 0, g->m->of[0][d].w_ih, I, n, I, 4 * H,
                 s->directions == 2);
    if (g->dw_ih[d])
        multiply(p, g->dw_ih[d], I, dgates, step, 1, g->x + (size_t)(low * I) * e, I, 4 * H, I, n, !first);
    if (g->dw_hh[d]) multiply(p, g->dw_hh[d], R, dgates, step, 1, before, R, 4 * H, R, n, !first);
    if (g->dw_hr[d])
        multiply(p, g->dw_hr[d], H, (const char *)job->dh + (size_t)(d * room * R) * e, R, 1,
                 (const char *)job->raw + (size_t)(d * room * H) * e, H, R, H, n, !first);
    if (g->dh_0)
        multiply(p, g->dh_0 + (size_t)(d * n * R) * e, R, dgates, step, 0, g->m->of[0][d].w_hh, R, n, R, 4 * H, 0);
}

/* The loop over parts of `per_part` steps; without scratch, only what its products need. */
static void run_backward(gradients_t *g, products_t *p, long per_part) {
    const sizes_t *s = &g->f->sizes;
    for (long first = 0; first < s->steps; first += per_part) {
        long end = first + per_part < s->steps ? first + per_part : s->steps;
        g->job.from = first, g->job.to = end;
        if (p->scratch) torchlstm_backward(&g->job, g->f->threads, g->f->isa);
        for (long d = 0; d < s->directions; d++)
            products_of_part(g, p, d, (d ? first : s->steps - end) * s->batch, (end - first) * s->batch, !first);
        /* Parts are equal but for the last. */
        if (!p->scratch && s->steps - end >= per_part) first = (s->steps - end) / per_part * per_part;
    }
}

/* gradients(form, needs, saved, incoming) -> the gradient of every argument of the Function, or None: not for here.
 *
 * needs     of the Function: True for every argument that wants one, of which the first is the form
 * saved     (gates, cells, arguments...), or (gates, cells, h, arguments...) with a projection
 * incoming  (dy, dh_n, dc_n), of a cell (dh, dc); None for zero */
static PyObject *gradients(PyObject *self, PyObject *const *values, Py_ssize_t n) {
    (void)self;
    const form_t *f = n == 4 && PyCapsule_IsValid(values[0], FORM) ? PyCapsule_GetPointer(values[0], FORM) : NULL;
    if (!f || !is_tuple(values[1]) || !is_tuple(values[2]) || !is_tuple(values[3])) {
        PyErr_SetString(PyExc_TypeError, "gradients(form, needs, saved, incoming): a form and three tuples");
        return NULL;
    }
    const sizes_t *s = &f->sizes;
    const long D = s->directions, I = s->input, R = s->output, H = s->hidden, B = s->batch, P = s->steps * B;
    const size_t e = (size_t)s->element;
    const int each = 2 + 2 * f->bias + s->projected, kept = 2 + s->projected, step = s->steps == 1 && !s->projected;
    const Py_ssize_t count = 4 + each * D;
    PyObject *result = NULL, *of[4 + 2 * KINDS] = { 0 };
    incoming_t in[3] = { 0 };
    module_call_t m = { .form = *f };
    int bad = 0, wants[4 + 2 * KINDS];

    /* What there is. */
    if (PyTuple_Size(values[1]) != count || PyTuple_Size(values[2]) < kept || PyTuple_Size(values[3]) != 3 - f->cell
        || !tensors_are_plain() || !read_arguments(&m, values[2], kept, 1))
        goto unfit;
    for (Py_ssize_t i = 0; i < count; i++) wants[i] = PyTuple_GetItem(values[1], i) == Py_True;
    tensor_t gates, cells, h;
    const int64_t of_gates[] = { D, P, 4 * H }, of_cells[] = { D, P, H }, of_h[] = { P, D * R };
    if (!read_shaped(PyTuple_GetItem(values[2], 0), &gates, f->dtype, 3, of_gates)
        || !read_shaped(PyTuple_GetItem(values[2], 1), &cells, f->dtype, 3, of_cells)
        || (s->projected && !read_shaped(PyTuple_GetItem(values[2], 2), &h, f->dtype, 2, of_h)))
        goto unfit;
    int64_t shape[3], of_y[3] = { s->steps, B, D * R };
    int dims;
    if (f->batch_first) of_y[0] = B, of_y[1] = s->steps;
    if (!f->batched) of_y[1] = D * R;
    for (int i = f->cell; i < 3; i++) {
        const int64_t *want = i ? shape_of_states(f, i == 1 ? R : H, shape, &dims) : of_y;
        if (!read_incoming(&in[i], PyTuple_GetItem(values[3], i - f->cell), f->dtype, i ? dims : 2 + f->batched, want, !i))
            goto unfit;
    }
    /* What the Function has saved depends on what it needs; a hook may give back anything. */
    int any_ih = 0, any_hh = 0;
    for (int d = 0; d < D; d++) {
        any_ih |= wants[4 + d * each], any_hh |= wants[5 + d * each];
        if ((wants[1] && !m.of[0][d].w_ih) || (!m.of[0][d].w_hh && (!step || wants[2]))
            || (s->projected && !m.of[0][d].w_hr))
            goto unfit;
    }
    if (any_ih && !m.x.object) goto unfit;

    /* Memory. */
    gradients_t g = { .f = f, .m = &m, .job = { .sizes = *s } };
    products_t products = { .f = f };
    long row = 4 * H * D * s->element * B, per_part = PART_BYTES / row;
    if (per_part < 1) per_part = 1;
    if (per_part > s->steps) per_part = s->steps;
    const long room = per_part * B, stride = step ? 4 * H : 4 * H + ROW_PAD;
    rows_t rows = { .in_order = 1 }, of_dy = { .in_order = 1 };
    if (any_ih) rows = rows_in(f, &m.x.view, I);
    if (in[0].t.object) of_dy = rows_in(f, &in[0].t.view, D * R);
    scratch_t scratch = { 0 };
    const size_t work = reserve(&scratch, torchlstm_backward_scratch(&g.job, f->threads, f->isa));
    const size_t zeros = reserve(&scratch, m.h.object && m.c.object ? 0 : (size_t)(D * B * (R > H ? R : H)) * e);
    const size_t ordered = reserve(&scratch, rows.in_order ? 0 : (size_t)(P * I) * e);
    const size_t dy = reserve(&scratch, of_dy.in_order ? 0 : (size_t)(P * D * R) * e);
    const size_t dgates = reserve(&scratch, (size_t)(D * room * stride) * e);
    const size_t before = reserve(&scratch, step ? 0 : (size_t)(D * room * R) * e);
    const size_t dh = reserve(&scratch, s->projected ? (size_t)(D * room * R) * e : 0);
    const size_t raw = reserve(&scratch, s->projected ? (size_t)(D * room * H) * e : 0);
    const size_t dh_0 = reserve(&scratch, wants[2] || step ? 0 : (size_t)(D * B * R) * e);
    const size_t dc_0 = reserve(&scratch, wants[3] ? 0 : (size_t)(D * B * H) * e);
    const size_t db = reserve(&scratch, (size_t)(D * 4 * H) * e);

    void *to[4 + 2 * KINDS] = { 0 };
    tensor_t like = any_ih ? m.x : cells;
    const tensor_t like_c = m.c.object ? m.c : like, like_h = m.h.object ? m.h : like;
    if (wants[1]) bad = bad || !(of[1] = new_rows(f, &like, I, &to[1]));
    if (wants[2]) bad = bad || !(of[2] = new_states(f, &like_h, &like, R, &to[2]));
    if (wants[3]) bad = bad || !(of[3] = new_states(f, &like_c, &like, H, &to[3]));
    for (int d = 0; d < D; d++) {
        const int64_t shapes[KINDS][2] = { { 4 * H, I }, { 4 * H, R }, { 4 * H }, { 4 * H }, { R, H } };
        for (int k = 0, at = 4 + d * each; k < KINDS; k++) {
            if ((k == 2 || k == 3) ? !f->bias : k == 4 && !s->projected) continue;
            int matrix = k != 2 && k != 3;
            tensor_t model = like;
            PyObject *weight = m.weights[at - 4];
            if (k == 3 && of[at - 1]) read_plain(of[at - 1], &model, f->dtype);
            else if (weight != Py_None) read_plain(weight, &model, f->dtype);
            if (wants[at]) bad = bad || !(of[at] = new_tensor(model.object, &model.view, 1 + matrix, shapes[k], &to[at]));
            if (k == 0) g.dw_ih[d] = to[at];
            if (k == 1) g.dw_hh[d] = to[at];
            if (k == 4) g.dw_hr[d] = to[at];
            at++;
        }
    }
    if (bad) goto done;
    g.dx = to[1];
    if (step && wants[2]) g.dh_0 = to[2];
    g.x = rows.at;
    g.job.room = room, g.job.step = stride;
    run_backward(&g, &products, per_part);
    const size_t products_at = reserve(&scratch, products.need + SCRATCH_ALIGN);
    if (!take_scratch(&scratch)) { PyErr_NoMemory(); goto done; }

    /* The work. */
    PyThreadState *released = is_long(f) ? PyEval_SaveThread() : NULL;
    char *at = scratch.at;
    memset(at + zeros, 0, ordered - zeros);
    backward_t *job = &g.job;
    if (any_ih) g.x = in_order(f, rows, I, at + ordered);
    job->dy = in[0].t.object ? in_order(f, of_dy, D * R, at + dy) : NULL;
    job->dh_n = data_of(&in[1]), job->dc_n = data_of(&in[2]);
    job->gates = start_of(&gates.view), job->cells = start_of(&cells.view), job->y = s->projected ? start_of(&h.view) : NULL;
    g.h_0 = job->h_0 = m.h.object ? start_of(&m.h.view) : at + zeros;
    job->c_0 = m.c.object ? start_of(&m.c.view) : at + zeros;
    job->dgates = at + dgates, job->before = step ? NULL : at + before;
    if (s->projected) job->dh = at + dh, job->raw = at + raw;
    job->dh_0 = step ? NULL : wants[2] ? to[2] : at + dh_0;
    job->dc_0 = wants[3] ? to[3] : at + dc_0;
    job->db = at + db, job->scratch = at + work;
    for (int d = 0; d < D; d++) job->weights[d] = m.of[0][d];
    if (g.dx && D == 2) memset(g.dx, 0, (size_t)(P * I) * e);
    products.scratch = at + products_at;
    run_backward(&g, &products, per_part);
    for (int d = 0; d < D && f->bias; d++)
        for (int k = 2; k < 4; k++)
            if (to[4 + d * each + k]) memcpy(to[4 + d * each + k], at + db + (size_t)(d * 4 * H) * e, (size_t)(4 * H) * e);
    if (released) PyEval_RestoreThread(released);
    give_scratch(&scratch);
    if ((result = PyTuple_New(count)))
        for (Py_ssize_t i = 0; i < count; i++) {
            PyObject *one = of[i] ? of[i] : Py_None;
            Py_INCREF(one);
            if (PyTuple_SetItem(result, i, one)) { Py_DECREF(result); result = NULL; break; }
        }
    goto done;
unfit:
    if (PyErr_Occurred()) PyErr_Clear();
    result = Py_None, Py_INCREF(result);
done:
    for (int i = 0; i < 4 + 2 * KINDS; i++) Py_XDECREF(of[i]);
    for (int i = 0; i < 3; i++) Py_XDECREF(in[i].made);
    return result;
}
