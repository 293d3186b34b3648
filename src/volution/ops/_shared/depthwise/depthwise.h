/* The geometry of one depthwise call and its division of work.
 *
 * sizes: dtype, threads, N, C, H, W, h, w, K, stride, dilation, then
 *   B       kernels: 1, or N where every image has its own
 *   gated   channels that the gate multiplies, 0 without a gate
 *   gelu    1 to apply it
 *   scale   the bits of a double
 *   shortcut  1 to add the full map itself, at stride 1
 *   strides in elements:
 *     full map  (n, row, column)     the H x W side
 *     small map (n, row, column)     the h x w side
 *     gate      (n, row, column)
 *     weight    (image, channel, row, column of a tap)
 *     bias      (image)
 * Channels of maps, gates and biases are adjacent.
 */
#ifndef DEPTHWISE_H
#define DEPTHWISE_H

#include "geometry.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

typedef struct {
    int64_t dtype, threads;
    int64_t N, C, H, W, h, w, K, stride, dilation, B, gated, gelu;
    double scale;
    steps full, small, gate;
    int64_t w_n, w_c, w_row, w_col, b_n;
    /* Set by lay_out_weights (weights.h): taps of one channel `tap` apart, channels adjacent. */
    const void *weight;
    int64_t tap, kernel;
    const void *bias, *gate_map, *shortcut;
} depthwise;

ALWAYS_INLINE depthwise depthwise_of(const int64_t *s) {
    depthwise g = {s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11],
                   s[12], s[13], 0,
                   {s[16], s[17], s[18]}, {s[19], s[20], s[21]}, {s[22], s[23], s[24]},
                   s[25], s[26], s[27], s[28], s[29], NULL, 0, 0, NULL, NULL, NULL};
    memcpy(&g.scale, &s[14], sizeof g.scale);
    /* A small problem is done before the other threads have woken up. */
    if (g.N * g.h * g.w * g.C * g.K * g.K < 60000) g.threads = 1;
    return g;
}

/* Index of the widest vector that is not wider than the channels. */
ALWAYS_INLINE int widest_within(int64_t dtype, int64_t channels) {
    int width = 0;
    for (int i = 1; (16 << i) <= VOLUTION_VECTOR_BYTES; i++)
        if ((16 << i) / element_size(dtype) <= channels) width = i;
    return width;
}

/* Pixels of one row whose windows overlap tap on tap: they are `dilation` columns apart. Returns
 * how many lie in the class that starts at column `first`. */
ALWAYS_INLINE int64_t class_size(const depthwise *g, int64_t first) {
    return (g->w - first + g->dilation - 1) / g->dilation;
}

/* Pixels of a tile, at most `most`: as many as waste least at the end of a row of `pixels`. */
ALWAYS_INLINE int64_t tile_for(int64_t pixels, int64_t most) {
    if (pixels <= most) return pixels;
    int64_t best = most, least = (pixels + most - 1) / most * most;
    for (int64_t t = most - 1; t >= 4; t--) {
        const int64_t work = (pixels + t - 1) / t * t;
        if (work < least) best = t, least = work;
    }
    return best;
}

/* How a convolution is shared out: blocks of rows, and ranges of channels where maps are small. */
typedef struct {
    int64_t rows, row_blocks, channels, channel_blocks;
} division;

/* Going down the rows before going on keeps the overlap of windows in the first-level cache. A
 * small map stays there whole, and is better shared out by channels. */
ALWAYS_INLINE division divide(const depthwise *g, int64_t rows, int64_t cols, int64_t vector) {
    const int64_t vectors = max64(1, g->C / vector), wanted = 4 * g->threads;
    division d = {min64(rows, 8 * g->dilation), 0, g->C, 1};
    if (rows * cols <= 256 && vectors * g->N >= wanted) {
        const int64_t parts = min64(vectors, max64(1, wanted / max64(1, g->N)));
        d.rows = rows;
        d.channels = (vectors + parts - 1) / parts * vector;
    } else {
        const int64_t fair = g->N * rows / wanted;
        d.rows = max64(1, min64(d.rows, fair));
    }
    d.row_blocks = (rows + d.rows - 1) / d.rows;
    d.channel_blocks = max64(1, (g->C + d.channels - 1) / d.channels);
    return d;
}

#endif
