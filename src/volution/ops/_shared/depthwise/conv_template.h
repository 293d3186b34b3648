/* The convolution for one element type and vector width; see vector.h for the names in V().
 *
 * A tile is T output pixels of a row by R units of channels; its sums stay in registers while the
 * window passes. The T pixels are `dilation` apart, so their windows overlap tap on tap: the tile
 * walks over the T + K - 1 input pixels of a row and adds each one, loaded once, to the sums of
 * the pixels it belongs to. The last tile of a row is moved back to end with it, and so is the
 * last vector of channels: what they compute again is the same.
 */
#include "vector.h"

#include "finish.h"

/* One row of taps: input pixels p = 0 .. T + K - 2 from `line` on, `step` apart, of which those
 * left of `skip` and from `stop` on lie outside the image. */
ALWAYS_INLINE void V(walk)(const V(elem) * line, int64_t step, const V(elem) * weight, int64_t tap,
                           V(vec) (*sum)[4], int64_t skip, int64_t stop, const int inside,
                           const int K, const int T, const int R) {
    V(vec) taps[7][4];
#pragma GCC unroll 8
    for (int v = 0; v < K; v++)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) V(load)(weight + v * tap + r * UNIT, taps[v] + r * PARTS);
#pragma GCC unroll 16
    for (int p = 0; p < T + K - 1; p++) {
        if (inside || (p >= skip && p < stop)) {
            V(vec) value[4];
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) V(load)(line + r * UNIT, value + r * PARTS);
#pragma GCC unroll 8
            for (int t = 0; t < T; t++) {
                if (p - t < 0 || p - t >= K) continue;
#pragma GCC unroll 4
                for (int r = 0; r < R * PARTS; r++) sum[t][r] += taps[p - t][r] * value[r];
            }
        }
        line += step;
        KEEP(line);
    }
}

/* Stride 1, K a constant: T pixels from `col` on, channels from c on. */
ALWAYS_INLINE void V(tile)(const depthwise *g, const V(elem) * x, const V(elem) * weight,
                           V(elem) * y, int64_t n, int64_t row, int64_t col, int64_t c, const int K,
                           const int T, const int R) {
    const int64_t d = g->dilation, half = K / 2, step = d * g->full.col, tap = g->tap;
    const int64_t first = max64(0, half - row / d), last = min64(K, half + (g->H - 1 - row) / d + 1);
    const int64_t skip = half - col / d, stop = half + (g->W - 1 - col) / d + 1;
    const int inside = skip <= 0 && stop >= T + K - 1;
    const V(elem) *line = x + (row + d * (first - half)) * g->full.row + (col - d * half) * g->full.col + c;
    const V(elem) *own = weight + first * K * tap + c;
    V(vec) sum[8][4];
    V(start)(g, n, c, sum, T, R);
    /* The row below the window comes in from memory next. */
    if (row + d * (half + 1) < g->H) {
        const V(elem) *next = x + (row + d * (half + 1)) * g->full.row + col * g->full.col + c;
#pragma GCC unroll 8
        for (int t = 0; t < T; t++)
#pragma GCC unroll 2
            for (int r = 0; r < R; r++) __builtin_prefetch(next + t * step + r * UNIT, 0, 3);
    }
    for (int64_t u = first; u < last; u++) {
        if (inside) V(walk)(line, step, own, tap, sum, 0, 0, 1, K, T, R);
        else V(walk)(line, step, own, tap, sum, skip, stop, 0, K, T, R);
        line += d * g->full.row;
        own += K * tap;
    }
    V(finish)(g, y, n, row, col, d, c, sum, T, R);
}

/* Any K and stride: T pixels next to each other. */
ALWAYS_INLINE void V(tile_any)(const depthwise *g, const V(elem) * x, const V(elem) * weight,
                               V(elem) * y, int64_t n, int64_t row, int64_t col, int64_t c,
                               const int T, const int R) {
    const int64_t s = g->stride, half = g->K / 2 * g->dilation;
    V(vec) sum[8][4];
    V(start)(g, n, c, sum, T, R);
    for (int64_t u = 0; u < g->K; u++) {
        const int64_t from = s * row + u * g->dilation - half;
        if (from < 0 || from >= g->H) continue;
        for (int64_t v = 0; v < g->K; v++) {
            const int64_t left = s * col + v * g->dilation - half;
            const int inside = left >= 0 && left + s * (T - 1) < g->W;
            const V(elem) *line = x + from * g->full.row + c;
            V(vec) taps[4], value[4];
#pragma GCC unroll 4
            for (int r = 0; r < R; r++)
                V(load)(weight + (u * g->K + v) * g->tap + c + r * UNIT, taps + r * PARTS);
#pragma GCC unroll 8
            for (int t = 0; t < T; t++) {
                const int64_t at = left + s * t;
                if (!inside && (uint64_t)at >= (uint64_t)g->W) continue;
#pragma GCC unroll 4
                for (int r = 0; r < R; r++)
                    V(load)(line + at * g->full.col + r * UNIT, value + r * PARTS);
#pragma GCC unroll 4
                for (int r = 0; r < R * PARTS; r++) sum[t][r] += taps[r] * value[r];
            }
        }
    }
    V(finish)(g, y, n, row, col, 1, c, sum, T, R);
}

typedef void V(tile_fn)(const depthwise *g, const V(elem) * x, const V(elem) * weight,
                        V(elem) * y, int64_t n, int64_t row, int64_t col, int64_t c);

#define TILE_FN(name, call, ...)                                                                  \
    static void V(name)(const depthwise *g, const V(elem) * x, const V(elem) * weight,            \
                        V(elem) * y, int64_t n, int64_t row, int64_t col, int64_t c) {            \
        V(call)(g, x, weight, y, n, row, col, c, __VA_ARGS__);                                    \
    }
TILE_FN(any_4, tile_any, 4, 1)
TILE_FN(any_1, tile_any, 1, 1)

/* Tiles of constant K for the widest vectors only: narrower ones serve few channels. */
#if BYTES == VOLUTION_VECTOR_BYTES && ELEMENT != 2
#define WALKS 1
/* Units that a tile is wide: 16 registers hold 7 sums of one vector, 32 those of two. */
#if BYTES == 64
#define WIDE (2 / PARTS)
#else
#define WIDE 1
#endif
#define TILES_OF(K)                                                                               \
    TILE_FN(wide_##K##_1, tile, K, 1, WIDE)                                                       \
    TILE_FN(wide_##K##_2, tile, K, 2, WIDE)                                                       \
    TILE_FN(wide_##K##_3, tile, K, 3, WIDE)                                                       \
    TILE_FN(wide_##K##_4, tile, K, 4, WIDE)                                                       \
    TILE_FN(wide_##K##_5, tile, K, 5, WIDE)                                                       \
    TILE_FN(wide_##K##_6, tile, K, 6, WIDE)                                                       \
    TILE_FN(wide_##K##_7, tile, K, 7, WIDE)
#define LIST_OF(K)                                                                                \
    {V(wide_##K##_1), V(wide_##K##_2), V(wide_##K##_3), V(wide_##K##_4),                          \
     V(wide_##K##_5), V(wide_##K##_6), V(wide_##K##_7)}
TILES_OF(3)
TILES_OF(5)
TILES_OF(7)
static V(tile_fn) *const V(wide_tiles)[3][7] = {LIST_OF(3), LIST_OF(5), LIST_OF(7)};
#undef TILES_OF
#undef LIST_OF
#else
#define WALKS 0
#define WIDE 1
#endif
#undef TILE_FN

/* The tiles of one class of columns: `pixels` of them from column `first` on, `spacing` apart. */
typedef struct {
    V(tile_fn) * tile;
    int64_t first, pixels, size, spacing, unit;
} V(columns);

ALWAYS_INLINE int64_t V(column)(const V(columns) * k, int64_t start) {
    return k->first + k->spacing * min64(start, k->pixels - k->size);
}

/* Rows [row, end), channels [c, stop): down the rows first, those whose windows overlap tap on
 * tap after each other, so that the overlap stays in the first-level cache. */
static void V(down)(const depthwise *g, const V(columns) * k, const V(elem) * x,
                    const V(elem) * weight, V(elem) * y, int64_t n, int64_t row, int64_t end,
                    int64_t c, int64_t stop) {
    for (; c < stop; c += k->unit)
        for (int64_t start = 0; start < k->pixels; start += k->size)
            for (int64_t part = row; part < min64(row + k->spacing, end); part++)
                for (int64_t r = part; r < end; r += k->spacing)
                    k->tile(g, x, weight, y, n, r, V(column)(k, start), min64(c, g->C - k->unit));
}

/* The same, through all channels of a tile first: whole pixels pass in the order of memory. Small
 * windows wait for memory more than for arithmetic, and all their weights fit the cache. */
static void V(along)(const depthwise *g, const V(columns) * k, const V(elem) * x,
                     const V(elem) * weight, V(elem) * y, int64_t n, int64_t row, int64_t end,
                     int64_t c, int64_t stop) {
    for (; row < end; row++)
        for (int64_t start = 0; start < k->pixels; start += k->size)
            for (int64_t channel = c; channel < stop; channel += k->unit)
                k->tile(g, x, weight, y, n, row, V(column)(k, start),
                        min64(channel, g->C - k->unit));
}

static int V(conv)(const depthwise *g, const void *full, void *small) {
    const int walks = WALKS && g->stride == 1 && g->K >= 3 && g->K <= 7 && g->C >= WIDE * UNIT;
    const int64_t unit = walks ? WIDE * UNIT : UNIT, classes = walks ? min64(g->dilation, g->w) : 1;
    const division d = divide(g, g->h, g->w, unit);
#pragma omp parallel for num_threads(g->threads) schedule(static)
    for (int64_t task = 0; task < g->N * d.row_blocks * d.channel_blocks; task++) {
        const int64_t n = task / d.channel_blocks / d.row_blocks;
        const int64_t row = task / d.channel_blocks % d.row_blocks * d.rows;
        const int64_t c = task % d.channel_blocks * d.channels;
        const int64_t end = min64(row + d.rows, g->h), stop = min64(c + d.channels, g->C);
        const V(elem) *x = (const V(elem) *)full + n * g->full.n;
        const V(elem) *weight = (const V(elem) *)g->weight + (g->B > 1) * n * g->kernel;
        for (int64_t first = 0; first < classes; first++) {
            V(columns) k = {g->w >= 4 ? V(any_4) : V(any_1), 0, g->w, g->w >= 4 ? 4 : 1, 1, unit};
#if WALKS
            if (walks) {
                const int64_t pixels = class_size(g, first), size = tile_for(pixels, 7);
                k = (V(columns)){V(wide_tiles)[g->K / 2 - 1][size - 1], first, pixels, size,
                                 g->dilation, unit};
            }
#endif
            (g->K <= 3 ? V(along) : V(down))(g, &k, x, weight, small, n, row, end, c, stop);
        }
    }
    return 0;
}
#undef WALKS
#undef WIDE
