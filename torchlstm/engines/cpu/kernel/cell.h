/* The cell's arithmetic, forward and backward, for one block of LANES units and some rows. */

/* Pointers of a cell: row r of x at x + r * x_step. */
typedef struct {
    const REAL *acc;                    /* (rows, 4, LANES) gates before activation               */
    REAL *c, *h;                        /* states: c in and out, h out                            */
    REAL *gates, *cells;                /* activated gates, LANES of each at stride H, and c; or NULL */
    long H, h_step;                     /* c, cells: row stride H; gates: 4H                      */
} FN(cells_t);

/* For inference: one exponential a gate and two divisions, of which i, f and g share one, o and tanh(c) the other.
 * Exponentials up to e^EXP_SHARED, sum_o that products of three stay finite.
 *
 * For training: a division each.  A gate that is saturated is then exactly 0 or 1 (1 / e^EXP_TOP is a denormal, and
 * flushed), and its slope exactly 0, as torch has it; a rounding error of 1e-7 in 1 - g g would be all of a gradient
 * that has vanished, and times an infinite input it would be infinite, not NaN. */
INLINE void FN(cells)(FN(cells_t) p, long rows, const long n) {
    ROLL
    for (; rows > 0; rows--) {
        vec ai = *(const vec *)p.acc, af = *(const vec *)(p.acc + LANES);
        vec ag = *(const vec *)(p.acc + 2 * LANES), ao = *(const vec *)(p.acc + 3 * LANES);
        if (p.gates) {
            vec i = 1 / FN(exp)(ai, -1, 1, EXP_TOP), f = 1 / FN(exp)(af, -1, 1, EXP_TOP);
            vec g = FN(tanh)(ag), o = 1 / FN(exp)(ao, -1, 1, EXP_TOP), c = f * FN(load)(p.c, n) + i * g;
            FN(store)(p.c, c, n);
            FN(store)(p.h, o * FN(tanh)(c), n);
            FN(store)(p.gates, i, n);
            FN(store)(p.gates + p.H, f, n);
            FN(store)(p.gates + 2 * p.H, g, n);
            FN(store)(p.gates + 3 * p.H, o, n);
            FN(store)(p.cells, c, n);
            p.gates += 4 * p.H, p.cells += p.H;
        } else {
            vec ei = FN(exp)(ai, -1, 1, EXP_SHARED), ef = FN(exp)(af, -1, 1, EXP_SHARED); /* i = 1 / ei */
            vec eg = FN(exp)(ag, 2, -1, EXP_SHARED), eg2 = eg + 2;                        /* tanh g = eg / eg2 */
            vec eo = FN(exp)(ao, -1, 1, EXP_SHARED);
            vec fe = ef * eg, ig = ei * eg2, one = 1 / (ef * ig);
            vec c = one * ig * FN(load)(p.c, n) + one * fe, ec = FN(exp)(c, 2, -1, EXP_SHARED);
            FN(store)(p.c, c, n);
            FN(store)(p.h, ec / (eo * (ec + 2)), n);
        }
        p.acc += 4 * LANES, p.c += p.H, p.h += p.h_step;
    }
}

/* `n` units of the block are real; LANES is the common case. */
NOINLINE void FN(cells_whole)(FN(cells_t) p, long rows) { FN(cells)(p, rows, LANES); }
NOINLINE void FN(cells_part)(FN(cells_t) p, long rows, long n) { FN(cells)(p, rows, n); }
INLINE void FN(run_cells)(FN(cells_t) p, long rows, long n) {
    if (n >= LANES) FN(cells_whole)(p, rows);
    else FN(cells_part)(p, rows, n);
}

typedef struct {
    REAL *dgates;                       /* out: LANES of each gate at stride H, row stride `step` */
    REAL *dc;                           /* in and out, row stride H                               */
    REAL *db;                           /* (4, LANES), the rows' sum is added; with db_step (rows, 4, LANES) */
    REAL *raw;                          /* out, or NULL: o tanh c, row stride H                   */
    const REAL *gates, *c, *c_before;   /* activated gates, row stride 4H; c after and before, row stride H */
    const REAL *dh;                     /* (rows, LANES)                                          */
    const REAL *dy;                     /* or NULL: is added to dh                                */
    const REAL *dacts, *dcells;         /* or NULL: gradients of gates and c, laid out as these   */
    long H, dy_step, step, db_step;     /* db_step: between the rows of db, or 0                  */
} FN(cells_back_t);

INLINE void FN(add_biases)(REAL *db, given i, given f, given g, given o) {
    *(vec *)db += i, *(vec *)(db + LANES) += f, *(vec *)(db + 2 * LANES) += g, *(vec *)(db + 3 * LANES) += o;
}

INLINE void FN(cells_back)(FN(cells_back_t) p, long rows, const long n, const int traced) {
    vec sum_i = {0}, sum_f = {0}, sum_g = {0}, sum_o = {0};
    ROLL
    for (; rows > 0; rows--) {
        vec dh = *(const vec *)p.dh;
        if (p.dy) dh += FN(load)(p.dy, n), p.dy += p.dy_step;
        vec i = FN(load)(p.gates, n), f = FN(load)(p.gates + p.H, n);
        vec g = FN(load)(p.gates + 2 * p.H, n), o = FN(load)(p.gates + 3 * p.H, n);
        vec tc = FN(tanh)(FN(load)(p.c, n)), dc = FN(load)(p.dc, n) + dh * o * (1 - tc * tc);
        if (traced && p.dcells) dc += FN(load)(p.dcells, n), p.dcells += p.H;
        vec di = dc * g, df = dc * FN(load)(p.c_before, n), dg = dc * i, do_ = dh * tc;
        if (traced && p.dacts) {
            di += FN(load)(p.dacts, n), df += FN(load)(p.dacts + p.H, n);
            dg += FN(load)(p.dacts + 2 * p.H, n), do_ += FN(load)(p.dacts + 3 * p.H, n);
            p.dacts += 4 * p.H;
        }
        di *= i - i * i, df *= f - f * f, dg *= 1 - g * g, do_ *= o - o * o;
        FN(store)(p.dc, dc * f, n);
        FN(store)(p.dgates, di, n);
        FN(store)(p.dgates + p.H, df, n);
        FN(store)(p.dgates + 2 * p.H, dg, n);
        FN(store)(p.dgates + 3 * p.H, do_, n);
        if (p.db_step) FN(add_biases)(p.db, di, df, dg, do_), p.db += p.db_step;
        else sum_i += di, sum_f += df, sum_g += dg, sum_o += do_;
        if (p.raw) FN(store)(p.raw, o * tc, n), p.raw += p.H;
        p.dh += LANES, p.gates += 4 * p.H, p.dgates += p.step;
        p.c += p.H, p.c_before += p.H, p.dc += p.H;
    }
    if (!p.db_step) FN(add_biases)(p.db, sum_i, sum_f, sum_g, sum_o);
}
NOINLINE void FN(cells_back_whole)(FN(cells_back_t) p, long rows) { FN(cells_back)(p, rows, LANES, 0); }
NOINLINE void FN(cells_back_part)(FN(cells_back_t) p, long rows, long n) { FN(cells_back)(p, rows, n, 0); }
NOINLINE void FN(cells_back_traced)(FN(cells_back_t) p, long rows) { FN(cells_back)(p, rows, LANES, 1); }
NOINLINE void FN(cells_back_traced_part)(FN(cells_back_t) p, long rows, long n) { FN(cells_back)(p, rows, n, 1); }
INLINE void FN(run_cells_back)(FN(cells_back_t) p, long rows, long n) {
    int traced = p.dacts || p.dcells;
    if (n >= LANES && !traced) FN(cells_back_whole)(p, rows);
    else if (n >= LANES) FN(cells_back_traced)(p, rows);
    else if (!traced) FN(cells_back_part)(p, rows, n);
    else FN(cells_back_traced_part)(p, rows, n);
}
