/* Include TEMPLATE once for every element type and every vector width of this instruction set.
 *
 * Narrower widths than the widest serve groups whose channels the widest does not divide.
 */
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

/* FOR_WIDTHS(name, element) lists the instances of a template, narrowest first. */
#if VOLUTION_VECTOR_BYTES >= 64
#define FOR_WIDTHS(name, element) {name##_##element##_16, name##_##element##_32, name##_##element##_64}
#elif VOLUTION_VECTOR_BYTES >= 32
#define FOR_WIDTHS(name, element) {name##_##element##_16, name##_##element##_32, 0}
#else
#define FOR_WIDTHS(name, element) {name##_##element##_16, 0, 0}
#endif
#define FOR_TYPES(name) {FOR_WIDTHS(name, 0), FOR_WIDTHS(name, 1), FOR_WIDTHS(name, 2)}
