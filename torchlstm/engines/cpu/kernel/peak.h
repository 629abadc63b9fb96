/* Multiply-adds in registers and nothing else: the limit that a product on this instruction set cannot exceed.
 *
 * As many chains as fit beside two constants: 14 with 16 registers, 28 with 32.  Two units with a latency of four or five
 * cycles need ten; where a multiply-add is two instructions of three cycles each, twelve. */
#define CHAINS (7 * COLS)

/* sum * factor + step, and of pairs sum + the two products of a pair: what multiply_add of slot.h is, but a product of
 * constants would be made once, before the loop, and an addition be left. */
#if PER_SLOT == 1
#define PEAK_STEP(sum, factor, step) ((sum) * (factor) + (step))
#else
#define PEAK_STEP(sum, factor, step) FN(multiply_add)(sum, factor, step)
#endif

/* `rounds` of a multiply-add of every chain; returns how many operations they were. */
NOINLINE long FN(peak)(long rounds) {
    vec s[CHAINS], step = (vec){0} + (REAL)0.5, total = {0};
    /* Numbers that the compiler does not know: it would leave out a chain that does not change. */
    UNROLL(28)
    for (int i = 0; i < CHAINS; i++) s[i] = (vec){0} + (REAL)(rounds + i);
    ROLL
    for (long n = 0; n < rounds; n++)
        UNROLL(28)
        for (int i = 0; i < CHAINS; i++) s[i] = PEAK_STEP(s[i], (REAL)0.5, step);
    UNROLL(28)
    for (int i = 0; i < CHAINS; i++) total += s[i];
    /* Or nothing of it were computed. */
    volatile REAL used = total[0];
    (void)used;
    return rounds * 2 * CHAINS * LANES * PER_SLOT;
}
