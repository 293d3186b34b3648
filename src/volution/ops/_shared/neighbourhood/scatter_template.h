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

/* What one row of sending pixels p = 0 .. TILE + K - 2 gives to a tile; those left of `skip` and
 * from `stop` on lie outside the map. */
ALWAYS_INLINE void V(scatter_line)(const V(elem) * line, int64_t step, const V(elem) * taps,
                                   int64_t k_step, V(vec) (*sum)[4], int64_t skip, int64_t stop,
                                   const int inside, const int K, const int TILE, const int R) {
#pragma GCC unroll 16
    for (int p = 0; p < TILE + K - 1; p++) {
        if (inside || (p >= skip && p < stop)) {
            V(vec) value[4];
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) V(load)(line + r * UNIT, value + r * PARTS);
#pragma GCC unroll 8
            for (int t = 0; t < TILE; t++) {
                const int v = t - p + K - 1;
                if (v < 0 || v >= K) continue;
                const V(vec) weight = V(weight)(taps, v);
#pragma GCC unroll 4
                for (int r = 0; r < R * PARTS; r++) sum[t][r] += weight * value[r];
            }
        }
        line += step;
        taps += k_step;
        KEEP(line);
        KEEP(taps);
    }
}

/* Dense K x K window, stride 1: receiving pixels (row, col .. col + TILE - 1). */
ALWAYS_INLINE void V(scatter_dense)(const window *g, const V(elem) * x, const V(elem) * k,
                                    V(elem) * y, int64_t row, int64_t col, const int K,
                                    const int TILE, const int R) {
    V(vec) sum[8][4];
#pragma GCC unroll 8
    for (int t = 0; t < TILE; t++)
#pragma GCC unroll 4
        for (int r = 0; r < R * PARTS; r++) sum[t][r] = (V(vec)){0};

    /* The sending pixel `down` rows below reaches this row with its tap row K / 2 - down. */
    const int64_t first = max64(-K / 2, -row), last = min64(K / 2, g->h - 1 - row);
    const int64_t skip = K / 2 - col, stop = g->w + K / 2 - col;
    const int inside = skip <= 0 && stop >= TILE + K - 1;
    for (int64_t down = first; down <= last; down++) {
        const V(elem) *line = x + (row + down) * g->small.row - skip * g->small.col;
        const V(elem) *taps =
            k + (row + down) * g->kernel.row - skip * g->kernel.col + (K / 2 - down) * K;
        if (inside)
            V(scatter_line)(line, g->small.col, taps, g->kernel.col, sum, 0, 0, 1, K, TILE, R);
        else
            V(scatter_line)(line, g->small.col, taps, g->kernel.col, sum, skip, stop, 0, K, TILE, R);
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

/* Rows [row, end) of one image; x, k and y are the image's. */
static void V(scatter_rows_dense)(const window *g, const V(elem) * x, const V(elem) * k,
                                  V(elem) * y, int64_t row, int64_t end) {
    const int64_t paired = 2 / PARTS * UNIT, reach = g->side / 2;
    const int tile = g->W >= 4 ? 4 : 1;
    for (int64_t start = 0; start < g->W; start += tile) {
        /* The last tile is moved back to end with the row; what it computes again is the same. */
        const int64_t col = min64(start, g->W - tile);
        for (int64_t group = 0; group < g->G; group++)
            for (int64_t r = row; r < end; r++) {
                const V(elem) *taps = k + group * g->D;
                V(elem) *line = y + r * g->full.row;
                /* What the next tile adds: the pixels behind this one's reach, lowest row. */
                const int64_t low = min64(r + reach, g->h - 1), right = col + tile + reach;
                prefetch_pixels(taps + low * g->kernel.row + right * g->kernel.col,
                                g->kernel.col * sizeof *k, g->D * sizeof *k, tile, 0);
                for (int64_t c = group * g->cg, stop = c + g->cg; c < stop;) {
                    if (tile == 1) {
                        V(scatter_tile_last)(g, x + c, taps, line + c, r, col);
                        c += UNIT;
                    } else if (c + paired <= stop) {
                        V(scatter_tile_wide)(g, x + c, taps, line + c, r, col);
                        c += paired;
                    } else {
                        V(scatter_tile_narrow)(g, x + c, taps, line + c, r, col);
                        c += UNIT;
                    }
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
                    V(vec) sum[2] = {{0}, {0}};
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
    const int64_t rows = rows_per_block(g, g->H), blocks = (g->H + rows - 1) / rows;
    int failed = 0;
#pragma omp parallel num_threads(g->threads) reduction(| : failed)
    {
        int64_t *heard = malloc((size_t)(3 * g->D) * sizeof *heard);
        failed = heard == NULL;
#pragma omp for schedule(static)
        for (int64_t block = 0; block < g->N * blocks; block++) {
            const int64_t n = block / blocks, row = block % blocks * rows;
            const int64_t end = min64(row + rows, g->H);
            const V(elem) *xn = x + n * g->small.n, *kn = k + n * g->kernel.n;
            V(elem) *yn = y + n * g->full.n;
            if (failed) continue;
            if (dense) V(scatter_rows_dense)(g, xn, kn, yn, row, end);
            else
                for (int64_t r = row; r < end; r++)
                    V(scatter_row_any)(g, xn, kn, yn + r * g->full.row, r, heard);
        }
        free(heard);
    }
    return failed;
}
