/* correlate for one element type and vector width; see vector.h for the names in V().
 *
 * A pixel's query stays put while the taps of its window pass, LANES of them at a time: each tap
 * has a vector of partial sums, and LANES such vectors are reduced together, so that the result
 * is one vector with one finished tap per lane. Taps outside the image read a block of zeros.
 */
#include "vector.h"

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

#if ELEMENT == 1
ALWAYS_INLINE void V(put_taps)(uint16_t *out, V(vec) value, int count) {
    V(uvec) upper = V(round)(value);
    for (int i = 0; i < count; i++) out[i] = (uint16_t)(upper[i] >> 16);
}
#else
ALWAYS_INLINE void V(put_taps)(V(elem) * out, V(vec) value, int count) {
    memcpy(out, &value, (size_t)count * sizeof *out);
}
#endif

/* LANES taps of one pixel and group; `count` of them exist. at[j] leads from x to tap j. */
ALWAYS_INLINE V(vec) V(correlate_taps)(const V(elem) * q, const V(elem) * const *at,
                                       int64_t channel, int64_t cg, const int count) {
    V(vec) sums[LANES];
#pragma GCC unroll 16
    for (int j = 0; j < LANES; j++) sums[j] = V(splat)(0);
    for (int64_t c = channel; c < channel + cg; c += UNIT) {
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

static void V(correlate_pixel)(const window *g, const V(elem) * q, const V(elem) * const *at,
                               V(elem) * k) {
    const int64_t whole = g->D / LANES * LANES;
    for (int64_t group = 0; group < g->G; group++, k += g->D) {
        const int64_t channel = group * g->cg;
        for (int64_t tap = 0; tap < whole; tap += LANES)
            V(put_taps)(k + tap, V(correlate_taps)(q, at + tap, channel, g->cg, LANES), LANES);
        if (g->D > whole) {
            const int rest = (int)(g->D - whole);
            V(put_taps)(k + whole, V(correlate_taps)(q, at + whole, channel, g->cg, rest), rest);
        }
    }
}

static void V(correlate_row)(const window *g, const V(elem) * q, const V(elem) * x, V(elem) * k,
                             int64_t row, const V(elem) * zeros, const V(elem) * *at) {
    for (int64_t col = 0; col < g->w; col++) {
        for (int64_t tap = 0; tap < g->D; tap++) {
            const int64_t r = g->stride * row + g->offsets[2 * tap];
            const int64_t c = g->stride * col + g->offsets[2 * tap + 1];
            const int inside = (uint64_t)r < (uint64_t)g->H && (uint64_t)c < (uint64_t)g->W;
            at[tap] = inside ? x + r * g->full.row + c * g->full.col : zeros;
        }
        V(correlate_pixel)(g, q + col * g->small.col, at, k + col * g->kernel.col);
    }
}

static int V(correlate)(const window *g, const void *full, const void *small, const void *kernel) {
    const V(elem) *x = full, *q = small;
    V(elem) *k = (V(elem) *)kernel;
    int failed = 0;
    V(elem) *zeros = calloc((size_t)max64(1, g->C), sizeof *zeros);
    if (zeros == NULL) return 1;
#pragma omp parallel num_threads(g->threads) reduction(| : failed)
    {
        const V(elem) **at = malloc((size_t)g->D * sizeof *at);
        failed = at == NULL;
#pragma omp for schedule(static)
        for (int64_t line = 0; line < g->N * g->h; line++) {
            const int64_t n = line / g->h, row = line % g->h;
            if (!failed)
                V(correlate_row)(g, q + n * g->small.n + row * g->small.row, x + n * g->full.n,
                                 k + n * g->kernel.n + row * g->kernel.row, row, zeros, at);
        }
        free(at);
    }
    free(zeros);
    return failed;
}
