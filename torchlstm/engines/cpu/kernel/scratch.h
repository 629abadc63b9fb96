/* Memory that a call needs until it ends. */
#pragma once
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#if defined __linux__
#include <sys/mman.h>
#endif

/* The block that was given back last is kept, if it is not larger than this: a fresh block costs page faults, a quarter of a
 * microsecond for 4 KiB. */
enum { SCRATCH_KEPT = 16 << 20, SCRATCH_ALIGN = 64 };

typedef struct { size_t bytes; char *at; } scratch_t;
typedef struct { size_t bytes; } scratch_header_t;
static _Atomic(scratch_header_t *) scratch_spare;

/* Asks for large pages for [at, at + bytes): a hint only. */
static inline void ask_huge_pages(const void *start, size_t bytes) {
#if defined MADV_HUGEPAGE
    const uintptr_t page = 2 << 20, at = (uintptr_t)start;
    uintptr_t from = (at + page - 1) / page * page, to = (at + bytes) / page * page;
    if (to > from) madvise((void *)from, to - from, MADV_HUGEPAGE);
#else
    (void)start, (void)bytes;
#endif
}
/* Tensors and blocks from here on ask for them: a fresh one of 42 MB costs 14 ms in faults of 4 KiB. */
enum { HUGE_BYTES = 4 << 20 };

/* Reserves `bytes` of a block that is yet to be taken; returns where they will be. */
static inline size_t reserve(scratch_t *s, size_t bytes) {
    size_t at = s->bytes;
    s->bytes = (at + bytes + SCRATCH_ALIGN - 1) / SCRATCH_ALIGN * SCRATCH_ALIGN;
    return at;
}

/* Takes the block, aligned; 0 if there is no memory.  Its content is undefined. */
static inline int take_scratch(scratch_t *s) {
    scratch_header_t *block = atomic_exchange(&scratch_spare, NULL);
    if (block && block->bytes < s->bytes) free(block), block = NULL;
    if (!block) {
        void *made;
        if (posix_memalign(&made, SCRATCH_ALIGN, SCRATCH_ALIGN + s->bytes)) return 0;
        if (s->bytes >= HUGE_BYTES) ask_huge_pages(made, s->bytes);
        block = made, block->bytes = s->bytes;
    }
    s->at = (char *)block + SCRATCH_ALIGN;
    return 1;
}
static inline void give_scratch(scratch_t *s) {
    scratch_header_t *block = (scratch_header_t *)(void *)(s->at - SCRATCH_ALIGN);
    if (block->bytes <= SCRATCH_KEPT) block = atomic_exchange(&scratch_spare, block);
    free(block);
}
