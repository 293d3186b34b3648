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

/* The same for any K: a row of taps is walked in pieces, of four to seven taps if K is above 7. */
ALWAYS_INLINE void V(tile_any_k)(const depthwise *g, const V(elem) * x, const V(elem) * weight,
                                V(elem) * y, int64_t n, int64_t row, int64_t col, int64_t c,
                                const int T, const int R) {
    const int64_t d = g->dilation, half = g->K / 2, step = d * g->full.col, tap = g->tap;
    const int64_t pieces = (g->K + 6) / 7;
    V(vec) sum[8][4];
    V(start)(g, n, c, sum, T, R);
    for (int64_t u = max64(0, half - row / d); u < min64(g->K, half + (g->H - 1 - row) / d + 1); u++) {
        const V(elem) *line = x + (row + d * (u - half)) * g->full.row + c;
        for (int64_t piece = 0; piece < pieces; piece++) {
            const int64_t v = piece * g->K / pieces, size = (piece + 1) * g->K / pieces - v;
            const int64_t skip = half - v - col / d, stop = skip + col / d + (g->W - 1 - col) / d + 1;
            const int inside = skip <= 0 && stop >= T + size - 1;
            const V(elem) *from = line + (col + d * (v - half)) * g->full.col;
            const V(elem) *own = weight + (u * g->K + v) * tap + c;
            switch (size) {
            case 3: V(walk)(from, step, own, tap, sum, skip, stop, inside, 3, T, R); break;
            case 4: V(walk)(from, step, own, tap, sum, skip, stop, inside, 4, T, R); break;
            case 5: V(walk)(from, step, own, tap, sum, skip, stop, inside, 5, T, R); break;
            case 6: V(walk)(from, step, own, tap, sum, skip, stop, inside, 6, T, R); break;
            default: V(walk)(from, step, own, tap, sum, skip, stop, inside, 7, T, R);
            }
        }
    }
    V(finish)(g, y, n, row, col, d, c, sum, T, R);
}

/* Any K and stride: T pixels next to each other. */
ALWAYS_INLINE void V(tile_any_stride)(const depthwise *g, const V(elem) * x, const V(elem) * weight,
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
TILE_FN(any_4, tile_any_stride, 4, 1)
TILE_FN(any_1, tile_any_stride, 1, 1)

/* Tiles of 1 to 7 pixels. With 16 registers the sums of 7 pixels may be one vector wide, with 32
 * two; the narrow ones serve fewer channels than that, and the last ones of an odd number. */
#if ELEMENT != 2
#define WIDE (BYTES == 64 ? 2 / PARTS : 1)
#define TILES_OF(name, call, ...)                                                                 \
    TILE_FN(name##_1, call, __VA_ARGS__ 1, R)                                                     \
    TILE_FN(name##_2, call, __VA_ARGS__ 2, R)                                                     \
    TILE_FN(name##_3, call, __VA_ARGS__ 3, R)                                                     \
    TILE_FN(name##_4, call, __VA_ARGS__ 4, R)                                                     \
    TILE_FN(name##_5, call, __VA_ARGS__ 5, R)                                                     \
    TILE_FN(name##_6, call, __VA_ARGS__ 6, R)                                                     \
    TILE_FN(name##_7, call, __VA_ARGS__ 7, R)
#define LIST_OF(name)                                                                             \
    {V(name##_1), V(name##_2), V(name##_3), V(name##_4), V(name##_5), V(name##_6), V(name##_7)}
#define COMMA ,
#define R WIDE
TILES_OF(wide_any, tile_any_k, )
#if BYTES == VOLUTION_VECTOR_BYTES
TILES_OF(wide_3, tile, 3 COMMA)
TILES_OF(wide_5, tile, 5 COMMA)
TILES_OF(wide_7, tile, 7 COMMA)
static V(tile_fn) *const V(wide_tiles)[4][7] = {LIST_OF(wide_3), LIST_OF(wide_5), LIST_OF(wide_7),
                                                LIST_OF(wide_any)};
#else /* for few channels: one code for all K */
static V(tile_fn) *const V(wide_tiles)[4][7] = {LIST_OF(wide_any), LIST_OF(wide_any),
                                                LIST_OF(wide_any), LIST_OF(wide_any)};
#endif
#undef R
#if BYTES == 64 && ELEMENT == 0
#define R 1
TILES_OF(narrow_any, tile_any_k, )
#if BYTES == VOLUTION_VECTOR_BYTES
TILES_OF(narrow_3, tile, 3 COMMA)
TILES_OF(narrow_5, tile, 5 COMMA)
TILES_OF(narrow_7, tile, 7 COMMA)
#endif
#undef R
static V(tile_fn) *const V(narrow_tiles)[4][7] = {LIST_OF(narrow_3), LIST_OF(narrow_5),
                                                  LIST_OF(narrow_7), LIST_OF(narrow_any)};
#else
#define narrow_tiles wide_tiles
#endif
#undef TILES_OF
#undef LIST_OF
#undef COMMA
#else
#define WIDE 1
#endif
#undef TILE_FN

/* The tiles of one class of columns: `pixels` of them from column `first` on, `spacing` apart.
 * `narrow` is for channels that one unit holds. */
typedef struct {
    V(tile_fn) * tile, *narrow;
    int64_t first, pixels, size, spacing, unit;
} V(columns);

ALWAYS_INLINE int64_t V(column)(const V(columns) * k, int64_t start) {
    return k->first + k->spacing * min64(start, k->pixels - k->size);
}

/* One tile, from channel c on or as far before it as the vectors need. */
ALWAYS_INLINE void V(one_tile)(const depthwise *g, const V(columns) * k, const V(elem) * x,
                               const V(elem) * weight, V(elem) * y, int64_t n, int64_t row,
                               int64_t start, int64_t c) {
    const int64_t col = V(column)(k, start), left = g->C - c;
    if (left <= UNIT) k->narrow(g, x, weight, y, n, row, col, min64(c, g->C - UNIT));
    else k->tile(g, x, weight, y, n, row, col, min64(c, g->C - k->unit));
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
                    V(one_tile)(g, k, x, weight, y, n, r, start, c);
}

/* The same, through all channels of a tile first: whole pixels pass in the order of memory. Small
 * windows wait for memory more than for arithmetic, and all their weights fit the cache. */
static void V(along)(const depthwise *g, const V(columns) * k, const V(elem) * x,
                     const V(elem) * weight, V(elem) * y, int64_t n, int64_t row, int64_t end,
                     int64_t c, int64_t stop) {
    for (; row < end; row++)
        for (int64_t start = 0; start < k->pixels; start += k->size)
            for (int64_t channel = c; channel < stop; channel += k->unit)
                V(one_tile)(g, k, x, weight, y, n, row, start, channel);
}

static int V(conv)(const depthwise *g, const void *full, void *small) {
    const int walks = ELEMENT != 2 && g->stride == 1 && g->K >= 3;
    const int wide = walks && g->C >= WIDE * UNIT;
    const int64_t unit = wide ? WIDE * UNIT : UNIT, classes = walks ? min64(g->dilation, g->w) : 1;
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
            V(tile_fn) *any = g->w >= 4 ? V(any_4) : V(any_1);
            V(columns) k = {any, any, 0, g->w, g->w >= 4 ? 4 : 1, 1, unit};
#if ELEMENT != 2
            if (walks) {
                const int64_t pixels = class_size(g, first), size = tile_for(pixels, 7);
                const int64_t kind = min64(g->K / 2, 4) - 1;
                V(tile_fn) *narrow = V(narrow_tiles)[kind][size - 1];
                V(tile_fn) *tile = wide ? V(wide_tiles)[kind][size - 1] : narrow;
                k = (V(columns)){tile, narrow, first, pixels, size, g->dilation, unit};
            }
#endif
            (g->K <= 3 ? V(along) : V(down))(g, &k, x, weight, small, n, row, end, c, stop);
        }
    }
    return 0;
}
#undef WIDE
#undef narrow_tiles
