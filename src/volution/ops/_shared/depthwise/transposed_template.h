/* The transposed convolution at strides above 1, from the receiving side: no atomics. */
#include "conv_template.h"

/* Pixel (row, col) of the full map, R units of channels: the taps whose sender is a whole pixel. */
ALWAYS_INLINE void V(transposed_pixel)(const depthwise *g, const V(elem) * y,
                                       const V(elem) * weight, V(elem) * x, int64_t row,
                                       int64_t col, int64_t c, const int R) {
    const int64_t s = g->stride, half = g->K / 2 * g->dilation;
    V(vec) sum[8];
#pragma GCC unroll 8
    for (int r = 0; r < R * PARTS; r++) sum[r] = (V(vec)){0};
    for (int64_t u = 0; u < g->K; u++) {
        const int64_t a = row + half - u * g->dilation;
        if (a < 0 || a % s || a / s >= g->h) continue;
        for (int64_t v = 0; v < g->K; v++) {
            const int64_t b = col + half - v * g->dilation;
            if (b < 0 || b % s || b / s >= g->w) continue;
            const V(elem) *own = weight + (u * g->K + v) * g->tap + c;
            const V(elem) *from = y + a / s * g->small.row + b / s * g->small.col + c;
            V(vec) tap[2], value[2];
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                V(load)(own + r * UNIT, tap);
                V(load)(from + r * UNIT, value);
#pragma GCC unroll 2
                for (int i = 0; i < PARTS; i++) sum[r * PARTS + i] += tap[i] * value[i];
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
        V(store)(x + row * g->full.row + col * g->full.col + c + r * UNIT, sum + r * PARTS);
}

static int V(transposed)(const depthwise *g, const void *small, void *full) {
    const int64_t unit = g->C >= 4 * UNIT ? 4 * UNIT : UNIT;
#pragma omp parallel for num_threads(g->threads) schedule(static)
    for (int64_t line = 0; line < g->N * g->H; line++) {
        const int64_t n = line / g->H, row = line % g->H;
        const V(elem) *weight = (const V(elem) *)g->weight + (g->B > 1) * n * g->kernel;
        const V(elem) *y = (const V(elem) *)small + n * g->small.n;
        V(elem) *x = (V(elem) *)full + n * g->full.n;
        for (int64_t col = 0; col < g->W; col++)
            for (int64_t c = 0; c < g->C; c += unit) {
                const int64_t channel = min64(c, g->C - unit);
                if (unit == UNIT) V(transposed_pixel)(g, y, weight, x, row, col, channel, 1);
                else V(transposed_pixel)(g, y, weight, x, row, col, channel, 4);
            }
    }
    return 0;
}
