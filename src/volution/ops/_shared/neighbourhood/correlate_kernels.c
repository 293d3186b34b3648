/* volution::correlate on the CPU. first = small map, second = full map, out = kernel. */
#define TEMPLATE "_shared/neighbourhood/correlate_template.h"
#include "window.h"
#include "for_each_type.h"
#include "pack.h"

static instance *const instances[3][3] = FOR_TYPES(correlate);

int KERNEL_NAME(correlate)(const int64_t *sizes, const int64_t *offsets, const void *first,
                           const void *second, const void *third, const void *fourth, void *out) {
    (void)third, (void)fourth;
    const window call = window_of(sizes, offsets);
#if VOLUTION_VECTOR_BYTES >= 32
    /* Nine taps of whole vectors are reduced faster than transposed. */
    const int reduced = VOLUTION_VECTOR_BYTES >= 64 && call.dtype == DTYPE_F32 && call.side == 3 &&
                        call.cg % 16 == 0;
    if (!reduced && call.side >= 3 && call.side <= MAX_SIDE && call.cg % 8 == 0) {
        if (call.dtype == DTYPE_F32) return correlate_dense_0_32(&call, second, first, out);
        if (call.dtype == DTYPE_BF16) return correlate_dense_1_32(&call, second, first, out);
    }
#endif
    return run_padded(instances, &call, (void *)second, (void *)first, out, 0, 0);
}
