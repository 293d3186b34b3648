/* What every CPU kernel of volution shares: the call convention and the symbol names.
 *
 * A kernel is a C function  int name(sizes, offsets, first, second, third, fourth, out)
 *   sizes    int64: dtype code, threads, then what the kernel's own file documents
 *   offsets  int64: row and column of each tap, flat; empty where the kernel takes none
 *   first .. fourth  the operands; NULL where there are fewer
 * and returns 0, or 1 when scratch memory could not be had. Kernels check no arguments: the
 * Python side does, before the call.
 *
 * Each kernel file is compiled once per instruction set; KERNEL_NAME adds the set to the name,
 * and dispatch.c picks one at load.
 */
#ifndef VOLUTION_H
#define VOLUTION_H

#include <stdint.h>

#define VOLUTION_JOIN_(a, b) a##_##b
#define VOLUTION_JOIN(a, b) VOLUTION_JOIN_(a, b)
#define KERNEL_NAME(name) VOLUTION_JOIN(VOLUTION_JOIN(volution_kernel, name), VOLUTION_ISA)

enum { DTYPE_F32 = 0, DTYPE_BF16 = 1, DTYPE_F64 = 2 };

typedef int kernel_fn(const int64_t *sizes, const int64_t *offsets, const void *first,
                      const void *second, const void *third, const void *fourth, void *out);

/* Keep p in a register of its own. Without it the compiler turns every step of an unrolled walk
 * into one more address held for the whole loop, runs out of registers and spills the sums. */
#define KEEP(p) __asm__("" : "+r"(p))

/* Bytes of this instruction set's widest vectors; the build may ask for others. */
#ifndef VOLUTION_VECTOR_BYTES
#if defined(__AVX512F__)
#define VOLUTION_VECTOR_BYTES 64
#elif defined(__AVX__)
#define VOLUTION_VECTOR_BYTES 32
#else
#define VOLUTION_VECTOR_BYTES 16
#endif
#endif

#define ALWAYS_INLINE static inline __attribute__((always_inline))

#endif
