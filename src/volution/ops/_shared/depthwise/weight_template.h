/* The gradient of the kernels for one element type and vector width.
 *
 * One row of taps at a time: its K sums stay in registers while the pixels of a band of rows pass.
 * Tiles of four pixels, `dilation` apart, share the input pixels of their windows as in the
 * convolution. Bands write sums of their own, which are added in order at the end: the result
 * does not depend on which thread was first.
 */
#include "vector.h"

/* Tiles of T pixels of one row, from column `col` on: add to the sums of taps (u, 0 .. K - 1). */
ALWAYS_INLINE void V(compare)(const V(elem) * y, int64_t y_step, const V(elem) * line, int64_t step,
                              V(vec) (*sum)[2], int64_t skip, int64_t stop, const int K,
                              const int T, const int R) {
    V(vec) own[4][2];
#pragma GCC unroll 4
    for (int t = 0; t < T; t++)
#pragma GCC unroll 2
        for (int r = 0; r < R; r++) V(load)(y + t * y_step + r * UNIT, own[t] + r * PARTS);
    const int inside = skip <= 0 && stop >= T + K - 1;
#pragma GCC unroll 16
    for (int p = 0; p < T + K - 1; p++) {
        if (inside || (p >= skip && p < stop)) {
            V(vec) value[2];
#pragma GCC unroll 2
            for (int r = 0; r < R; r++) V(load)(line + r * UNIT, value + r * PARTS);
#pragma GCC unroll 4
            for (int t = 0; t < T; t++) {
                if (p - t < 0 || p - t >= K) continue;
#pragma GCC unroll 2
                for (int r = 0; r < R * PARTS; r++) sum[p - t][r] += own[t][r] * value[r];
            }
        }
        line += step;
        KEEP(line);
    }
}

/* Taps (u, v .. v + K - 1) over rows [row, end) of one image, R units of channels from c on, at
 * stride 1. */
ALWAYS_INLINE void V(tap_row)(const depthwise *g, const V(elem) * y, const V(elem) * x,
                              V(acc) * sums, int64_t u, int64_t v, int64_t row, int64_t end,
                              int64_t c, const int K, const int R) {
    const int64_t d = g->dilation, half = g->K / 2, step = d * g->full.col;
    const int64_t shift = d * (u - half);
    V(vec) sum[7][2];
#pragma GCC unroll 8
    for (int i = 0; i < K; i++) memcpy(sum[i], sums + i * R * UNIT, R * PARTS * sizeof(V(vec)));
    for (int64_t r = max64(row, -shift); r < min64(end, g->H - shift); r++)
        for (int64_t first = 0; first < min64(d, g->w); first++) {
            const int64_t pixels = class_size(g, first);
            const V(elem) *from = x + (r + shift) * g->full.row + c;
            const V(elem) *own = y + r * g->small.row + c;
            for (int64_t m = 0; m < pixels;) {
                const int64_t col = first + d * m;
                const int64_t skip = half - v - m, stop = skip + m + (g->W - 1 - col) / d + 1;
                const V(elem) *line = from + (col + d * (v - half)) * g->full.col;
                const V(elem) *at = own + col * g->small.col;
                if (m + 4 <= pixels) {
                    V(compare)(at, d * g->small.col, line, step, sum, skip, stop, K, 4, R);
                    m += 4;
                } else {
                    V(compare)(at, d * g->small.col, line, step, sum, skip, stop, K, 1, R);
                    m += 1;
                }
            }
        }
#pragma GCC unroll 8
    for (int i = 0; i < K; i++) memcpy(sums + i * R * UNIT, sum[i], R * PARTS * sizeof(V(vec)));
}

/* One tap of any window and stride, over rows [row, end), one unit of channels. Four pixels at a
 * time have sums of their own: a single chain of additions would wait for itself. */
static void V(tap_any)(const depthwise *g, const V(elem) * y, const V(elem) * x, V(acc) * sums,
                       int64_t u, int64_t v, int64_t row, int64_t end, int64_t c) {
    const int64_t s = g->stride, half = g->K / 2;
    const int64_t down = g->dilation * (u - half), right = g->dilation * (v - half);
    const int64_t top = max64(row, ceil_div(-down, s)), left = max64(0, ceil_div(-right, s));
    const int64_t bottom = min64(end, floor_div(g->H - 1 - down, s) + 1);
    const int64_t stop = min64(g->w, floor_div(g->W - 1 - right, s) + 1);
    V(vec) sum[4][2] = {{{0}}}, grad[2], value[2];
    for (int64_t r = top; r < bottom; r++) {
        const V(elem) *own = y + r * g->small.row + c;
        const V(elem) *from = x + (s * r + down) * g->full.row + right * g->full.col + c;
        for (int64_t col = left; col < stop; col += 4)
#pragma GCC unroll 4
            for (int t = 0; t < 4; t++) {
                if (col + t >= stop) break;
                V(load)(own + (col + t) * g->small.col, grad);
                V(load)(from + s * (col + t) * g->full.col, value);
#pragma GCC unroll 2
                for (int i = 0; i < PARTS; i++) sum[t][i] += grad[i] * value[i];
            }
    }
    V(vec) total[2];
    memcpy(total, sums, PARTS * sizeof(V(vec)));
#pragma GCC unroll 2
    for (int i = 0; i < PARTS; i++)
        total[i] += (sum[0][i] + sum[1][i]) + (sum[2][i] + sum[3][i]);
    memcpy(sums, total, PARTS * sizeof(V(vec)));
}

/* Taps v .. v + size - 1 of row u, three to seven of them. */
#if ELEMENT != 2
#define WIDE (BYTES == 64 ? 2 / PARTS : 1)
#define TAP_ROWS(name, R)                                                                         \
    static void V(name)(const depthwise *g, const V(elem) * y, const V(elem) * x, V(acc) * sums,  \
                        int64_t u, int64_t v, int64_t size, int64_t row, int64_t end,             \
                        int64_t c) {                                                              \
        switch (size) {                                                                           \
        case 3: V(tap_row)(g, y, x, sums, u, v, row, end, c, 3, R); break;                        \
        case 4: V(tap_row)(g, y, x, sums, u, v, row, end, c, 4, R); break;                        \
        case 5: V(tap_row)(g, y, x, sums, u, v, row, end, c, 5, R); break;                        \
        case 6: V(tap_row)(g, y, x, sums, u, v, row, end, c, 6, R); break;                        \
        default: V(tap_row)(g, y, x, sums, u, v, row, end, c, 7, R);                              \
        }                                                                                         \
    }
TAP_ROWS(wide_taps, WIDE)
#if BYTES == 64 && ELEMENT == 0
TAP_ROWS(narrow_taps, 1)
#else
#define narrow_taps wide_taps
#endif
#undef TAP_ROWS
#else
#define WIDE 1
#endif

/* All taps over rows [row, end) of one image; sums has a place of `unit` lanes for each tap. */
static void V(band)(const depthwise *g, const V(elem) * y, const V(elem) * x, V(acc) * sums,
                    int64_t row, int64_t end, int64_t c, int64_t unit) {
    for (int64_t u = 0; u < g->K; u++) {
        V(acc) *own = sums + u * g->K * unit;
#if ELEMENT != 2
        if (g->stride == 1 && g->K >= 3) {
            const int64_t pieces = (g->K + 6) / 7;
            for (int64_t piece = 0; piece < pieces; piece++) {
                const int64_t v = piece * g->K / pieces, size = (piece + 1) * g->K / pieces - v;
                if (unit > UNIT) V(wide_taps)(g, y, x, own + v * unit, u, v, size, row, end, c);
                else V(narrow_taps)(g, y, x, own + v * unit, u, v, size, row, end, c);
            }
            continue;
        }
#endif
        for (int64_t v = 0; v < g->K; v++)
            V(tap_any)(g, y, x, own + v * unit, u, v, row, end, c);
    }
}

/* How the work is cut: every part is a range of the rows of all images that share a kernel. */
typedef struct {
    int64_t images, parts, rows;
} V(cut);

static V(cut) V(cut_rows)(const depthwise *g, int64_t blocks) {
    const int64_t images = g->B > 1 ? 1 : g->N, lines = images * g->h;
    const int64_t wanted = (4 * g->threads + g->B * blocks - 1) / (g->B * blocks);
    const int64_t parts = max64(1, min64(wanted, lines / 8));
    V(cut) cut = {images, parts, (lines + parts - 1) / parts};
    return cut;
}

/* The sums of one part, for one block of channels. */
static void V(part)(const depthwise *g, const V(elem) * y, const V(elem) * x, V(acc) * sums,
                    int64_t line, int64_t end, int64_t c, int64_t unit) {
    /* Bands of rows stay in the first-level cache while all rows of taps pass over them. */
    const int64_t bytes = (int64_t)sizeof(V(vec)) * WIDE * PARTS * g->w;
    const int64_t most = max64(1, min64(16, 16384 / bytes));
    while (line < end) {
        const int64_t n = line / g->h, row = line % g->h;
        const int64_t rows = min64(min64(most, g->h - row), end - line);
        V(band)(g, y + n * g->small.n, x + n * g->full.n, sums, row, row + rows, c, unit);
        line += rows;
    }
}

/* Lane i of a vector of sums holds channel V(channel_of)(i): bfloat16 loads part even and odd. */
ALWAYS_INLINE int64_t V(channel_of)(int64_t i) {
    const int64_t unit = i / UNIT, lane = i % UNIT;
    return PARTS == 1 ? i : unit * UNIT + lane % LANES * 2 + lane / LANES;
}

static int V(weight)(const depthwise *g, const void *small, const void *full, void *kernels) {
    const int walks = g->stride == 1 && g->K >= 3 && g->C >= WIDE * UNIT;
    const int64_t unit = (walks ? WIDE : 1) * UNIT, blocks = (g->C + unit - 1) / unit;
    const int64_t taps = g->K * g->K, B = g->B;
    const V(cut) cut = V(cut_rows)(g, blocks);
    const size_t size = (size_t)(B * blocks * cut.parts * taps * unit);
    V(acc) *sums = calloc(size ? size : 1, sizeof *sums);
    if (sums == NULL) return 1;
#pragma omp parallel for num_threads(g->threads) schedule(static)
    for (int64_t task = 0; task < B * blocks * cut.parts; task++) {
        const int64_t b = task / cut.parts / blocks, block = task / cut.parts % blocks;
        const int64_t line = task % cut.parts * cut.rows;
        const int64_t end = min64(line + cut.rows, cut.images * g->h);
        V(part)(g, (const V(elem) *)small + b * g->small.n, (const V(elem) *)full + b * g->full.n,
                sums + task * taps * unit, line, end, min64(block * unit, g->C - unit), unit);
    }
#pragma omp parallel for num_threads(g->threads) schedule(static)
    for (int64_t place = 0; place < B * blocks; place++) {
        const int64_t b = place / blocks, c = min64(place % blocks * unit, g->C - unit);
        V(acc) *own = sums + place * cut.parts * taps * unit;
        for (int64_t part = 1; part < cut.parts; part++)
            for (int64_t i = 0; i < taps * unit; i++) own[i] += own[part * taps * unit + i];
        /* The last block is moved back: what its first channels repeat is the block's before. */
        const int64_t fresh = place % blocks * unit - c;
        for (int64_t tap = 0; tap < taps; tap++)
            for (int64_t i = 0; i < unit; i++) {
                const int64_t lane = V(channel_of)(i);
                V(elem) *to = (V(elem) *)kernels + (b * taps + tap) * g->C + c + lane;
                if (lane >= fresh) V(store_one)(to, own[tap * unit + i]);
            }
    }
    free(sums);
    return 0;
}
#undef WIDE
#undef narrow_taps
