/* Multiply-adds in registers and nothing else: the limit that a product on this instruction set cannot exceed.
 *
 * As many chains as fit beside two constants: 14 with 16 registers, 28 with 32.  Two units with a latency of four or five
 * cycles need ten; where a multiply-add is two instructions of three cycles each, twelve. */
#define CHAINS (7 * COLS)

/* `rounds` of a multiply-add of every chain; returns how many operations they were. */
NOINLINE long FN(peak)(long rounds) {
    vec s[CHAINS], step = (vec){0} + (REAL)0.5, total = {0};
    /* Numbers that the compiler does not know: it would leave out a chain that does not change. */
    UNROLL(28)
    for (int i = 0; i < CHAINS; i++) s[i] = (vec){0} + (REAL)(rounds + i);
    /* Of elements the sum is a factor, too: the compiler would make a product of constants once, before the loop. */
    ROLL
    for (long n = 0; n < rounds; n++)
        UNROLL(28)
        for (int i = 0; i < CHAINS; i++)
            s[i] = SLOT_HOLDS == ONE_TERM ? (vec)(s[i] * (REAL)0.5 + step) : FN(multiply_add)(s[i], (REAL)0.5, step);
    UNROLL(28)
    for (int i = 0; i < CHAINS; i++) total += s[i];
    /* Without a use of the sum the compiler would compute none of it. */
    volatile REAL used = total[0];
    (void)used;
    return rounds * 2 * CHAINS * LANES * PER_SLOT;
}
