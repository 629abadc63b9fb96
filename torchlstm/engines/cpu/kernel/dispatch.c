/* Which instruction set, how many threads, and who does what. */
#include "dispatch.h"

#if defined __x86_64__
#if defined EMULATE_AVX512
static int have_avx512(void) { return 1; }
static int have_bfloat16(void) { return 1; }
#else
static int have_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
static int have_bfloat16(void) {
#if HAVE_BFLOAT16
    return have_avx512() && __builtin_cpu_supports("avx512bf16");
#else
    return 0;
#endif
}
#endif
#endif

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
    case BFLOAT16: if (!type) return torchlstm_bfloat16[0]; /* fall through */
#endif
    case AVX512: return torchlstm_avx512[type];
    case AVX2: return torchlstm_avx2[type];
    }
#endif
    return torchlstm_portable[type];
}

static const kernels_t *kernels(const sizes_t *s, int isa) { return kernels_of(s->element, isa); }

/* Recurrent weights up to this size are read from a core's own cache: each thread may then take rows of its own,
 * and read all of them, instead of waiting for the others every step. */
enum { ROWS_BYTES = 320 << 10, ROWS_LEAST = 4 };

/* Multiplications that a thread should have before another one helps, in all and between two meetings. */
#if defined SPREAD_THIN
/* For tests: every thread takes part, however little there is to do. */
enum { WORK = 1, STEP_WORK = 1 };
#else
enum { WORK = 100000, STEP_WORK = 12000 };
#endif

static int teams_of(const sizes_t *s, int threads) { return s->directions == 2 && threads % 2 == 0 ? 2 : 1; }

static int by_rows(const sizes_t *s, int members) {
    return !s->projected && s->steps > 1 && 4 * s->hidden * s->output * s->element <= ROWS_BYTES
           && s->batch >= ROWS_LEAST * members;
}

/* The number of threads worth using: no more than asked for. */
static int useful(const sizes_t *s, int threads) {
    double step = 4. * (double)s->hidden * (double)(s->steps == 1 ? s->output + s->input : s->output);
    double rows = (double)first_row(s, s->steps), all = rows * (double)s->directions * 4. * (double)s->hidden
                  * (double)(s->output + s->input);
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (threads > 1 + all / WORK) threads = (int)(1 + all / WORK);
    int teams = teams_of(s, threads), members = threads / teams;
    if (members == 1 || by_rows(s, members)) return threads;
    double most = 1 + rows / (double)(s->steps ? s->steps : 1) * step / STEP_WORK;
    return members <= most ? threads : teams * (int)most;
}

/* How many packed rows are of the first n rows of the batch. */
static long rows_of(const sizes_t *s, long n) {
    if (!s->starts) return s->steps * n;
    long sum = 0;
    for (long t = 0; t < s->steps; t++) sum += active(s, t) < n ? active(s, t) : n;
    return sum;
}

/* Where group g of n begins: groups get about as many packed rows each. */
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
    p.d0 = teams == 2 ? team : 0, p.d1 = teams == 2 ? team + 1 : s->directions;
    p.members = size / groups, p.group = place / p.members, p.me = place % p.members;
    p.r0 = group_start(s, p.group, groups), p.r1 = group_start(s, p.group + 1, groups);
    p.mine = mine + rank - p.me;
    return p;
}

typedef struct {
    const kernels_t *kernels;
    const forward_t *forward;           /* one of the two */
    const backward_t *backward;
    const void *plan;
    int threads;                        /* asked for */
    flag_t *all, *mine;                 /* (threads,) each */
} call_t;

static void work(call_t *c, int rank, int threads) {
    const sizes_t *s = c->forward ? &c->forward->sizes : &c->backward->sizes;
    part_t p = split(s, rank, threads, c->all, c->mine);
    unsigned old = flush_denormals();
    if (c->forward && !c->plan) {
        c->kernels->single(c->forward, &p);
    } else if (c->forward) {
        c->kernels->pack_forward(c->forward, &p, c->plan);
        meet(c->all, threads, rank, 1);
        c->kernels->forward(c->forward, &p, c->plan);
    } else {
        if (c->backward->from == 0) {
            const backward_plan_t *plan = c->plan;
            for (long i = rank; i < c->threads; i += threads)
                __builtin_memset((char *)c->backward->scratch + (size_t)((plan->threads + i * plan->thread) * s->element), 0,
                                 (size_t)(plan->left * s->element));
            if (!single(s)) c->kernels->pack_backward(c->backward, &p, plan);
            meet(c->all, threads, rank, 1);
        }
        c->kernels->backward(c->backward, &p, c->plan);
    }
    restore_denormals(old);
}

static void member(void *data) { work(data, omp_get_thread_num(), omp_get_num_threads()); }

static void run(call_t *c) {
    flag_t all[MAX_THREADS], mine[MAX_THREADS];
    for (int i = 0; i < c->threads; i++) atomic_init(&all[i].finished, 0), atomic_init(&mine[i].finished, 0);
    c->all = all, c->mine = mine;
    if (c->threads > 1 && have_openmp()) GOMP_parallel(member, c, (unsigned)c->threads, 0);
    else work(c, 0, 1);
}

size_t torchlstm_forward_scratch(const forward_t *f, int threads, int isa) {
    if (single(&f->sizes)) return 0;
    forward_plan_t plan = plan_forward(&f->sizes, useful(&f->sizes, threads), kernels(&f->sizes, isa)->lanes);
    return (size_t)plan.total * (size_t)f->sizes.element;
}
size_t torchlstm_backward_scratch(const backward_t *b, int threads, int isa) {
    backward_plan_t plan = plan_backward(&b->sizes, useful(&b->sizes, threads), kernels(&b->sizes, isa)->lanes);
    return (size_t)plan.total * (size_t)b->sizes.element;
}

void torchlstm_forward(const forward_t *f, int threads, int isa) {
    call_t c = { .kernels = kernels(&f->sizes, isa), .forward = f, .threads = useful(&f->sizes, threads) };
    forward_plan_t plan = plan_forward(&f->sizes, c.threads, c.kernels->lanes);
    c.plan = single(&f->sizes) ? NULL : &plan;
    run(&c);
}

void torchlstm_backward(const backward_t *b, int threads, int isa) {
    call_t c = { .kernels = kernels(&b->sizes, isa), .backward = b, .threads = useful(&b->sizes, threads) };
    backward_plan_t plan = plan_backward(&b->sizes, c.threads, c.kernels->lanes);
    c.plan = &plan;
    run(&c);
    if (b->to == b->sizes.steps) c.kernels->sum_biases(b, &plan, c.threads);
}

typedef struct { const kernels_t *kernels; const gemm_t *gemm; flag_t *all; } product_call_t;

/* Denormals stay: an input of 1e-39 has gradients of weights of 1e-39. */
static void multiply(product_call_t *c, int rank, int threads) {
    if (is_thin(c->gemm)) c->kernels->gemm_thin(c->gemm, rank, threads);
    else c->kernels->gemm(c->gemm, rank, threads, c->all);
}
static void multiply_member(void *data) { multiply(data, omp_get_thread_num(), omp_get_num_threads()); }

static const kernels_t *product_kernels(const gemm_t *g, int isa) {
    return kernels_of(g->element, is_thin(g) && isa == BFLOAT16 ? BEST : isa);
}

static int useful_product(const gemm_t *g, int threads, long width) {
    double most = 1 + (double)g->M * (double)g->N * (double)g->K / WORK;
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

/* A small product takes its scratch from the stack. */
enum { STACK_BYTES = 64 << 10 };
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
    threads = useful_product(g, threads, c.kernels->width);
    for (int i = 0; i < threads; i++) atomic_init(&all[i].finished, 0);
    if (threads > 1 && have_openmp()) GOMP_parallel(multiply_member, &c, (unsigned)threads, 0);
    else multiply(&c, 0, 1);
}

typedef struct { const kernels_t *kernels; long rounds; atomic_long operations; } peak_call_t;

static void peak_member(void *data) {
    peak_call_t *c = data;
    atomic_fetch_add(&c->operations, c->kernels->peak(c->rounds));
}

long torchlstm_peak(long rounds, int element, int threads, int isa) {
    peak_call_t c = { kernels_of(element, isa), rounds, 0 };
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (threads > 1 && have_openmp()) GOMP_parallel(peak_member, &c, (unsigned)threads, 0);
    else peak_member(&c);
    return atomic_load(&c.operations);
}
