/* scatter for one element type and vector width; see vector.h for the names in V().
 *
 * Written from the receiving side, so that threads never meet and every pixel is summed in one
 * order: a pixel of the full map collects from the small pixels whose windows cover it.
 */
#include "vector.h"

/* One tap's weight on all lanes. */
#if ELEMENT == 1
/* Widening the low half of a word costs a shift, the high half a mask: both cheaper than moving a
 * 16-bit value through a scalar register. The word always lies inside the taps of its pixel. */
ALWAYS_INLINE V(vec) V(weight)(const uint16_t *taps, int64_t tap) {
    uint32_t word;
    if (tap == 0) return V(splat)(V(widen)(taps[0]));
    memcpy(&word, taps + tap - 1, 4);
    return (V(vec))(((V(uvec)){0} + word) & 0xffff0000u);
}
#else
ALWAYS_INLINE V(vec) V(weight)(const V(elem) * taps, int64_t tap) { return V(splat)(taps[tap]); }
#endif

/* Dense K x K window, stride 1: receiving pixels (row, col .. col + TILE - 1). */
ALWAYS_INLINE void V(scatter_dense)(const window *g, const V(elem) * x, const V(elem) * k,
                                    V(elem) * y, int64_t row, int64_t col, const int K,
                                    const int TILE, const int R) {
    V(vec) sum[8][4];
#pragma GCC unroll 8
    for (int t = 0; t < TILE; t++)
#pragma GCC unroll 4
        for (int r = 0; r < R * PARTS; r++) sum[t][r] = V(splat)(0);

    /* Tap row u of the sending pixel K / 2 - u rows below reaches this row. */
    const int64_t first = max64(0, row + K / 2 - (g->h - 1)), last = min64(K, row + K / 2 + 1);
    const int inside = col >= K / 2 && col + TILE - 1 + K / 2 < g->w;
    for (int64_t u = first; u < last; u++) {
        const int64_t from = row + K / 2 - u;
        const V(elem) *line = x + from * g->small.row + (col - K / 2) * g->small.col;
        const V(elem) *taps = k + from * g->kernel.row + (col - K / 2) * g->kernel.col + u * K;
#pragma GCC unroll 16
        for (int p = 0; p < TILE + K - 1; p++) {
            if (!inside && (uint64_t)(col + p - K / 2) >= (uint64_t)g->w) continue;
            V(vec) value[4];
#pragma GCC unroll 4
            for (int r = 0; r < R; r++)
                V(load)(line + p * g->small.col + r * UNIT, value + r * PARTS);
#pragma GCC unroll 8
            for (int t = 0; t < TILE; t++) {
                const int v = t - p + K - 1;
                if (v < 0 || v >= K) continue;
                const V(vec) weight = V(weight)(taps + p * g->kernel.col, v);
#pragma GCC unroll 4
                for (int r = 0; r < R * PARTS; r++) sum[t][r] += weight * value[r];
            }
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < TILE; t++)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++)
            V(store)(y + (col + t) * g->full.col + r * UNIT, sum[t] + r * PARTS);
}

#define SCATTER_TILE(suffix, TILE, R)                                                              \
    static void V(scatter_tile_##suffix)(const window *g, const V(elem) * x, const V(elem) * k,    \
                                         V(elem) * y, int64_t row, int64_t col) {                  \
        switch (g->side) {                                                                         \
        case 3: V(scatter_dense)(g, x, k, y, row, col, 3, TILE, R); break;                         \
        case 5: V(scatter_dense)(g, x, k, y, row, col, 5, TILE, R); break;                         \
        case 7: V(scatter_dense)(g, x, k, y, row, col, 7, TILE, R); break;                         \
        }                                                                                          \
    }
SCATTER_TILE(wide, 4, (2 / PARTS))
SCATTER_TILE(narrow, 4, 1)
SCATTER_TILE(last, 1, 1)
#undef SCATTER_TILE

static void V(scatter_row_dense)(const window *g, const V(elem) * x, const V(elem) * k,
                                 V(elem) * y, int64_t row) {
    const int64_t paired = 2 / PARTS * UNIT;
    const int tile = g->W >= 4 ? 4 : 1;
    for (int64_t start = 0; start < g->W; start += tile) {
        const int64_t col = min64(start, g->W - tile);
        for (int64_t group = 0; group < g->G; group++)
            for (int64_t c = group * g->cg, end = c + g->cg; c < end;) {
                const V(elem) *taps = k + group * g->D;
                if (tile == 1) {
                    V(scatter_tile_last)(g, x + c, taps, y + c, row, col);
                    c += UNIT;
                } else if (c + paired <= end) {
                    V(scatter_tile_wide)(g, x + c, taps, y + c, row, col);
                    c += paired;
                } else {
                    V(scatter_tile_narrow)(g, x + c, taps, y + c, row, col);
                    c += UNIT;
                }
            }
    }
}

/* Any taps and stride. Along a row, every stride-th receiving pixel hears the same taps, each
 * from the small pixel a fixed step away: so the row is done one phase at a time. heard lists the
 * taps of a phase: tap, row of the small map, and column minus the phase's running index. */
static void V(scatter_row_any)(const window *g, const V(elem) * x, const V(elem) * k, V(elem) * y,
                               int64_t row, int64_t *heard) {
    const int64_t s = g->stride;
    for (int64_t phase = 0; phase < min64(s, g->W); phase++) {
        int64_t count = 0;
        for (int64_t tap = 0; tap < g->D; tap++) {
            const int64_t down = row - g->offsets[2 * tap], right = phase - g->offsets[2 * tap + 1];
            if (down != floor_div(down, s) * s || right != floor_div(right, s) * s) continue;
            const int64_t from = floor_div(down, s);
            if (from < 0 || from >= g->h) continue;
            heard[3 * count] = tap;
            heard[3 * count + 1] = from;
            heard[3 * count + 2] = floor_div(right, s);
            count++;
        }
        for (int64_t index = 0; phase + index * s < g->W; index++)
            for (int64_t group = 0; group < g->G; group++)
                for (int64_t c = group * g->cg, end = c + g->cg; c < end; c += UNIT) {
                    V(vec) sum[2] = {V(splat)(0), V(splat)(0)};
                    for (int64_t i = 0; i < count; i++) {
                        const int64_t from = heard[3 * i + 1], at = index + heard[3 * i + 2];
                        if ((uint64_t)at >= (uint64_t)g->w) continue;
                        const V(elem) *taps =
                            k + from * g->kernel.row + at * g->kernel.col + group * g->D;
                        const V(vec) weight = V(weight)(taps, heard[3 * i]);
                        V(vec) value[2];
                        V(load)(x + from * g->small.row + at * g->small.col + c, value);
#pragma GCC unroll 2
                        for (int r = 0; r < PARTS; r++) sum[r] += weight * value[r];
                    }
                    V(store)(y + (phase + index * s) * g->full.col + c, sum);
                }
    }
}

static int V(scatter)(const window *g, const void *full, const void *small, const void *kernel) {
    const V(elem) *x = small, *k = kernel;
    V(elem) *y = (V(elem) *)full;
    const int dense = g->side >= 3 && g->side <= 7;
    int failed = 0;
#pragma omp parallel num_threads(g->threads) reduction(| : failed)
    {
        int64_t *heard = malloc((size_t)(3 * g->D) * sizeof *heard);
        failed = heard == NULL;
#pragma omp for schedule(static)
        for (int64_t line = 0; line < g->N * g->H; line++) {
            const int64_t n = line / g->H, row = line % g->H;
            const V(elem) *xn = x + n * g->small.n, *kn = k + n * g->kernel.n;
            V(elem) *yn = y + n * g->full.n + row * g->full.row;
            if (failed) continue;
            if (dense) V(scatter_row_dense)(g, xn, kn, yn, row);
            else V(scatter_row_any)(g, xn, kn, yn, row, heard);
        }
        free(heard);
    }
    return failed;
}
