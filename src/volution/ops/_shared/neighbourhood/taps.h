/* Taps as a tile reads them; included once for every element type and width, after vector.h. */
/* The taps of `pixels` adjacent kernels, widened once for all channels of the group. */
#if ELEMENT == 1
ALWAYS_INLINE const float *V(taps)(const uint16_t *k, int64_t step, int64_t D, int pixels,
                                   float *scratch, int64_t *scratch_step) {
    for (int t = 0; t < pixels; t++)
        for (int64_t tap = 0; tap < D; tap++) scratch[t * D + tap] = V(widen)(k[t * step + tap]);
    *scratch_step = D;
    return scratch;
}
#else
ALWAYS_INLINE const V(acc) * V(taps)(const V(elem) * k, int64_t step, int64_t D, int pixels,
                                     V(acc) * scratch, int64_t *scratch_step) {
    (void)D, (void)pixels, (void)scratch;
    *scratch_step = step;
    return k;
}
#endif
