/* How many threads calls get: pace.h alone, in the time of made-up calls; then products with threads that begin late. */
#include "driver.h"
#include "pace.h"
#include <stdlib.h>
#include <unistd.h>

enum { US = 1000, MS = 1000 * US };

static void same(const char *what, long found, long expected) {
    if (found != expected) fail("%s is %ld, expected %ld", what, found, expected);
}

/* One call of 1 ms that has all the threads that it may; the neighbour leaves `free` cores, and a stall takes 8 ms more. */
static int call(pace_t *p, int wanted, int free) {
    int used = pace_threads(p, wanted);
    if (used > free) pace_judge(p, wanted, used, 9 * MS, 8 * MS);
    else pace_judge(p, wanted, used, 1 * MS, 0);
    return used;
}

static pace_t fresh(void) { return (pace_t){ .taken = ATOMIC_FLAG_INIT }; }

static void check_what_a_stall_is(void) {
    describe("pace: what a stall is");
    same("a wait that is long, and most of the call", is_stall(9 * MS, 8 * MS), 1);
    same("a wait that is short", is_stall(LONG_WAIT, LONG_WAIT - 1), 0);
    same("the shortest long wait", is_stall(LONG_WAIT, LONG_WAIT), 1);
    same("half of the call", is_stall(16 * MS, 8 * MS), 0);
    same("three fifths of the call", is_stall(10 * MS, 6 * MS), 0);
    same("more", is_stall(10 * MS, 6 * MS + 1), 1);
    pace_t p = fresh();
    pace_judge(&p, 2, 2, 16 * MS, 8 * MS);
    same("threads after a call that computed half of the time", pace_threads(&p, 2), 2);
}

static void check_a_stall(void) {
    describe("pace: a stall");
    pace_t p = fresh();
    same("threads at first", call(&p, 8, 7), 8);
    same("threads after a stall", pace_threads(&p, 8), 4);
    same("of a call that wants fewer", pace_threads(&p, 3), 3);
    same("of a call that wants more", pace_threads(&p, 100), 4);
    for (int i = 0; i < 100; i++) call(&p, 4, 7);
    same("threads after calls that are not held back", pace_threads(&p, 8), 4);
    pace_judge(&p, 8, 8, 9 * MS, 8 * MS);                               /* it began before the stall was known */
    same("threads after a late stall", pace_threads(&p, 8), 4);
    for (int i = 0; i < 7; i++) call(&p, 8, 7);
    same("threads 7 ms after a stall of 8", pace_threads(&p, 8), 4);
    call(&p, 8, 7);
    same("threads of the trial", pace_threads(&p, 8), 6);
    for (int i = 0; i < 8; i++) call(&p, 8, 7);                          /* passed: held at 6 */
    same("threads that passed", pace_threads(&p, 8), 6);
    for (int i = 0; i < 8; i++) call(&p, 8, 7);
    same("threads of the next trial", pace_threads(&p, 8), 7);
    for (int i = 0; i < 8 + 8; i++) call(&p, 8, 7);                      /* passed, and held at 7 */
    same("threads of the last trial", call(&p, 8, 7), 8);
    same("threads after it has stalled", pace_threads(&p, 8), 7);
    pace_judge(&p, 8, 7, 9 * MS, 8 * MS);
    same("threads after the good number has stalled", pace_threads(&p, 8), 3);
}

static void check_forgetting(void) {
    describe("pace: forgetting");
    pace_t p = fresh();
    call(&p, 4, 2);
    same("whether calls count after a stall", pace_counts(&p), 1);
    pace_forget(&p);
    same("threads", pace_threads(&p, 4), 4);
    same("whether calls count", pace_counts(&p), 0);
}

/* How many calls are held back, from one stall to the next trial. */
static int held(pace_t *p) {
    int calls = 0;
    for (; pace_threads(p, 2) == 1; calls++) call(p, 2, 1);
    return calls;
}

static void check_holds(void) {
    describe("pace: holds");
    pace_t p = fresh();
    static const int expected[] = { 8, 32, 128, 400, 400, 400 };
    for (unsigned i = 0; i < sizeof expected / sizeof *expected; i++) {
        same("threads of a trial", call(&p, 2, 1), 2);
        same("ms of a hold", held(&p), expected[i]);
    }
    /* Short calls may get through a few times: one that stalls in the end was no success. */
    for (int i = 0; i < 399; i++) call(&p, 2, 2);
    call(&p, 2, 1);
    same("ms of a hold after a trial that did not last", held(&p), 400);
    for (int i = 0; i < 400; i++) same("threads of a trial", call(&p, 2, 2), 2);
    call(&p, 2, 1);
    same("ms of a hold after a trial that passed", held(&p), 8);
    pace_forget(&p);
    pace_judge(&p, 2, 2, 3600L * 1000 * MS, 3600L * 1000 * MS);         /* the process was stopped for an hour */
    same("ms of a hold after it", held(&p), LONGEST_WAIT / MS);
}

/* On every machine, with as many cores taken as may be: calls get all of the others, trials cost little, and when the
 * neighbour leaves they get all. */
static void check_machines(void) {
    for (int cores = 2; cores <= 128; cores = cores < 8 ? cores + 1 : 2 * cores)
        for (int free = 1; free < cores; free++) {
            describe("pace: %d cores, %d free", cores, free);
            pace_t p = fresh();
            for (int i = 0; i < 20000; i++) call(&p, cores, free);
            long stalls = 0, good = 0, calls = 20000;
            for (int i = 0; i < calls; i++) {
                int used = call(&p, cores, free);
                if (used < 1 || used > cores) fail("a call has %d threads", used);
                stalls += used > free, good += used == free;
            }
            /* 8 ms of every 400 that are held, and of every 400 of a trial that passes. */
            if (8 * stalls > calls / 40) fail("%ld of %ld calls stall", stalls, calls);
            if (good < calls * 9 / 10) fail("%ld of %ld calls have as many threads as there are cores", good, calls);
            for (int i = 0; i < 10000; i++) call(&p, cores, cores);
            same("threads when all cores are free again", call(&p, cores, cores), cores);
            same("whether calls still count", pace_counts(&p), 0);
        }
}

/* In an emulator, beside others, a call may take longer than a late thread: times there are no processor's. */
#if !defined EMULATED
/* A product on two threads: how many it had. */
static int multiply(long M, long N, long K) {
    double *a = draw_numbers(M * K, 1), *b = draw_numbers(K * N, 1), *out = malloc((size_t)(M * N) * sizeof *out);
    gemm_t g = { .out = out, .a = a, .b = b, .M = M, .N = N, .K = K, .ldo = N, .lda = K, .ldb = N, .element = 8 };
    size_t bytes = torchlstm_gemm_scratch(&g, 2, PORTABLE);
    g.scratch = bytes ? malloc(bytes) : NULL;
    torchlstm_gemm(&g, 2, PORTABLE);
    free(a), free(b), free(out), free(g.scratch);
    return torchlstm_threads().used;
}

static void check_calls(void) {
    /* The threads of the first meet while they work, those of the second at the end only. */
    static const long sizes[][3] = { { 85, 85, 85 }, { 8, 300, 300 } };
    for (int i = 0; i < 2; i++) {
        const long *s = sizes[i];
        describe("pace: product of %ld x %ld x %ld", s[0], s[1], s[2]);
        torchlstm_adapt(1);
        team_late = 100;
        same("threads at first", multiply(s[0], s[1], s[2]), 2);
        team_late = 0;
        same("threads after one was late", multiply(s[0], s[1], s[2]), 1);
        same("threads wanted", torchlstm_threads().wanted, 2);
        torchlstm_adapt(0);
        same("threads of calls that do not adapt", multiply(s[0], s[1], s[2]), 2);
        torchlstm_adapt(1);
        same("threads of calls that adapt again", multiply(s[0], s[1], s[2]), 2);
        torchlstm_adapt(1);
        team_processors = 1;
        usleep(20000);                                                  /* what was asked 10 ms ago is asked again */
        same("threads on one processor", multiply(s[0], s[1], s[2]), 1);
        same("threads wanted on it", torchlstm_threads().wanted, 1);
        same("threads that the work is worth", torchlstm_threads().worth, 2);
        team_processors = 1 << 30;
        usleep(20000);
    }
}
#endif

void check_pace(void) {
    check_what_a_stall_is();
    check_a_stall();
    check_forgetting();
    check_holds();
    check_machines();
#if !defined EMULATED
    check_calls();
#endif
}
