/* Chooses the instruction set and the number of threads of a call, and opens the region in which the threads do their parts. */
#include "dispatch.h"
#include "processor.h"

int torchlstm_isa(int wanted) {
#if defined __x86_64__
    __builtin_cpu_init();
    if (wanted >= AVX2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        if (wanted == BFLOAT16 && have_bfloat16()) return BFLOAT16;
        return wanted >= AVX512 && have_avx512() ? AVX512 : AVX2;
    }
#endif
    return PORTABLE;
}

static const kernels_t *kernels_of(int element, int isa) {
    int type = element == 8;
#if defined __x86_64__
    switch (torchlstm_isa(isa)) {
#if HAVE_BFLOAT16
#if HAVE_AMX
    case BFLOAT16: if (!type) return (have_amx(BFLOAT16_TILES) ? torchlstm_amx_bfloat16 : torchlstm_bfloat16)[0]; /* fall through */
#else
    case BFLOAT16: if (!type) return torchlstm_bfloat16[0]; /* fall through */
#endif
#endif
    case AVX512: return torchlstm_avx512[type];
    case AVX2: return torchlstm_avx2[type];
    }
#endif
    return torchlstm_portable[type];
}

static const kernels_t *kernels(const sizes_t *s, int isa) { return kernels_of(s->element, isa); }

/* Without VNNI, AVX2's products of int8 are used where there is AVX-512. */
static int isa_of(int format, int isa) {
    isa = torchlstm_isa(format != UNPACKED && isa == BFLOAT16 ? BEST : isa);
#if defined __x86_64__
    if (format == IN_INT8 && isa == AVX512 && !have_vnni()) return AVX2;
#endif
    return isa;
}
static const kernels_t *forward_kernels(const forward_t *f, int isa) {
    isa = isa_of(f->format, isa);
    if (f->format <= AS_THEY_ARE) return kernels(&f->sizes, isa);
    const int format = f->format - IN_BFLOAT16;
#if defined __x86_64__
#if HAVE_VNNI
#if HAVE_AMX
    if (f->format == IN_INT8 && isa == AVX512 && have_amx(INT8_TILES)) return torchlstm_packed_amx[format];
#endif
    if (f->format == IN_INT8 && isa == AVX512) return torchlstm_packed_vnni[format];
#endif
    if (isa == AVX512) return torchlstm_packed_avx512[format];
    if (isa == AVX2) return torchlstm_packed_avx2[format];
#endif
    return torchlstm_packed_portable[format];
}

packed_t torchlstm_packed(const sizes_t *s, int format, int isa) {
    forward_t f = { .format = format, .sizes = *s };
    packed_t p = { .isa = isa_of(format, isa), .lanes = forward_kernels(&f, isa)->lanes, .beside = 1 };
    if (format == IN_BFLOAT16) p.beside = 2;
    if (format == IN_INT8) p.beside = p.isa == AVX2 ? 2 : 4;
    p.bytes = (size_t)plan_packed(s, format, p.lanes).total * (size_t)s->element;
    return p;
}

/* Multiplications that a thread should have before another one helps: in several steps, in one, and between two meetings.
 * Measured on two cores of an AMD Zen 4, threads alone on them.  Several steps forward: 220000 gain 0 to 2 %, 400000 9 %,
 * 110000 lose 5 %.  One step: 100000 gain 1 %, 130000 10 %.  Between meetings: 9000 lose 1 %, 16000 gain 5 %. */
#if defined SPREAD_THIN
/* For tests: every thread takes part, however little there is to do. */
enum { WORK = 1, SINGLE_WORK = 1, STEP_WORK = 1, PRODUCT_WORK = 1 };
#else
enum { WORK = 200000, SINGLE_WORK = 100000, STEP_WORK = 12000, PRODUCT_WORK = 300000 };
#endif

/* One step backward has no product, and its cell counts as 8 multiplications.  Measured: a second thread gains nothing on 33000 cells,
 * a third on 130000, and loses a quarter on 500. */
enum { CELL_WORK = 8 };

static int teams_of(const sizes_t *s, int threads) { return s->directions == 2 && threads % 2 == 0 ? 2 : 1; }

/* The number of threads worth using, forward or `back`: no more than asked for. */
static int useful(const sizes_t *s, int back, int threads, int lanes) {
    double step = 4. * (double)s->hidden * (double)(s->steps == 1 ? s->output + s->input : s->output);
    double rows = (double)first_row(s, s->steps), cells = rows * (double)s->directions * (double)s->hidden;
    double all = cells * (!back ? 4. * (double)(s->output + s->input) : single(s) ? CELL_WORK : 4. * (double)s->output);
    double least = single(s) && !back ? SINGLE_WORK : WORK;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (threads > 1 + all / least) threads = (int)(1 + all / least);
    int teams = teams_of(s, threads), members = threads / teams;
    if (members == 1 || by_rows(s, members)) return threads;
    double most = 1 + rows / (double)(s->steps ? s->steps : 1) * step / STEP_WORK, units = (double)blocks(s->hidden, lanes);
    if (most > units) most = units;
    return members <= most ? threads : teams * (int)most;
}

/* --- how many threads a call gets, and the region in which they work --- */

static pace_t pace = { .taken = ATOMIC_FLAG_INIT };
static atomic_int adapts = 1;
static _Thread_local threads_t latest;

openmp_t torchlstm_openmp = { GOMP_parallel, omp_get_thread_num, omp_get_num_threads, omp_get_num_procs };

/* Not by sched_getaffinity: where OpenMP binds its threads, that is one. */
int torchlstm_processors(void) {
    int n = have_openmp() ? torchlstm_openmp.processors() : MAX_THREADS;
    return n > 1 ? n : 1;
}

/* The same, at most 10 ms old: the system call takes 0.4 us, and a small layer 10 us. */
static int processors(void) {
    static _Thread_local struct { int64_t asked; int n; } known;
    int64_t at = now();
    if (!known.n || at - known.asked > 10000000) known.asked = at, known.n = torchlstm_processors();
    return known.n;
}

void torchlstm_adapt(int on) {
    atomic_store_explicit(&adapts, on, memory_order_relaxed);
    pace_forget(&pace);
}
threads_t torchlstm_threads(void) { return latest; }

static int does_adapt(void) { return atomic_load_explicit(&adapts, memory_order_relaxed); }

/* How many threads a call gets whose work is worth `worth`; `wanted`: how many it would get if no call had stalled. */
static int choose(int worth, int *wanted) {
    *wanted = worth;
    if (worth == 1 || !does_adapt()) return worth;
    int threads = pace_threads(&pace, worth);
    if (threads == 1) return 1;
    int most = processors();
    if (most < worth) *wanted = most;
    return most < threads ? most : threads;
}

typedef struct {
    void (*work)(void *job, int rank, int threads);
    void *job;
    flag_t *all, *mine;                 /* (threads,) each, or the same */
    int team;                           /* threads that there were: OpenMP may give fewer */
} region_t;

static void member(void *data) {
    region_t *r = data;
    int rank = torchlstm_openmp.rank(), threads = torchlstm_openmp.threads();
    if (rank == 0) r->team = threads;
    r->work(r->job, rank, threads);
    r->all[rank].ended = now();
}

/* The longest that a thread waited for others: in the steps' meetings, and for the end of the region. */
static int64_t longest_wait(const region_t *r, int64_t end) {
    int64_t longest = 0;
    for (int i = 0; i < r->team; i++) {
        int64_t last = end - r->all[i].ended, waited = r->all[i].waited;
        if (r->mine != r->all) waited += r->mine[i].waited;
        if (last >= LONG_WAIT) waited += last;
        if (waited > longest) longest = waited;
    }
    return longest;
}

static void run(region_t *r, int given, int worth, int wanted, int threads) {
    if (!have_openmp()) wanted = threads = 1;
    for (int i = 0; i < threads; i++) {
        atomic_init(&r->all[i].finished, 0), atomic_init(&r->mine[i].finished, 0);
        r->all[i].waited = r->mine[i].waited = 0;
    }
    r->team = 1;
    int timed = does_adapt() && wanted > 1 && (threads > 1 || pace_counts(&pace));
    int64_t began = timed ? now() : 0;
    if (threads > 1) torchlstm_openmp.parallel(member, r, (unsigned)threads, 0);
    else r->work(r->job, 0, 1);
    latest = (threads_t){ given, worth, wanted, r->team };
    if (!timed) return;
    /* In a short call no wait is a long one: what the other threads wrote is not fetched. */
    int64_t end = now(), took = end - began;
    pace_judge(&pace, wanted, threads, took, threads > 1 && took >= LONG_WAIT ? longest_wait(r, end) : 0);
}

/* --- a layer --- */

/* How many packed rows the first n sequences of the batch have. */
static long rows_of(const sizes_t *s, long n) {
    if (!s->starts) return s->steps * n;
    long sum = 0;
    for (long t = 0; t < s->steps; t++) sum += active(s, t) < n ? active(s, t) : n;
    return sum;
}

/* The first sequence of group g of n groups, which have about as many packed rows each. */
static long group_start(const sizes_t *s, int g, int n) {
    if (g == 0) return 0;
    if (g == n) return s->batch;
    long want = (long)((double)rows_of(s, s->batch) * g / n), low = 0, high = s->batch;
    while (low < high) {
        long middle = (low + high) / 2;
        if (rows_of(s, middle) < want) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* The part of thread `rank` of the `threads` that there are. */
static part_t split(const sizes_t *s, int rank, int threads, flag_t *all, flag_t *mine) {
    int teams = teams_of(s, threads), size = threads / teams, groups = by_rows(s, size) ? size : 1;
    part_t p = { .rank = rank, .threads = threads, .all = all };
    int team = rank / size, place = rank % size;
    p.directions.from = teams == 2 ? team : 0, p.directions.to = teams == 2 ? team + 1 : s->directions;
    p.members = size / groups, p.group = place / p.members, p.me = place % p.members;
    p.rows.from = group_start(s, p.group, groups), p.rows.to = group_start(s, p.group + 1, groups);
    p.mine = mine + rank - p.me;
    return p;
}

typedef struct {
    const kernels_t *kernels;
    const forward_t *forward;           /* one of the two */
    const backward_t *backward;
    const void *plan;
    int worth;                          /* threads that the scratch is for: no more work */
    long call;                          /* as in part_t                                  */
    flag_t *all, *mine;
} call_t;

static void work(void *job, int rank, int threads) {
    const call_t *c = job;
    const sizes_t *s = c->forward ? &c->forward->sizes : &c->backward->sizes;
    part_t p = split(s, rank, threads, c->all, c->mine);
    p.call = c->call;
    unsigned old = flush_denormals();
    if (c->forward && reads_in_place(s, c->forward->format)) {
        c->kernels->forward_in_place(c->forward, &p, c->plan);
    } else if (c->forward) {
        if (c->forward->format == UNPACKED) {
            c->kernels->pack_forward(c->forward, &p, c->plan);
            meet(c->all, threads, rank, 1);
        }
        c->kernels->forward(c->forward, &p, c->plan);
    } else {
        if (c->backward->from == 0) {
            const backward_plan_t *plan = c->plan;
            long from, to;
            share(bias_sums(s) * plan->biases, rank, threads, &from, &to);
            for (int d = 0; d < s->directions; d++)
                __builtin_memset((char *)c->backward->scratch + (d * plan->direction + plan->db + from) * s->element, 0,
                                 (size_t)((to - from) * s->element));
            if (!single(s)) c->kernels->pack_backward(c->backward, &p, plan);
            meet(c->all, threads, rank, 1);
        }
        c->kernels->backward(c->backward, &p, c->plan);
    }
    restore_denormals(old);
}

/* The scratch is large enough for as many threads as the work is worth; a call may have fewer. */
static void run_layer(call_t *c, const sizes_t *s, int given) {
    flag_t all[MAX_THREADS], mine[MAX_THREADS];
    int wanted, threads = choose(c->worth, &wanted);
    if (threads > 1 && threads < c->worth) threads = useful(s, !c->forward, threads, c->kernels->lanes);
    c->all = all, c->mine = mine;
    region_t r = { .work = work, .job = c, .all = all, .mine = mine };
    run(&r, given, c->worth, wanted, threads);
}

/* How many calls of this thread read the same weights before.  Weights that share a counter only lose what sweeping them by turns
 * gains. */
static long calls_before(const forward_t *f) {
    static _Thread_local unsigned char calls[256];
    uint64_t at = (uint64_t)(uintptr_t)(f->format == UNPACKED ? f->weights[0].w_hh : f->packed[0]);
    return calls[at * 0x9e3779b97f4a7c15u >> 56]++;
}

/* A small call takes its scratch from the stack. */
enum { STACK_BYTES = 64 << 10 };

static size_t bytes_of(const forward_plan_t *plan, const sizes_t *s) {
    size_t bytes = (size_t)plan->total * (size_t)s->element;
    return bytes <= STACK_BYTES ? 0 : bytes;
}

size_t torchlstm_forward_scratch(const forward_t *f, int threads, int isa) {
    const sizes_t *s = &f->sizes;
    if (single(s) && f->format <= AS_THEY_ARE) return 0;
    int lanes = forward_kernels(f, isa)->lanes;
    forward_plan_t plan = plan_forward(s, f->format, useful(s, 0, threads, lanes), lanes);
    return bytes_of(&plan, s);
}
int torchlstm_forward_is_small(const sizes_t *s) { return useful(s, 0, MAX_THREADS, 1) == 1; }

size_t torchlstm_backward_scratch(const backward_t *b, int threads, int isa) {
    int lanes = kernels(&b->sizes, isa)->lanes;
    backward_plan_t plan = plan_backward(&b->sizes, useful(&b->sizes, 1, threads, lanes), lanes);
    return (size_t)plan.total * (size_t)b->sizes.element;
}

void torchlstm_forward(const forward_t *given, int threads, int isa) {
    _Alignas(64) char room[STACK_BYTES];
    forward_t job = *given;
    const sizes_t *s = &job.sizes;
    call_t c = { .kernels = forward_kernels(&job, isa), .forward = &job, .call = calls_before(&job) };
    c.worth = useful(s, 0, threads, c.kernels->lanes);
    forward_plan_t plan = plan_forward(s, job.format, c.worth, c.kernels->lanes);
    c.plan = &plan;
    if (!bytes_of(&plan, s)) job.scratch = room;
    run_layer(&c, s, threads);
}

void torchlstm_backward(const backward_t *b, int threads, int isa) {
    call_t c = { .kernels = kernels(&b->sizes, isa), .backward = b };
    c.worth = useful(&b->sizes, 1, threads, c.kernels->lanes);
    backward_plan_t plan = plan_backward(&b->sizes, c.worth, c.kernels->lanes);
    c.plan = &plan;
    run_layer(&c, &b->sizes, threads);
    if (b->to == b->sizes.steps) c.kernels->sum_biases(b, &plan);
}

/* --- products --- */

typedef struct { const kernels_t *kernels; const gemm_t *gemm; flag_t *all; } product_call_t;

/* Denormals stay: an input of 1e-39 has gradients of weights of 1e-39. */
static void multiply(void *job, int rank, int threads) {
    const product_call_t *c = job;
    if (is_thin(c->gemm)) c->kernels->gemm_thin(c->gemm, rank, threads);
    else c->kernels->gemm(c->gemm, rank, threads, c->all);
}

static const kernels_t *product_kernels(const gemm_t *g, int isa) {
    return kernels_of(g->element, is_thin(g) && isa == BFLOAT16 ? BEST : isa);
}

/* Thin products mostly read and write, so elements count as multiplications do.  250000 of both lose 10 % by a second
 * thread, 520000 gain 50 % in thin products, 600000 gain 3 to 16 % in others (measured as above). */
static int useful_product(const gemm_t *g, int threads, long width) {
    double M = (double)g->M, N = (double)g->N, K = (double)g->K, most = 1 + (M * N * K + M * N + M * K + N * K) / PRODUCT_WORK;
    long parts = is_thin(g) && g->M <= g->N ? blocks(g->N, (int)width) : g->M;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (threads > parts) threads = (int)parts;
    return threads > most ? (int)most : threads;
}

static size_t product_scratch(const gemm_t *g, int threads, int isa) {
    const kernels_t *k = product_kernels(g, isa);
    long parts = blocks(g->K, GEMM_DEPTH), depth = blocks(g->K, (int)parts), panels = blocks(g->N, k->width) * k->width * depth;
    threads = useful_product(g, threads, k->width);
    long elements = is_thin(g) ? threads * thin_room(depth, k->lanes) : panels + threads * (GEMM_ROWS * depth + GEMM_SLACK);
    return (size_t)elements * (size_t)g->element;
}

size_t torchlstm_gemm_scratch(const gemm_t *g, int threads, int isa) {
    size_t bytes = product_scratch(g, threads, isa);
    return bytes <= STACK_BYTES ? 0 : bytes;
}

void torchlstm_gemm(const gemm_t *given, int threads, int isa) {
    flag_t all[MAX_THREADS];
    _Alignas(64) char room[STACK_BYTES];
    gemm_t job = *given, *g = &job;
    if (!torchlstm_gemm_scratch(g, threads, isa)) g->scratch = room;
    product_call_t c = { product_kernels(g, isa), g, all };
    int worth = useful_product(g, threads, c.kernels->width), wanted, used = choose(worth, &wanted);
    region_t r = { .work = multiply, .job = &c, .all = all, .mine = all };
    run(&r, threads, worth, wanted, used);
}

typedef struct { const kernels_t *kernels; long rounds; atomic_long operations; } peak_call_t;

static void peak_member(void *data) {
    peak_call_t *c = data;
    atomic_fetch_add(&c->operations, c->kernels->peak(c->rounds));
}

long torchlstm_peak(long rounds, int element, int threads, int isa) {
    peak_call_t c = { kernels_of(element, isa), rounds, 0 };
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (threads > 1 && have_openmp()) torchlstm_openmp.parallel(peak_member, &c, (unsigned)threads, 0);
    else peak_member(&c);
    return atomic_load(&c.operations);
}
