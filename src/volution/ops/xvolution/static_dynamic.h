/* The geometry of one static and dynamic convolution.
 *
 * sizes: those of a window call (window.h), whose kernel is the dynamic one; then
 *   K, dilation        of the static kernel; K = 0 without one
 *   residual           1 if there is a map to add; then
 *   strides of it      (n, row, column)
 * The static numbers lie in one block of rows of C: K * K taps, the scale, the bias.
 */
#ifndef STATIC_DYNAMIC_H
#define STATIC_DYNAMIC_H

#include "_shared/neighbourhood/window.h"

typedef struct {
    window window;
    int64_t K, dilation;
    steps rest;
    const void *rows, *residual;
    int dense; /* both kernels lie on the same centred window, or there is only the dynamic one */
} static_dynamic;

ALWAYS_INLINE static_dynamic static_dynamic_of(const int64_t *s, const int64_t *offsets,
                                               const void *rows, const void *residual) {
    static_dynamic g = {window_of(s, offsets), s[20], s[21], {0, 0, 0}, rows, NULL, 0};
    if (s[22]) {
        g.residual = residual;
        g.rest = (steps){s[23], s[24], s[25]};
    }
    const int64_t side = g.window.side;
    g.dense = side >= 3 && side <= 7 && (g.K == 0 || (g.K == side && g.dilation == 1));
    return g;
}

#endif
