/* volution::static_dynamic_conv2d on the CPU.
 * first = full map, second = kernel, third = rows (static_dynamic.h), fourth = residual or NULL,
 * out = small map. The channels of a group fill whole vectors of 16 bytes. */
#define TEMPLATE "xvolution/static_dynamic_template.h"
#include "static_dynamic.h"
#include "for_each_type.h"

typedef int combination(const static_dynamic *g, const void *full, const void *kernel, void *small);

static combination *const instances[3][3] = FOR_TYPES(combine);

int KERNEL_NAME(static_dynamic_conv2d)(const int64_t *sizes, const int64_t *offsets,
                                       const void *first, const void *second, const void *third,
                                       const void *fourth, void *out) {
    const static_dynamic call = static_dynamic_of(sizes, offsets, third, fourth);
    const window *w = &call.window;
    return instances[w->dtype][widest(w->dtype, w->cg)](&call, first, second, out);
}
