/* volution::depthwise_conv2d_weight on the CPU.
 * first = small map, second = full map, out = kernels, (B, K, K, C) in memory. */
#define TEMPLATE "_shared/depthwise/weight_template.h"
#include "depthwise.h"
#include "for_each_type.h"

typedef int comparison(const depthwise *g, const void *small, const void *full, void *kernels);

static comparison *const instances[3][3] = FOR_TYPES(weight);

int KERNEL_NAME(depthwise_conv2d_weight)(const int64_t *sizes, const int64_t *offsets,
                                         const void *first, const void *second, const void *third,
                                         const void *fourth, void *out) {
    (void)offsets, (void)third, (void)fourth;
    const depthwise call = depthwise_of(sizes);
    return instances[call.dtype][widest_within(call.dtype, call.C)](&call, first, second, out);
}
