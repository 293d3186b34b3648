/* The exact GELU, x * Phi(x), for vectors of one element type and width. */
#if ELEMENT == 2
ALWAYS_INLINE V(vec) V(gelu)(V(vec) x) {
    for (int i = 0; i < LANES; i++) x[i] = 0.5 * x[i] * (1 + erf(x[i] * 0.70710678118654752440));
    return x;
}
#else
/* erf(z) / z as a polynomial in t = 2 z^2 / 3.92^2 - 1, from its Chebyshev interpolation; beyond
 * 3.92 erf is 1 in float32. Off by 3e-8, by 2e-7 after the rounding of the arithmetic. */
ALWAYS_INLINE V(vec) V(gelu)(V(vec) x) {
    const float c[] = {
        3.607368091e-01f, -1.801085971e-01f, 1.340847932e-01f, -1.091805417e-01f,
        9.059291529e-02f, -7.400414836e-02f, 5.842158902e-02f, -4.351752469e-02f,
        2.962136827e-02f, -1.978485846e-02f, 1.432561577e-02f, -7.950687372e-03f,
        1.833373345e-03f, -1.192202879e-03f, 2.124123197e-03f, -9.000014446e-04f};
    const V(vec) z = x * 0.70710678118654752440f;
    const V(ivec) low = z < -3.92f, high = z > 3.92f;
    const V(vec) t = z * z * (2 / (3.92f * 3.92f)) - 1.0f, one = V(splat)(1.0f);
    V(vec) sum = V(splat)(c[15]);
#pragma GCC unroll 16
    for (int i = 14; i >= 0; i--) sum = sum * t + c[i];
    const V(ivec) inside = (V(ivec))(z * sum) & ~(low | high);
    const V(vec) erf = (V(vec))(inside | ((V(ivec))one & high) | ((V(ivec))-one & low));
    return x * 0.5f + x * 0.5f * erf;
}
#endif
