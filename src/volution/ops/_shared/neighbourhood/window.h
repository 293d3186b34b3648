/* The geometry of one call, and what the three kernels do with it before and after the arithmetic.
 *
 * sizes: dtype, threads, N, C, H, W, G, D, h, w, stride, then strides in elements:
 *   full map   (n, row, column)   the H x W side
 *   small map  (n, row, column)   the h x w side
 *   kernel     (n, row, column)   the h x w side; its taps are adjacent, its groups D apart
 */
#ifndef NEIGHBOURHOOD_WINDOW_H
#define NEIGHBOURHOOD_WINDOW_H

#include "geometry.h"

#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

typedef struct {
    int64_t dtype, threads;
    int64_t N, C, H, W, G, D, h, w, stride;
    steps full, small, kernel;
    const int64_t *offsets;
    int64_t cg;     /* channels of a group */
    int64_t side;   /* K where the taps are a centred K x K window, 0 otherwise */
} window;

/* K where the offsets are those of a dense centred K x K window in row order, else 0. */
ALWAYS_INLINE int64_t window_side(const int64_t *offsets, int64_t taps) {
    int64_t side = 1;
    while (side * side < taps) side += 2;
    if (side * side != taps) return 0;
    for (int64_t tap = 0; tap < taps; tap++) {
        if (offsets[2 * tap] != tap / side - side / 2) return 0;
        if (offsets[2 * tap + 1] != tap % side - side / 2) return 0;
    }
    return side;
}

ALWAYS_INLINE window window_of(const int64_t *s, const int64_t *offsets) {
    window w = {s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10],
                {s[11], s[12], s[13]}, {s[14], s[15], s[16]}, {s[17], s[18], s[19]},
                offsets, s[3] / s[6], 0};
    w.side = w.stride == 1 ? window_side(offsets, w.D) : 0;
    /* A small problem is done before the other threads have woken up. */
    if (w.N * w.h * w.w * w.C * w.D < 60000) w.threads = 1;
    return w;
}

/* Index of the widest vector whose elements divide cg; -1 if not even 16 bytes do. */
ALWAYS_INLINE int widest(int64_t dtype, int64_t cg) {
    int width = -1;
    for (int i = 0; (16 << i) <= VOLUTION_VECTOR_BYTES; i++)
        if (cg % ((16 << i) / element_size(dtype)) == 0) width = i;
    return width;
}

/* Rows that a thread takes at a time. Going down a few rows before going on to the right keeps the
 * overlapping windows of a tile in the first-level cache; every thread should still get work. */
ALWAYS_INLINE int64_t rows_per_block(const window *w, int64_t rows) {
    const int64_t fair = w->N * rows / (4 * w->threads);
    return fair >= 8 ? 8 : fair >= 1 ? fair : 1;
}

/* Ask for `bytes` bytes of each of some pixels ahead of their use. A tile reads short pieces of many rows,
 * which the processor's own prefetcher does not see coming. Prefetching past the end is harmless. */
ALWAYS_INLINE void prefetch_pixels(const void *first, int64_t step, int64_t bytes, int pixels,
                                 const int to_write) {
    for (int t = 0; t < pixels; t++)
        for (int64_t line = 0; line < bytes + 63; line += 64)
            __builtin_prefetch((const char *)first + t * step + line, to_write, 3);
}

#endif
