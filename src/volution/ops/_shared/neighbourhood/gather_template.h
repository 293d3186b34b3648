/* gather for one element type and vector width; see vector.h for the names in V().
 *
 * A tile is TILE output pixels of one row and R units of channels of one group: its sums stay in
 * registers while the window passes. In a dense K x K window the TILE pixels share most of their
 * neighbours, so the tile walks over the TILE + K - 1 input pixels of a row and spreads each one,
 * loaded once, over the pixels it belongs to.
 */
#include "vector.h"

#include "_shared/neighbourhood/taps.h"

/* One row of taps of a dense K x K window: input pixels p = 0 .. TILE + K - 2 from `line` on, of
 * which those left of `skip` and from `stop` on lie outside the image. own[t] are t's taps. */
ALWAYS_INLINE void V(gather_line)(const V(elem) * line, int64_t step, const V(acc) * const *own,
                                  V(vec) (*sum)[4], int64_t skip, int64_t stop, const int inside,
                                  const int K, const int TILE, const int R) {
#pragma GCC unroll 16
    for (int p = 0; p < TILE + K - 1; p++) {
        if (inside || (p >= skip && p < stop)) {
            V(vec) value[4];
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) V(load)(line + r * UNIT, value + r * PARTS);
#pragma GCC unroll 8
            for (int t = 0; t < TILE; t++) {
                if (p - t < 0 || p - t >= K) continue;
                const V(vec) weight = V(splat)(own[t][p - t]);
#pragma GCC unroll 4
                for (int r = 0; r < R * PARTS; r++) sum[t][r] += weight * value[r];
            }
        }
        line += step;
        KEEP(line);
    }
}

/* Dense K x K window, stride 1: pixels (row, col .. col + TILE - 1), R units of channels. */
ALWAYS_INLINE void V(gather_dense)(const window *g, const V(elem) * x, const V(acc) * k,
                                   int64_t k_step, V(elem) * y, int64_t row, int64_t col,
                                   const int K, const int TILE, const int R) {
    const int64_t first = max64(0, K / 2 - row), last = min64(K, g->H + K / 2 - row);
    const int64_t skip = K / 2 - col, stop = g->W + K / 2 - col, step = g->full.col;
    const V(elem) *line = x + (row + first - K / 2) * g->full.row - skip * step;
    const V(acc) * own[8];
    V(vec) sum[8][4];
#pragma GCC unroll 8
    for (int t = 0; t < TILE; t++) {
        own[t] = k + first * K + t * k_step;
#pragma GCC unroll 4
        for (int r = 0; r < R * PARTS; r++) sum[t][r] = (V(vec)){0};
    }
    const int inside = skip <= 0 && stop >= TILE + K - 1;
    for (int64_t u = first; u < last; u++) {
        if (inside) V(gather_line)(line, step, own, sum, 0, 0, 1, K, TILE, R);
        else V(gather_line)(line, step, own, sum, skip, stop, 0, K, TILE, R);
        line += g->full.row;
#pragma GCC unroll 8
        for (int t = 0; t < TILE; t++) {
            own[t] += K;
            KEEP(own[t]);
        }
    }

#pragma GCC unroll 8
    for (int t = 0; t < TILE; t++)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++)
            V(store)(y + (col + t) * g->small.col + r * UNIT, sum[t] + r * PARTS);
}

/* Any taps and stride. */
ALWAYS_INLINE void V(gather_any)(const window *g, const V(elem) * x, const V(acc) * k,
                                 int64_t k_step, V(elem) * y, int64_t row, int64_t col,
                                 const int TILE, const int R) {
    V(vec) sum[8][4];
#pragma GCC unroll 8
    for (int t = 0; t < TILE; t++)
#pragma GCC unroll 4
        for (int r = 0; r < R * PARTS; r++) sum[t][r] = (V(vec)){0};

    for (int64_t tap = 0; tap < g->D; tap++) {
        const int64_t from = g->stride * row + g->offsets[2 * tap];
        const int64_t left = g->stride * col + g->offsets[2 * tap + 1];
        if (from < 0 || from >= g->H) continue;
        const V(elem) *line = x + from * g->full.row;
        const int inside = left >= 0 && left + g->stride * (TILE - 1) < g->W;
#pragma GCC unroll 8
        for (int t = 0; t < TILE; t++) {
            const int64_t at = left + g->stride * t;
            if (!inside && (uint64_t)at >= (uint64_t)g->W) continue;
            const V(vec) weight = V(splat)(k[t * k_step + tap]);
            V(vec) value[4];
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) V(load)(line + at * g->full.col + r * UNIT, value + r * PARTS);
#pragma GCC unroll 4
            for (int r = 0; r < R * PARTS; r++) sum[t][r] += weight * value[r];
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < TILE; t++)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++)
            V(store)(y + (col + t) * g->small.col + r * UNIT, sum[t] + r * PARTS);
}

#define GATHER_TILE(suffix, TILE, R)                                                               \
    static void V(gather_tile_##suffix)(const window *g, const V(elem) * x, const V(acc) * k,      \
                                        int64_t k_step, V(elem) * y, int64_t row, int64_t col) {   \
        switch (g->side) {                                                                         \
        case 3: V(gather_dense)(g, x, k, k_step, y, row, col, 3, TILE, R); break;                  \
        case 5: V(gather_dense)(g, x, k, k_step, y, row, col, 5, TILE, R); break;                  \
        case 7: V(gather_dense)(g, x, k, k_step, y, row, col, 7, TILE, R); break;                  \
        default: V(gather_any)(g, x, k, k_step, y, row, col, TILE, R);                             \
        }                                                                                          \
    }
GATHER_TILE(wide, 4, (2 / PARTS))
GATHER_TILE(narrow, 4, 1)
GATHER_TILE(last, 1, 1)
#undef GATHER_TILE

/* Rows [row, end) of one image; x, k and y are the image's. scratch holds a tile's widened taps. */
static void V(gather_rows)(const window *g, const V(elem) * x, const V(elem) * k, V(elem) * y,
                           int64_t row, int64_t end, V(acc) * scratch) {
    const int64_t paired = 2 / PARTS * UNIT;
    const int tile = g->w >= 4 ? 4 : 1;
    for (int64_t start = 0; start < g->w; start += tile) {
        /* The last tile is moved back to end with the row; what it computes again is the same. */
        const int64_t col = min64(start, g->w - tile);
        for (int64_t group = 0; group < g->G; group++)
            for (int64_t r = row; r < end; r++) {
                int64_t k_step;
                const V(elem) *own = k + r * g->kernel.row + col * g->kernel.col + group * g->D;
                prefetch_pixels(own + tile * g->kernel.col, g->kernel.col * sizeof *own,
                                g->D * sizeof *own, tile, 0);
                const V(acc) *taps = V(taps)(own, g->kernel.col, g->D, tile, scratch, &k_step);
                V(elem) *line = y + r * g->small.row;
                for (int64_t c = group * g->cg, stop = c + g->cg; c < stop;) {
                    if (tile == 1) {
                        V(gather_tile_last)(g, x + c, taps, k_step, line + c, r, col);
                        c += UNIT;
                    } else if (c + paired <= stop) {
                        V(gather_tile_wide)(g, x + c, taps, k_step, line + c, r, col);
                        c += paired;
                    } else {
                        V(gather_tile_narrow)(g, x + c, taps, k_step, line + c, r, col);
                        c += UNIT;
                    }
                }
            }
    }
}

static int V(gather)(const window *g, const void *full, const void *small, const void *kernel) {
    const V(elem) *x = full, *k = kernel;
    V(elem) *y = (V(elem) *)small;
    const int64_t rows = rows_per_block(g, g->h), blocks = (g->h + rows - 1) / rows;
    int failed = 0;
#pragma omp parallel num_threads(g->threads) reduction(| : failed)
    {
        V(acc) *scratch = malloc((size_t)(4 * g->D) * sizeof *scratch);
        failed = scratch == NULL;
#pragma omp for schedule(static)
        for (int64_t block = 0; block < g->N * blocks; block++) {
            const int64_t n = block / blocks, row = block % blocks * rows;
            if (!failed)
                V(gather_rows)(g, x + n * g->full.n, k + n * g->kernel.n, y + n * g->small.n, row,
                               min64(row + rows, g->h), scratch);
        }
        free(scratch);
    }
    return failed;
}
