/* correlate for a dense K x K window, K <= 7, at stride 1, in float32 or bfloat16.
 *
 * The lanes of a vector are the taps of one window row. With the map transposed to channel-major
 * lines, tap v of pixel j reads column j + v: K adjacent columns are one load, one broadcast of the
 * query weighs them, and the sums come out in the order they are stored in. Nothing is reduced
 * across lanes, which is what limits the general kernel.
 *
 * A block is ROWS rows of a strip of columns of one group. Its part of the map, with a border of
 * K / 2, is transposed into scratch once and then read K * K times. Outside the image it is zero.
 */
#if BYTES == 32 && ELEMENT != 2

#ifndef CORRELATE_DENSE_ONCE
#define CORRELATE_DENSE_ONCE
/* A line holds the STRIP + MAX_SIDE - 1 columns that a strip needs and is one cache line long, so
 * that no load of eight columns touches two. */
enum { STRIP = 8, LINE = 16, MAX_SIDE = 7 };

ALWAYS_INLINE void transpose_8x8(const VOLUTION_JOIN(VOLUTION_JOIN(vec, ELEMENT), BYTES) * in,
                                 float *out, int64_t step) {
    typedef VOLUTION_JOIN(VOLUTION_JOIN(vec, ELEMENT), BYTES) v8;
    v8 a[8], b[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        a[i] = __builtin_shufflevector(in[i], in[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        a[i + 1] = __builtin_shufflevector(in[i], in[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        b[i] = __builtin_shufflevector(a[i], a[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
        b[i + 1] = __builtin_shufflevector(a[i], a[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        b[i + 2] = __builtin_shufflevector(a[i + 1], a[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
        b[i + 3] = __builtin_shufflevector(a[i + 1], a[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const v8 low = __builtin_shufflevector(b[i], b[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        const v8 high = __builtin_shufflevector(b[i], b[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
        memcpy(out + i * step, &low, 32);
        memcpy(out + (i + 4) * step, &high, 32);
    }
}
#endif

/* Eight channels of one pixel as float32. */
ALWAYS_INLINE V(vec) V(load_eight)(const V(elem) * p) {
#if ELEMENT == 1
    V(half_vec) raw;
    memcpy(&raw, p, 16);
    return (V(vec))(__builtin_convertvector(raw, V(uvec)) << 16);
#else
    V(vec) out;
    memcpy(&out, p, 32);
    return out;
#endif
}

/* Columns [left, left + LINE) of one row, cg channels, to lines[channel][column]. */
static void V(transpose_row)(const window *g, const V(elem) * row, int64_t left, float *lines) {
    for (int64_t block = 0; block < LINE; block += 8) {
        const int64_t first = left + block;
        const V(elem) *from = row + first * g->full.col;
        const int inside = first >= 0 && first + 8 <= g->W;
        for (int64_t c = 0; c < g->cg; c += 8) {
            V(vec) pixels[8];
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                if (inside || (uint64_t)(first + i) < (uint64_t)g->W)
                    pixels[i] = V(load_eight)(from + i * g->full.col + c);
                else pixels[i] = (V(vec)){0};
            }
            transpose_8x8(pixels, lines + c * LINE + block, LINE);
        }
    }
}

/* All taps of one pixel. from[u] leads to the pixel's first tap of window row u. */
ALWAYS_INLINE void V(dense_pixel)(const V(elem) * q, const float *const *from, int64_t cg,
                                  V(elem) * k, const int K) {
    V(vec) sum[MAX_SIDE];
    const float *at[MAX_SIDE];
#pragma GCC unroll 8
    for (int u = 0; u < K; u++) {
        sum[u] = (V(vec)){0};
        at[u] = from[u];
    }
#pragma GCC unroll 4
    for (int64_t c = 0; c < cg; c++) {
#if ELEMENT == 1
        const V(vec) query = V(splat)(V(widen)(q[c]));
#else
        const V(vec) query = V(splat)(q[c]);
#endif
#pragma GCC unroll 8
        for (int u = 0; u < K; u++) {
            V(vec) taps;
            memcpy(&taps, at[u] + c * LINE, 32);
            sum[u] += query * taps;
        }
    }
    /* A store of 8 taps may run into the rows below, which are stored after it. */
#pragma GCC unroll 8
    for (int u = 0; u < K; u++) V(store_lanes)(k + u * K, sum[u], u * K + 8 <= K * K ? 8 : K);
}

static void V(dense_pixels)(const V(elem) * q, int64_t q_step, const float *const *rows,
                            int64_t count, int64_t cg, V(elem) * k, int64_t k_step, int64_t side) {
    for (int64_t j = 0; j < count; j++, q += q_step, k += k_step) {
        const float *from[MAX_SIDE];
        for (int64_t u = 0; u < side; u++) from[u] = rows[u] + j;
        if (side == 7) V(dense_pixel)(q, from, cg, k, 7);
        else if (side == 5) V(dense_pixel)(q, from, cg, k, 5);
        else V(dense_pixel)(q, from, cg, k, 3);
    }
}

/* Rows [row, end) of one image. scratch: (end - row + K - 1) rows of lines, then a row of zeros. */
static void V(dense_rows)(const window *g, const V(elem) * q, const V(elem) * x, V(elem) * k,
                          int64_t row, int64_t end, int64_t rows, float *scratch) {
    const int64_t size = g->cg * LINE, reach = g->side / 2;
    const float *zeros = scratch + (rows + g->side - 1) * size;
    const int64_t top = max64(0, row - reach), bottom = min64(g->H, end + reach);
    for (int64_t col = 0; col < g->w; col += STRIP)
        for (int64_t group = 0; group < g->G; group++) {
            const int64_t c = group * g->cg;
            for (int64_t r = top; r < bottom; r++) {
                const V(elem) *line = x + r * g->full.row + c;
                V(transpose_row)(g, line, col - reach, scratch + (r - top) * size);
                prefetch_pixels(line + (col + STRIP + reach) * g->full.col,
                                g->full.col * sizeof *x, g->cg * sizeof *x, STRIP, 0);
            }
            for (int64_t r = row; r < end; r++) {
                const float *lines[MAX_SIDE];
                for (int64_t u = 0; u < g->side; u++) {
                    const int64_t source = r + u - reach;
                    const int inside = source >= 0 && source < g->H;
                    lines[u] = inside ? scratch + (source - top) * size : zeros;
                }
                const int count = (int)min64(STRIP, g->w - col);
                V(elem) *out = k + r * g->kernel.row + col * g->kernel.col + group * g->D;
                if (r + 1 < end)
                    prefetch_pixels(out + g->kernel.row, g->kernel.col * sizeof *k,
                                    g->D * sizeof *k, count, 1);
                prefetch_pixels(q + r * g->small.row + (col + STRIP) * g->small.col + c,
                                g->small.col * sizeof *q, g->cg * sizeof *q, STRIP, 0);
                V(dense_pixels)(q + r * g->small.row + col * g->small.col + c, g->small.col, lines,
                                count, g->cg, out, g->kernel.col, g->side);
            }
        }
}

static int V(correlate_dense)(const window *g, const void *full, const void *small,
                              const void *kernel) {
    const V(elem) *x = full, *q = small;
    V(elem) *k = (V(elem) *)kernel;
    const int64_t rows = rows_per_block(g, g->h), blocks = (g->h + rows - 1) / rows;
    const int64_t size = g->cg * LINE;
    int failed = 0;
#pragma omp parallel num_threads(g->threads) reduction(| : failed)
    {
        const size_t bytes = (size_t)((rows + g->side) * size) * sizeof(float);
        float *scratch = aligned_alloc(LINE * sizeof(float), bytes);
        failed = scratch == NULL;
        if (!failed) memset(scratch, 0, bytes);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < g->N * blocks; block++) {
            const int64_t n = block / blocks, row = block % blocks * rows;
            if (!failed)
                V(dense_rows)(g, q + n * g->small.n, x + n * g->full.n, k + n * g->kernel.n, row,
                              min64(row + rows, g->h), rows, scratch);
        }
        free(scratch);
    }
    return failed;
}

#endif
