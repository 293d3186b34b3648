/* Declares the kernels of the instruction set ISA and the table that lists them. */
#define ISA_NAME(name) VOLUTION_JOIN(VOLUTION_JOIN(volution_kernel, name), ISA)

#define KERNEL(name) kernel_fn ISA_NAME(name);
#include "kernels.def"
#undef KERNEL

static kernel_fn *const VOLUTION_JOIN(table, ISA)[SLOTS] = {
#define KERNEL(name) ISA_NAME(name),
#include "kernels.def"
#undef KERNEL
};

#undef ISA_NAME
#undef ISA
