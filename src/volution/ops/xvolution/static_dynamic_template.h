/* The static and dynamic convolution for one element type and vector width; vector.h has V().
 *
 * A tile is TILE output pixels of one row by R units of channels of one group, as in gather. Where
 * both kernels lie on one window a tap's weight is made of the two in a register, right before its
 * product; else the taps of one pass after those of the other, into the same sums.
 */
#include "vector.h"

#include "_shared/neighbourhood/taps.h"

ALWAYS_INLINE void V(load_units)(const V(elem) * from, V(vec) * to, const int R) {
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) V(load)(from + r * UNIT, to + r * PARTS);
}

/* One row of taps of a dense window: input pixels p = 0 .. TILE + K - 2 from `line` on, of which
 * those left of `skip` and from `stop` on lie outside the image. own[t] are t's dynamic taps,
 * fixed the row's static ones. */
ALWAYS_INLINE void V(combine_line)(const V(elem) * line, int64_t step, const V(acc) * const *own,
                                   const V(elem) * fixed, int64_t channels, const V(vec) * scale,
                                   V(vec) (*sum)[4], int64_t skip, int64_t stop, const int inside,
                                   const int BOTH, const int K, const int TILE, const int R) {
    V(vec) taps[7][4];
    if (BOTH)
#pragma GCC unroll 8
        for (int v = 0; v < K; v++) V(load_units)(fixed + v * channels, taps[v], R);
#pragma GCC unroll 16
    for (int p = 0; p < TILE + K - 1; p++) {
        if (inside || (p >= skip && p < stop)) {
            V(vec) value[4];
            V(load_units)(line, value, R);
#pragma GCC unroll 8
            for (int t = 0; t < TILE; t++) {
                if (p - t < 0 || p - t >= K) continue;
                const V(vec) dynamic = V(splat)(own[t][p - t]);
#pragma GCC unroll 4
                for (int r = 0; r < R * PARTS; r++)
                    sum[t][r] += (BOTH ? dynamic * scale[r] + taps[p - t][r] : dynamic) * value[r];
            }
        }
        line += step;
        KEEP(line);
    }
}

/* Add bias and residual, and write. */
ALWAYS_INLINE void V(combine_end)(const static_dynamic *g, V(vec) (*sum)[4], const V(elem) * bias,
                                  const V(elem) * rest, V(elem) * y, const int TILE, const int R) {
    V(vec) shift[4];
    V(load_units)(bias, shift, R);
#pragma GCC unroll 8
    for (int t = 0; t < TILE; t++) {
        V(vec) more[4];
        if (rest != NULL) V(load_units)(rest + t * g->rest.col, more, R);
#pragma GCC unroll 4
        for (int r = 0; r < R * PARTS; r++) sum[t][r] += rest == NULL ? shift[r] : shift[r] + more[r];
#pragma GCC unroll 4
        for (int r = 0; r < R; r++)
            V(store)(y + t * g->window.small.col + r * UNIT, sum[t] + r * PARTS);
    }
}

/* Dense K x K window, stride 1: pixels (row, col .. col + TILE - 1). */
ALWAYS_INLINE void V(combine_dense)(const static_dynamic *s, const V(elem) * x, const V(acc) * k,
                                    int64_t k_step, int64_t c, int64_t row, int64_t col,
                                    V(vec) (*sum)[4], const int BOTH, const int K, const int TILE,
                                    const int R) {
    const window *g = &s->window;
    const V(elem) *rows = (const V(elem) *)s->rows + c;
    const int64_t first = max64(0, K / 2 - row), last = min64(K, g->H + K / 2 - row);
    const int64_t skip = K / 2 - col, stop = g->W + K / 2 - col, step = g->full.col;
    const V(elem) *line = x + (row + first - K / 2) * g->full.row - skip * step;
    const V(elem) *fixed = rows + first * K * g->C;
    const V(acc) * own[8];
    V(vec) scale[4];
    V(load_units)(rows + s->K * s->K * g->C, scale, R);
#pragma GCC unroll 8
    for (int t = 0; t < TILE; t++) own[t] = k + first * K + t * k_step;
    const int inside = skip <= 0 && stop >= TILE + K - 1;
    for (int64_t u = first; u < last; u++) {
        if (inside)
            V(combine_line)(line, step, own, fixed, g->C, scale, sum, 0, 0, 1, BOTH, K, TILE, R);
        else
            V(combine_line)(line, step, own, fixed, g->C, scale, sum, skip, stop, 0, BOTH, K, TILE, R);
        line += g->full.row;
        fixed += K * g->C;
#pragma GCC unroll 8
        for (int t = 0; t < TILE; t++) {
            own[t] += K;
            KEEP(own[t]);
        }
    }
    if (!BOTH)
#pragma GCC unroll 8
        for (int t = 0; t < TILE; t++)
#pragma GCC unroll 4
            for (int r = 0; r < R * PARTS; r++) sum[t][r] *= scale[r];
}

/* One tap, anywhere: add its weight (each pixel's OWN, or the fixed one) times its partner. */
ALWAYS_INLINE void V(combine_tap)(const window *g, const V(elem) * x, int64_t row, int64_t left,
                                  const V(acc) * own, int64_t k_step, const V(vec) * fixed,
                                  V(vec) (*sum)[4], const int OWN, const int TILE, const int R) {
    if (row < 0 || row >= g->H) return;
    const V(elem) *line = x + row * g->full.row;
#pragma GCC unroll 8
    for (int t = 0; t < TILE; t++) {
        const int64_t at = left + g->stride * t;
        if ((uint64_t)at >= (uint64_t)g->W) continue;
        V(vec) value[4];
        V(load_units)(line + at * g->full.col, value, R);
#pragma GCC unroll 4
        for (int r = 0; r < R * PARTS; r++)
            sum[t][r] += (OWN ? V(splat)(own[t * k_step]) : fixed[r]) * value[r];
    }
}

/* Any taps and stride: first the dynamic ones, scaled at their end, then the static ones. */
ALWAYS_INLINE void V(combine_any)(const static_dynamic *s, const V(elem) * x, const V(acc) * k,
                                  int64_t k_step, int64_t c, int64_t row, int64_t col,
                                  V(vec) (*sum)[4], const int TILE, const int R) {
    const window *g = &s->window;
    const V(elem) *rows = (const V(elem) *)s->rows + c;
    const int64_t top = g->stride * row, left = g->stride * col;
    V(vec) fixed[4] = {{0}};
    for (int64_t tap = 0; tap < g->D; tap++)
        V(combine_tap)(g, x, top + g->offsets[2 * tap], left + g->offsets[2 * tap + 1], k + tap,
                       k_step, fixed, sum, 1, TILE, R);
    V(load_units)(rows + s->K * s->K * g->C, fixed, R);
#pragma GCC unroll 8
    for (int t = 0; t < TILE; t++)
#pragma GCC unroll 4
        for (int r = 0; r < R * PARTS; r++) sum[t][r] *= fixed[r];
    for (int64_t tap = 0; tap < s->K * s->K; tap++) {
        const int64_t down = s->dilation * (tap / s->K - s->K / 2);
        const int64_t right = s->dilation * (tap % s->K - s->K / 2);
        V(load_units)(rows + tap * g->C, fixed, R);
        V(combine_tap)(g, x, top + down, left + right, k, 0, fixed, sum, 0, TILE, R);
    }
}

#define DENSE(side, TILE, R)                                                       \
    (s->K ? V(combine_dense)(s, x, k, k_step, c, row, col, sum, 1, side, TILE, R)  \
          : V(combine_dense)(s, x, k, k_step, c, row, col, sum, 0, side, TILE, R))

/* x and y begin at channel c. */
#define COMBINE_TILE(suffix, TILE, R)                                                              \
    static void V(combine_tile_##suffix)(const static_dynamic *s, const V(elem) * x,               \
                                         const V(acc) * k, int64_t k_step, V(elem) * y, int64_t n, \
                                         int64_t c, int64_t row, int64_t col) {                    \
        const window *g = &s->window;                                                              \
        V(vec) sum[8][4] = {{{0}}};                                                                \
        if (!s->dense) V(combine_any)(s, x, k, k_step, c, row, col, sum, TILE, R);                 \
        else if (g->side == 3) DENSE(3, TILE, R);                                                           \
        else if (g->side == 5) DENSE(5, TILE, R);                                                           \
        else DENSE(7, TILE, R);                                                                             \
        const V(elem) *bias = (const V(elem) *)s->rows + (s->K * s->K + 1) * g->C + c;             \
        const V(elem) *rest = s->residual;                                                         \
        if (rest != NULL) rest += n * s->rest.n + row * s->rest.row + col * s->rest.col + c;       \
        V(combine_end)(s, sum, bias, rest, y + row * g->small.row + col * g->small.col, TILE, R);  \
    }
COMBINE_TILE(wide, 4, (2 / PARTS))
COMBINE_TILE(narrow, 4, 1)
COMBINE_TILE(last, 1, 1)
#undef COMBINE_TILE
#undef DENSE

/* Rows [row, end) of image n; x, k and y are the image's. scratch holds a tile's widened taps. */
static void V(combine_rows)(const static_dynamic *s, const V(elem) * x, const V(elem) * k,
                            V(elem) * y, int64_t n, int64_t row, int64_t end, V(acc) * scratch) {
    const window *g = &s->window;
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
                for (int64_t c = group * g->cg, stop = c + g->cg; c < stop;) {
                    if (tile == 1) {
                        V(combine_tile_last)(s, x + c, taps, k_step, y + c, n, c, r, col);
                        c += UNIT;
                    } else if (c + paired <= stop) {
                        V(combine_tile_wide)(s, x + c, taps, k_step, y + c, n, c, r, col);
                        c += paired;
                    } else {
                        V(combine_tile_narrow)(s, x + c, taps, k_step, y + c, n, c, r, col);
                        c += UNIT;
                    }
                }
            }
    }
}

static int V(combine)(const static_dynamic *s, const void *full, const void *kernel, void *small) {
    const window *g = &s->window;
    const V(elem) *x = full, *k = kernel;
    V(elem) *y = small;
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
                V(combine_rows)(s, x + n * g->full.n, k + n * g->kernel.n, y + n * g->small.n, n,
                                row, min64(row + rows, g->h), scratch);
        }
        free(scratch);
    }
    return failed;
}
