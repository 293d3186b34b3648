/* volution::gather on the CPU. first = full map, second = kernel, out = small map. */
#define TEMPLATE "_shared/neighbourhood/gather_template.h"
#include "window.h"
#include "for_each_type.h"
#include "pack.h"

static instance *const instances[3][3] = FOR_TYPES(gather);

int KERNEL_NAME(gather)(const int64_t *sizes, const int64_t *offsets, const void *first,
                        const void *second, const void *third, const void *fourth, void *out) {
    (void)third, (void)fourth;
    const window call = window_of(sizes, offsets);
    return run_padded(instances, &call, (void *)first, out, (void *)second, 0, 1);
}
