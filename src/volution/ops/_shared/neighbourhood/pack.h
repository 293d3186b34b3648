/* Padded copies for groups that no width divides. */
#ifndef NEIGHBOURHOOD_PACK_H
#define NEIGHBOURHOOD_PACK_H

#include "window.h"

/* One map of a call, or its copy with every group padded by zeros to whole vectors. */
typedef struct {
    char *data;
    steps step;
    int64_t rows, cols;
} map;

/* Copy between a map and its padded copy; to_padded tells the direction. */
static void copy_padded(const window *g, const map *plain, const map *padded, int64_t cg_padded,
                        int to_padded) {
    const int64_t size = element_size(g->dtype), bytes = g->cg * size;
#pragma omp parallel for num_threads(g->threads) schedule(static)
    for (int64_t line = 0; line < g->N * plain->rows; line++) {
        const int64_t n = line / plain->rows, row = line % plain->rows;
        char *from = plain->data + size * (n * plain->step.n + row * plain->step.row);
        char *to = padded->data + size * (n * padded->step.n + row * padded->step.row);
        for (int64_t col = 0; col < plain->cols; col++)
            for (int64_t group = 0; group < g->G; group++) {
                char *a = from + size * (col * plain->step.col + group * g->cg);
                char *b = to + size * (col * padded->step.col + group * cg_padded);
                if (to_padded) memcpy(b, a, bytes);
                else memcpy(a, b, bytes);
            }
    }
}

/* Give `padded` zeroed memory for the padded copy of `plain`. Returns 0 if there is none. */
static int allocate_padded(const window *g, const map *plain, map *padded, int64_t cg_padded) {
    const int64_t channels = g->G * cg_padded;
    *padded = (map){0, {plain->rows * plain->cols * channels, plain->cols * channels, channels},
                    plain->rows, plain->cols};
    padded->data = calloc((size_t)max64(1, g->N * padded->step.n), (size_t)element_size(g->dtype));
    return padded->data != NULL;
}

/* A template instance: computes one call whose groups its vectors divide. */
typedef int instance(const window *g, const void *full, const void *small, const void *kernel);

/* Run the right instance on the two maps and the kernel. writes_full and writes_small say which
 * map is the result, if either is. */
static int run_padded(instance *const instances[3][3], const window *call, void *full, void *small,
                      void *kernel, int writes_full, int writes_small) {
    const int width = widest(call->dtype, call->cg);
    if (width >= 0) return instances[call->dtype][width](call, full, small, kernel);

    const int64_t unit = 16 / element_size(call->dtype);
    const int64_t cg = (call->cg + unit - 1) / unit * unit;
    map plain_full = {full, call->full, call->H, call->W}, padded_full;
    map plain_small = {small, call->small, call->h, call->w}, padded_small;
    int failed = !allocate_padded(call, &plain_full, &padded_full, cg);
    failed |= !allocate_padded(call, &plain_small, &padded_small, cg);
    if (!failed) {
        window inner = *call;
        inner.cg = cg;
        inner.C = call->G * cg;
        inner.full = padded_full.step;
        inner.small = padded_small.step;
        if (!writes_full) copy_padded(call, &plain_full, &padded_full, cg, 1);
        if (!writes_small) copy_padded(call, &plain_small, &padded_small, cg, 1);
        failed = instances[call->dtype][0](&inner, padded_full.data, padded_small.data, kernel);
        if (!failed && writes_full) copy_padded(call, &plain_full, &padded_full, cg, 0);
        if (!failed && writes_small) copy_padded(call, &plain_small, &padded_small, cg, 0);
    }
    free(padded_full.data);
    free(padded_small.data);
    return failed;
}

#endif
