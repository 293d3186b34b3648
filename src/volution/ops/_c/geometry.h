/* Strides of maps, and the small arithmetic on indices that every kernel needs. */
#ifndef VOLUTION_GEOMETRY_H
#define VOLUTION_GEOMETRY_H

#include "volution.h"

/* From one image, row and column of a map to the next, in elements; channels are adjacent. */
typedef struct {
    int64_t n, row, col;
} steps;

ALWAYS_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
ALWAYS_INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

/* Floor and ceiling of a / b for positive b and any a. */
ALWAYS_INLINE int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }
ALWAYS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return -floor_div(-a, b); }

ALWAYS_INLINE int64_t element_size(int64_t dtype) {
    return dtype == DTYPE_F64 ? 8 : dtype == DTYPE_F32 ? 4 : 2;
}

#endif
