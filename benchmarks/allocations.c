/* Counts the calls of glibc's allocator while it is asked to: a library to be preloaded. */
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);

static atomic_long count;
static atomic_int counting;

/* Begin or stop counting: how many calls there were since it was asked the last time. */
long allocations(int on) {
    counting = on;
    return atomic_exchange(&count, 0);
}

static void seen(void) { if (counting) count++; }

void *malloc(size_t bytes) { return seen(), __libc_malloc(bytes); }
void *calloc(size_t elements, size_t bytes) { return seen(), __libc_calloc(elements, bytes); }
void *realloc(void *old, size_t bytes) { return seen(), __libc_realloc(old, bytes); }
void *memalign(size_t at, size_t bytes) { return seen(), __libc_memalign(at, bytes); }
void *aligned_alloc(size_t at, size_t bytes) { return seen(), __libc_memalign(at, bytes); }
int posix_memalign(void **result, size_t at, size_t bytes) {
    seen();
    *result = __libc_memalign(at, bytes);
    return *result ? 0 : ENOMEM;
}
