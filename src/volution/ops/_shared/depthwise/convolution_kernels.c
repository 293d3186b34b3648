/* volution::depthwise_conv2d and its transpose on the CPU.
 *
 *   depthwise_conv2d        first = full map, second = weight, third = bias, fourth = gate,
 *                           out = small map
 *   depthwise_conv2d_input  first = small map, second = weight, out = full map
 *
 * At stride 1 the transpose is the convolution with the kernel turned around. */
#define TEMPLATE "_shared/depthwise/transposed_template.h" /* which includes the convolution's */
#include "depthwise.h"
#include "for_each_type.h"
#include "weights.h"

typedef int convolution(const depthwise *g, const void *from, void *to);

static convolution *const convolutions[3][3] = FOR_TYPES(conv);
static convolution *const transposed[3][3] = FOR_TYPES(transposed);

int KERNEL_NAME(depthwise_conv2d)(const int64_t *sizes, const int64_t *offsets, const void *first,
                                  const void *second, const void *third, const void *fourth,
                                  void *out) {
    (void)offsets;
    depthwise call = depthwise_of(sizes);
    int failed = 0;
    void *copy = lay_out_weights(&call, second, 0, &failed);
    call.bias = third;
    call.gate_map = fourth;
    if (sizes[15]) call.shortcut = first;
    if (!failed) failed = convolutions[call.dtype][widest_within(call.dtype, call.C)](&call, first, out);
    free(copy);
    return failed;
}

int KERNEL_NAME(depthwise_conv2d_input)(const int64_t *sizes, const int64_t *offsets,
                                        const void *first, const void *second, const void *third,
                                        const void *fourth, void *out) {
    (void)offsets, (void)third, (void)fourth;
    depthwise call = depthwise_of(sizes);
    int failed = 0;
    void *copy = lay_out_weights(&call, second, call.stride == 1, &failed);
    const int width = widest_within(call.dtype, call.C);
    if (!failed && call.stride == 1) {
        const steps full = call.full;
        call.full = call.small;
        call.small = full;
        if (sizes[15]) call.shortcut = first;
        failed = convolutions[call.dtype][width](&call, first, out);
    } else if (!failed) {
        failed = transposed[call.dtype][width](&call, first, out);
    }
    free(copy);
    return failed;
}
