/* volution::scatter on the CPU. first = small map, second = kernel, out = full map. */
#define TEMPLATE "_shared/neighbourhood/scatter_template.h"
#include "window.h"
#include "for_each_type.h"
#include "pack.h"

static instance *const instances[3][3] = FOR_TYPES(scatter);

int KERNEL_NAME(scatter)(const int64_t *sizes, const int64_t *offsets, const void *first,
                         const void *second, const void *third, const void *fourth, void *out) {
    (void)third, (void)fourth;
    const window call = window_of(sizes, offsets);
    return run_padded(instances, &call, out, (void *)first, (void *)second, 1, 0);
}
