/* Include TEMPLATE once for every element type and every vector width of this instruction set.
 *
 * Narrower widths than the widest serve groups whose channels the widest does not divide.
 */
#ifndef VOLUTION_VECTOR_BYTES
#if defined(__AVX512F__)
#define VOLUTION_VECTOR_BYTES 64
#elif defined(__AVX__)
#define VOLUTION_VECTOR_BYTES 32
#else
#define VOLUTION_VECTOR_BYTES 16
#endif
#endif

#define BYTES 16
#include "for_each_element.h"
#undef BYTES
#if VOLUTION_VECTOR_BYTES >= 32
#define BYTES 32
#include "for_each_element.h"
#undef BYTES
#endif
#if VOLUTION_VECTOR_BYTES >= 64
#define BYTES 64
#include "for_each_element.h"
#undef BYTES
#endif
