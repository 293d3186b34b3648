/* Weights laid out for vectors: the channels of a tap next to each other. */
#ifndef DEPTHWISE_WEIGHTS_H
#define DEPTHWISE_WEIGHTS_H

#include "depthwise.h"

/* Four taps of four channels, turned from tap by tap to channel by channel. */
#define TRANSPOSER(type)                                                                          \
    typedef type four_##type __attribute__((vector_size(4 * sizeof(type))));                      \
    ALWAYS_INLINE void transpose_##type(const type *from, int64_t channel, type *to,              \
                                        int64_t tap) {                                            \
        four_##type a, b, c, d, ab, cd, ef, gh;                                                   \
        memcpy(&a, from, sizeof a), memcpy(&b, from + channel, sizeof b);                         \
        memcpy(&c, from + 2 * channel, sizeof c), memcpy(&d, from + 3 * channel, sizeof d);       \
        ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5); \
        ef = __builtin_shufflevector(a, b, 2, 6, 3, 7), gh = __builtin_shufflevector(c, d, 2, 6, 3, 7); \
        a = __builtin_shufflevector(ab, cd, 0, 1, 4, 5), b = __builtin_shufflevector(ab, cd, 2, 3, 6, 7); \
        c = __builtin_shufflevector(ef, gh, 0, 1, 4, 5), d = __builtin_shufflevector(ef, gh, 2, 3, 6, 7); \
        memcpy(to, &a, sizeof a), memcpy(to + tap, &b, sizeof b);                                 \
        memcpy(to + 2 * tap, &c, sizeof c), memcpy(to + 3 * tap, &d, sizeof d);                   \
    }                                                                                             \
    /* Channels [c, end) of one kernel; flip turns it around. */                                  \
    static void lay_out_##type(const depthwise *g, const type *from, type *to, int64_t c,         \
                               int64_t end, int flip) {                                           \
        const int64_t taps = g->K * g->K, step = flip ? -g->C : g->C;                             \
        type *first = to + (flip ? (taps - 1) * g->C : 0);                                        \
        const int dense = g->w_col == 1 && g->w_row == g->K;                                      \
        for (; dense && c + 4 <= end; c += 4) {                                                   \
            int64_t t = 0;                                                                        \
            for (; t + 4 <= taps; t += 4)                                                         \
                transpose_##type(from + c * g->w_c + t, g->w_c, first + t * step + c, step);      \
            for (; t < taps; t++)                                                                 \
                for (int i = 0; i < 4; i++)                                                       \
                    first[t * step + c + i] = from[(c + i) * g->w_c + t];                         \
        }                                                                                         \
        for (; c < end; c++)                                                                      \
            for (int64_t t = 0; t < taps; t++)                                                    \
                first[t * step + c] = from[c * g->w_c + t / g->K * g->w_row + t % g->K * g->w_col]; \
    }
TRANSPOSER(uint16_t)
TRANSPOSER(uint32_t)
TRANSPOSER(uint64_t)
#undef TRANSPOSER

/* Point the geometry at the weights with adjacent channels: where they lie if they are so already,
 * else in a copy, which is returned to be freed. Sets `failed` if there is no memory for one. */
static void *lay_out_weights(depthwise *g, const void *weight, int flip, int *failed) {
    const int64_t taps = g->K * g->K, size = element_size(g->dtype);
    if (g->w_c == 1 && (g->K == 1 || g->w_row == g->K * g->w_col)) {
        const int64_t start = flip ? (taps - 1) * g->w_col : 0;
        g->tap = flip ? -g->w_col : g->w_col;
        g->kernel = g->w_n;
        g->weight = (const char *)weight + size * start;
        return NULL;
    }
    char *copy = malloc((size_t)max64(1, g->B * taps * g->C * size));
    *failed = copy == NULL;
    if (*failed) return NULL;
    const int64_t block = 64, blocks = (g->C + block - 1) / block;
#pragma omp parallel for num_threads(g->threads) schedule(static)
    for (int64_t i = 0; i < g->B * blocks; i++) {
        const int64_t b = i / blocks, c = i % blocks * block, end = min64(c + block, g->C);
        const char *from = (const char *)weight + size * b * g->w_n;
        char *to = copy + size * b * taps * g->C;
        if (size == 2) lay_out_uint16_t(g, (const uint16_t *)from, (uint16_t *)to, c, end, flip);
        else if (size == 4) lay_out_uint32_t(g, (const uint32_t *)from, (uint32_t *)to, c, end, flip);
        else lay_out_uint64_t(g, (const uint64_t *)from, (uint64_t *)to, c, end, flip);
    }
    g->tap = g->C;
    g->kernel = taps * g->C;
    g->weight = copy;
    return copy;
}

#endif
