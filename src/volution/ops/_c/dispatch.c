/* Picks the instruction set once, then forwards every call to the kernels compiled for it. */
#include "volution.h"

#include <stddef.h>
#include <string.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

/* One table of kernels per instruction set that the build had. */
enum {
#define KERNEL(name) SLOT_##name,
#include "kernels.def"
#undef KERNEL
    SLOTS
};

/* isa_table.h declares the kernels of one set and fills table_<set> with them. */
#define ISA baseline
#include "isa_table.h"
#ifdef VOLUTION_HAS_wide
#define ISA wide
#include "isa_table.h"
#endif
#ifdef VOLUTION_HAS_avx2
#define ISA avx2
#include "isa_table.h"
#endif
#ifdef VOLUTION_HAS_avx512
#define ISA avx512
#include "isa_table.h"
#endif

typedef struct {
    const char *name;
    kernel_fn *const *kernels;
    int automatic; /* may be picked without being asked for */
    int (*present)(void);
} instruction_set;

static int always(void) { return 1; }

#ifdef VOLUTION_HAS_avx2
static int has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif
#ifdef VOLUTION_HAS_avx512
static int has_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

/* Best first. On arm64 the baseline is NEON. */
static const instruction_set sets[] = {
#ifdef VOLUTION_HAS_avx512
    {"avx512", table_avx512, 1, has_avx512},
#endif
#ifdef VOLUTION_HAS_avx2
    {"avx2", table_avx2, 1, has_avx2},
#endif
#if defined(__aarch64__)
    {"neon", table_baseline, 1, always},
#endif
    {"baseline", table_baseline, 1, always},
#ifdef VOLUTION_HAS_wide
    {"wide", table_wide, 0, always},
#endif
};

static const instruction_set *selected;

/* Select by name, or the best one if the name is empty. Returns the name, NULL if it cannot run. */
EXPORT const char *volution_select_isa(const char *wanted) {
    for (size_t i = 0; i < sizeof sets / sizeof sets[0]; i++) {
        int asked = wanted[0] ? strcmp(wanted, sets[i].name) == 0 : sets[i].automatic;
        if (asked && sets[i].present()) {
            selected = &sets[i];
            return selected->name;
        }
    }
    return NULL;
}

#define KERNEL(kernel)                                                                            \
    EXPORT int volution_##kernel(const int64_t *sizes, const int64_t *offsets, const void *first, \
                                 const void *second, const void *third, const void *fourth,       \
                                 void *out) {                                                     \
        return selected->kernels[SLOT_##kernel](sizes, offsets, first, second, third, fourth,     \
                                                out);                                             \
    }
#include "kernels.def"
