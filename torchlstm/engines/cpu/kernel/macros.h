/* The macros that the template is written in.  They have one text for every kind: what differs is looked up by KIND or REAL. */
#pragma once

#define JOIN2(a, b) JOIN2_(a, b)
#define JOIN2_(a, b) a##_##b
#define JOIN3(a, b, c) JOIN3_(a, b, c)
#define JOIN3_(a, b, c) a##_##b##_##c

/* FN(forward) is forward_float_avx2; OF_TYPE(EXP_TOP) is EXP_TOP_float. */
#define FN(name) JOIN3(name, KIND, ISA)
#define OF_TYPE(name) JOIN2(name, REAL)
#define INLINE TARGET static inline __attribute__((always_inline))
#define NOINLINE TARGET static __attribute__((noinline, unused))

/* The types of vector.h: each kind has its own. */
#define vec FN(vec)
#define ivec FN(ivec)
#define given FN(given)
#define igiven FN(igiven)
#define quad FN(quad)
#define half FN(half)
#define iquad FN(iquad)

/* Elements of a vector; elements of a quad, which is 16 bytes of it; quads of a vector. */
#define LANES OF_TYPE(LANES)
#define LANES_float (BYTES / 4)
#define LANES_double (BYTES / 8)
#define QUAD OF_TYPE(QUAD)
#define QUAD_float 4
#define QUAD_double 2
#define QUADS (LANES / QUAD)

/* The integer as wide as an element. */
#define INTEGER OF_TYPE(INTEGER)
#define INTEGER_float int32_t
#define INTEGER_double int64_t

/* What a slot of weights may hold: template.h. */
#define ONE_TERM 0
#define TWO_BFLOATS 1
#define TWO_SHORTS 2
#define FOUR_BYTES 3

/* Terms of a product in a slot, and slots of K terms.  The last slot is filled up with zeros. */
#define PER_SLOT (SLOT_HOLDS == ONE_TERM ? 1 : SLOT_HOLDS == FOUR_BYTES ? 4 : 2)
#define SLOTS(K) (((K) + PER_SLOT - 1) / PER_SLOT)

/* Elements of the left operand beside a slot of weights, and terms in each of them.  A packed row of some slots has that many
 * columns, and of int8 weights its scale in front of them. */
#define LEFT_SLOT (SLOT_HOLDS < TWO_SHORTS ? 1 : 2)
#define PER_LEFT (PER_SLOT / LEFT_SLOT)
#define LEFT_COLUMNS(slots) ((slots) * LEFT_SLOT)
#if defined TILE_PRODUCTS && defined ONLY_INTEGERS
/* Of int8 weights with tile registers: whole tiles, and room to begin them at a cache line. */
#define LEFT_LENGTH(slots) (((slots) + TILE_SLOTS - 1) / TILE_SLOTS * TILE_SLOTS * LEFT_SLOT + 8)
#else
#define LEFT_LENGTH(slots) ((slots) * LEFT_SLOT + (SLOT_HOLDS == FOUR_BYTES))
#endif

/* The rows that packed rows take room for, and how many rows a second part of them may add: tiles of pairs are packed whole. */
#if defined TILE_PRODUCTS && !defined ONLY_INTEGERS
#define LEFT_ROWS(rows) (((rows) + 15) / 16 * 16)
#define LEFT_PART 16
#else
#define LEFT_ROWS(rows) (rows)
#define LEFT_PART 0
#endif

/* Shuffles of two vectors, the elements of the second numbered after those of the first: SHUFFLE of two quads, SHUFFLE_VECS of
 * two vectors, SHUFFLE_EACH the same shuffle of each quad of `a` with the quad of `b` beside it. */
#if defined __clang__ || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#define SHUFFLE_VECS(type, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (iquad){ __VA_ARGS__ })
#define SHUFFLE_VECS(type, a, b, ...) __builtin_shuffle(a, b, (type){ __VA_ARGS__ })
#endif
#define SHUFFLE_EACH(a, b, ...) SHUFFLE_VECS(ivec, a, b, EACH_QUAD(__VA_ARGS__))
#if BYTES == 16
#define EACH_QUAD(...) ONE_QUAD(0, __VA_ARGS__)
#elif BYTES == 32
#define EACH_QUAD(...) ONE_QUAD(0, __VA_ARGS__), ONE_QUAD(1, __VA_ARGS__)
#else
#define EACH_QUAD(...) ONE_QUAD(0, __VA_ARGS__), ONE_QUAD(1, __VA_ARGS__), ONE_QUAD(2, __VA_ARGS__), ONE_QUAD(3, __VA_ARGS__)
#endif
#define ONE_QUAD(...) OF_TYPE(ONE_QUAD)(__VA_ARGS__)
#define ONE_QUAD_float(q, a, b, c, d) IN_QUAD(q, a), IN_QUAD(q, b), IN_QUAD(q, c), IN_QUAD(q, d)
#define ONE_QUAD_double(q, a, b) IN_QUAD(q, a), IN_QUAD(q, b)
#define IN_QUAD(q, i) ((i) % QUAD + (q) * QUAD + (i) / QUAD * LANES)

/* The numbers of the elements of quad q. */
#define QUAD_OF(q) OF_TYPE(QUAD_OF)(q)
#define QUAD_OF_float(q) (q) * 4, (q) * 4 + 1, (q) * 4 + 2, (q) * 4 + 3
#define QUAD_OF_double(q) (q) * 2, (q) * 2 + 1

/* UNROLL(n): the loop that follows is unrolled fully, up to n turns.  ROLL: it is not unrolled.  Clang before 19 ignores GCC's
 * pragma. */
#if defined __clang__
#define UNROLL(n) _Pragma("clang loop unroll(full)")
#define ROLL _Pragma("clang loop unroll(disable)")
#else
#define UNROLL(n) PRAGMA(GCC unroll n)
#define ROLL PRAGMA(GCC unroll 1)
#define PRAGMA(text) _Pragma(#text)
#endif
