/* How many threads the next call may have, by how long the threads of the calls before it waited for each other.
 *
 * A thread that does not run, since another process has its core, stops all others of its region for one or two time
 * slices.  A call that waited for more than it computed has stalled: the next ones get half as many threads, for a hold.
 * Then more are tried: a number between the one that was good and the one that stalled, until only that one is left.  The
 * first hold is as long as the stall was, so that a stall of the machine's own costs little; a trial that stalls begins one
 * that is GROWTH times as long, up to MOST_TIMES times its stall: trials cost 2 % at most.  A trial has passed when it has
 * not stalled in as long as the hold was: beside a busy process, short calls get through by luck for some ms.
 *
 * Holds and trials are measured in the time of the calls that they concern, not by the clock on the wall: a server of
 * one call a second would find every hold over, and stall in each call.
 *
 * All times are in ns, and given: nothing here reads a clock.  Any number of threads may call at once.
 */
#pragma once
#include <stdatomic.h>
#include <stdint.h>

/* A wait below LONG_WAIT is part of the work (on two idle cores one call in 100 takes 100 us longer than most, one in 1000
 * 300); beyond LONGEST_WAIT, of a process that was stopped, a stall costs no more. */
enum { LONG_WAIT = 200000, LONGEST_WAIT = 100000000, GROWTH = 4, MOST_TIMES = 50 };

typedef struct {
    atomic_int limit;                   /* calls get so many threads at most; 0: as many as they want      */
    atomic_flag taken;                  /* by the thread that reads and writes what follows                */
    int good, stalled;                  /* the number of the hold, and the least one that stalled          */
    int times;                          /* how long a hold is, in stalls                                   */
    int64_t hold, left;                 /* how long the hold is, and what is left of it or of the trial    */
} pace_t;

/* How many threads a call gets that wants some. */
static inline int pace_threads(const pace_t *p, int wanted) {
    int limit = atomic_load_explicit(&p->limit, memory_order_relaxed);
    return limit && limit < wanted ? limit : wanted;
}

/* Would pace_judge read how long a call on one thread took? */
static inline int pace_counts(const pace_t *p) { return atomic_load_explicit(&p->limit, memory_order_relaxed) != 0; }

/* Did a call stall?  `waited`: the sum of one thread's long waits, of the thread for which it is largest.  Threads that
 * have one block of work and two wait for half of the time, and at two threads that still is faster than one. */
static inline int is_stall(int64_t took, int64_t waited) { return waited >= LONG_WAIT && 5 * waited > 3 * took; }

/* Judges a call that wanted some threads and used no more; on one it has waited for nobody. */
static inline void pace_judge(pace_t *p, int wanted, int used, int64_t took, int64_t waited) {
    int stall = is_stall(took, waited);
    if (!stall && !pace_counts(p)) return;
    /* Who comes while another one judges is not heard: there will be more calls. */
    if (atomic_flag_test_and_set_explicit(&p->taken, memory_order_acquire)) return;
    int limit = atomic_load_explicit(&p->limit, memory_order_relaxed);
    if (stall && (!limit || used <= limit)) {
        /* Beyond the limit are calls that began before it. */
        int64_t cost = waited < LONGEST_WAIT ? waited : LONGEST_WAIT;
        if (!limit || used <= p->good) p->good = used / 2;
        p->stalled = used;
        p->times = !limit ? 1 : GROWTH * p->times < MOST_TIMES ? GROWTH * p->times : MOST_TIMES;
        p->hold = p->left = p->times * cost;
        limit = p->good;
    } else if (!stall && limit && wanted > p->good && (p->left -= took) <= 0) {
        p->left = p->hold;
        if (limit == p->good) limit += (p->stalled - p->good + 1) / 2;     /* a trial begins */
        else if (limit < p->stalled) p->good = limit;                      /* one has passed, and more is known to stall */
        else limit = 0;
    }
    atomic_store_explicit(&p->limit, limit, memory_order_relaxed);
    atomic_flag_clear_explicit(&p->taken, memory_order_release);
}

/* Ends what there is of a hold or a trial. */
static inline void pace_forget(pace_t *p) { atomic_store_explicit(&p->limit, 0, memory_order_relaxed); }
