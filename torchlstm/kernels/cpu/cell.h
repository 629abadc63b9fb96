/* The cell's arithmetic, forward and backward, for one block of LANES units and some rows. */

/* Pointers of a cell: row r of x at x + r * x_step. */
typedef struct {
    const REAL *acc;                    /* (rows, 4, LANES) gates before activation               */
    REAL *c, *h;                        /* states: c in and out, h out                            */
    REAL *gates, *cells;                /* activated gates, LANES of each at stride H, and c; or NULL */
    long H, h_step;                     /* c, cells: row stride H; gates: 4H                      */
} FN(cells_t);

/* One exponential a gate, and two divisions: i, f and g share one, o and tanh(c) the other. */
INLINE void FN(cells)(FN(cells_t) p, long rows, const long n) {
#pragma GCC unroll 1
    for (; rows > 0; rows--) {
        vec ei = FN(expm1)(*(const vec *)p.acc, -1) + 2;                          /* i = 1 / ei         */
        vec ef = FN(expm1)(*(const vec *)(p.acc + LANES), -1) + 2;
        vec eg = FN(expm1)(*(const vec *)(p.acc + 2 * LANES), 2), eg2 = eg + 2;   /* tanh g = eg / eg2  */
        vec eo = FN(expm1)(*(const vec *)(p.acc + 3 * LANES), -1) + 2;
        vec fe = ef * eg, ig = ei * eg2, one = 1 / (ef * ig), f = one * ig;
        vec c = f * FN(load)(p.c, n) + one * fe;
        vec ec = FN(expm1)(c, 2), oc = 1 / (eo * (ec + 2));
        FN(store)(p.c, c, n);
        FN(store)(p.h, ec * oc, n);
        if (p.gates) {
            FN(store)(p.gates, one * ef * eg2, n);
            FN(store)(p.gates + p.H, f, n);
            FN(store)(p.gates + 2 * p.H, one * fe * ei, n);
            FN(store)(p.gates + 3 * p.H, oc * (ec + 2), n);
            FN(store)(p.cells, c, n);
            p.gates += 4 * p.H, p.cells += p.H;
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
    REAL *db;                           /* (4, LANES), the rows' sum is added                     */
    REAL *raw;                          /* out, or NULL: o tanh c, row stride H                   */
    const REAL *gates, *c, *c_before;   /* activated gates, row stride 4H; c after and before, row stride H */
    const REAL *dh;                     /* (rows, LANES)                                          */
    const REAL *dy;                     /* or NULL: is added to dh                                */
    long H, dy_step, step;
} FN(cells_back_t);

INLINE void FN(cells_back)(FN(cells_back_t) p, long rows, const long n) {
    vec si = {0}, sf = {0}, sg = {0}, so = {0};
#pragma GCC unroll 1
    for (; rows > 0; rows--) {
        vec dh = *(const vec *)p.dh;
        if (p.dy) dh += FN(load)(p.dy, n), p.dy += p.dy_step;
        vec i = FN(load)(p.gates, n), f = FN(load)(p.gates + p.H, n);
        vec g = FN(load)(p.gates + 2 * p.H, n), o = FN(load)(p.gates + 3 * p.H, n);
        vec e = FN(expm1)(FN(load)(p.c, n), 2), tc = e / (e + 2);
        vec dc = FN(load)(p.dc, n) + dh * o * (1 - tc * tc);
        vec di = dc * g * (i - i * i), df = dc * FN(load)(p.c_before, n) * (f - f * f);
        vec dg = dc * i * (1 - g * g), do_ = dh * tc * (o - o * o);
        FN(store)(p.dc, dc * f, n);
        FN(store)(p.dgates, di, n);
        FN(store)(p.dgates + p.H, df, n);
        FN(store)(p.dgates + 2 * p.H, dg, n);
        FN(store)(p.dgates + 3 * p.H, do_, n);
        si += di, sf += df, sg += dg, so += do_;
        if (p.raw) FN(store)(p.raw, o * tc, n), p.raw += p.H;
        p.dh += LANES, p.gates += 4 * p.H, p.dgates += p.step;
        p.c += p.H, p.c_before += p.H, p.dc += p.H;
    }
    *(vec *)p.db += si;
    *(vec *)(p.db + LANES) += sf;
    *(vec *)(p.db + 2 * LANES) += sg;
    *(vec *)(p.db + 3 * LANES) += so;
}
NOINLINE void FN(cells_back_whole)(FN(cells_back_t) p, long rows) { FN(cells_back)(p, rows, LANES); }
NOINLINE void FN(cells_back_part)(FN(cells_back_t) p, long rows, long n) { FN(cells_back)(p, rows, n); }
INLINE void FN(run_cells_back)(FN(cells_back_t) p, long rows, long n) {
    if (n >= LANES) FN(cells_back_whole)(p, rows);
    else FN(cells_back_part)(p, rows, n);
}
