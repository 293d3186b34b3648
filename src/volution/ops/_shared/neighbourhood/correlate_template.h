/* correlate for one element type and vector width; see vector.h for the names in V().
 *
 * A pixel's query stays put while the taps of its window pass, LANES of them at a time: each tap
 * has a vector of partial sums, and LANES such vectors are reduced together, so that the result
 * is one vector with one finished tap per lane. Taps outside the image read a block of zeros.
 */
#include "vector.h"

#include "correlate_dense.h"
#include "fold.h"

/* Lane j becomes the sum over the lanes of sums[j]. */
ALWAYS_INLINE V(vec) V(reduce)(V(vec) * sums) {
#pragma GCC unroll 8
    for (int i = 0; i < LANES / 2; i++) sums[i] = FOLD_0(sums[2 * i], sums[2 * i + 1]);
#if FOLD_LEVELS > 1
#pragma GCC unroll 4
    for (int i = 0; i < LANES / 4; i++) sums[i] = FOLD_1(sums[2 * i], sums[2 * i + 1]);
#endif
#if FOLD_LEVELS > 2
#pragma GCC unroll 2
    for (int i = 0; i < LANES / 8; i++) sums[i] = FOLD_2(sums[2 * i], sums[2 * i + 1]);
#endif
#if FOLD_LEVELS > 3
    sums[0] = FOLD_3(sums[0], sums[1]);
#endif
    return sums[0];
}

/* LANES taps of one pixel and group; `count` of them exist. at[j] leads to tap j. The group has
 * `units` units of channels: a constant in the usual cases, which then need no inner loop. */
ALWAYS_INLINE V(vec) V(correlate_taps)(const V(elem) * q, const V(elem) * const *at,
                                       int64_t channel, const int64_t units, const int count) {
    V(vec) sums[LANES];
#pragma GCC unroll 16
    for (int j = 0; j < LANES; j++) sums[j] = (V(vec)){0};
#pragma GCC unroll 4
    for (int64_t i = 0; i < units; i++) {
        const int64_t c = channel + i * UNIT;
        V(vec) query[2], value[2];
        V(load)(q + c, query);
#pragma GCC unroll 16
        for (int j = 0; j < LANES; j++) {
            if (j >= count) break;
            V(load)(at[j] + c, value);
#pragma GCC unroll 2
            for (int r = 0; r < PARTS; r++) sums[j] += query[r] * value[r];
        }
    }
    return V(reduce)(sums);
}

ALWAYS_INLINE void V(correlate_groups)(const window *g, const V(elem) * q,
                                       const V(elem) * const *at, V(elem) * k,
                                       const int64_t units) {
    for (int64_t group = 0; group < g->G; group++, k += g->D) {
        const int64_t channel = group * g->cg;
        if (g->D == 9 && LANES > 9) { /* a constant, for the window of 3 by 3 */
            V(store_lanes)(k, V(correlate_taps)(q, at, channel, units, 9), 9);
            continue;
        }
        if (g->D < LANES) {
            const int few = (int)g->D;
            V(store_lanes)(k, V(correlate_taps)(q, at, channel, units, few), few);
            continue;
        }
        for (int64_t start = 0; start < g->D; start += LANES) {
            /* The last vector is moved back to end with the taps; what it repeats is the same. */
            const int64_t tap = min64(start, g->D - LANES);
            V(store_lanes)(k + tap, V(correlate_taps)(q, at + tap, channel, units, LANES), LANES);
        }
    }
}

static void V(correlate_pixel)(const window *g, const V(elem) * q, const V(elem) * const *at,
                               V(elem) * k) {
    const int64_t units = g->cg / UNIT;
    switch (units) {
    case 1: V(correlate_groups)(g, q, at, k, 1); break;
    case 2: V(correlate_groups)(g, q, at, k, 2); break;
    case 4: V(correlate_groups)(g, q, at, k, 4); break;
    default: V(correlate_groups)(g, q, at, k, units);
    }
}

/* Columns [lo, hi) of the small map whose taps all fall on columns of the image. */
static void V(inner_columns)(const window *g, int64_t *lo, int64_t *hi) {
    int64_t left = 0, right = 0;
    for (int64_t tap = 0; tap < g->D; tap++) {
        left = max64(left, -g->offsets[2 * tap + 1]);
        right = max64(right, g->offsets[2 * tap + 1]);
    }
    *lo = ceil_div(left, g->stride);
    *hi = floor_div(g->W - 1 - right, g->stride) + 1;
}

/* One row; q, x and k are the row's, the image's and the row's. at[tap] follows a tap from pixel
 * to pixel, move[tap] is its step: none for a tap above or below the image, which stays at zeros. */
static void V(correlate_row)(const window *g, const V(elem) * q, const V(elem) * x, V(elem) * k,
                             int64_t row, const V(elem) * zeros, const V(elem) * *at,
                             int64_t *move, int64_t lo, int64_t hi) {
    for (int64_t tap = 0; tap < g->D; tap++) {
        const int64_t r = g->stride * row + g->offsets[2 * tap];
        move[tap] = r >= 0 && r < g->H ? g->stride * g->full.col : 0;
    }
    for (int64_t col = 0; col < g->w; col++) {
        if (col > lo && col < hi) {
            for (int64_t tap = 0; tap < g->D; tap++) at[tap] += move[tap];
        } else {
            for (int64_t tap = 0; tap < g->D; tap++) {
                const int64_t r = g->stride * row + g->offsets[2 * tap];
                const int64_t c = g->stride * col + g->offsets[2 * tap + 1];
                const int inside = r >= 0 && r < g->H && c >= 0 && c < g->W;
                at[tap] = inside ? x + r * g->full.row + c * g->full.col : zeros;
            }
        }
        V(correlate_pixel)(g, q + col * g->small.col, at, k + col * g->kernel.col);
    }
}

static int V(correlate)(const window *g, const void *full, const void *small, const void *kernel) {
    const V(elem) *x = full, *q = small;
    V(elem) *k = (V(elem) *)kernel;
    int64_t lo, hi;
    int failed = 0;
    V(elem) *zeros = calloc((size_t)max64(1, g->C), sizeof *zeros);
    if (zeros == NULL) return 1;
    V(inner_columns)(g, &lo, &hi);
#pragma omp parallel num_threads(g->threads) reduction(| : failed)
    {
        const V(elem) **at = malloc((size_t)g->D * sizeof *at);
        int64_t *move = malloc((size_t)g->D * sizeof *move);
        failed = at == NULL || move == NULL;
#pragma omp for schedule(static)
        for (int64_t line = 0; line < g->N * g->h; line++) {
            const int64_t n = line / g->h, row = line % g->h;
            if (!failed)
                V(correlate_row)(g, q + n * g->small.n + row * g->small.row, x + n * g->full.n,
                                 k + n * g->kernel.n + row * g->kernel.row, row, zeros, at, move,
                                 lo, hi);
        }
        free(move);
        free(at);
    }
    free(zeros);
    return failed;
}
