/* Include TEMPLATE for every element type, at the width BYTES. */
#define ELEMENT 0
#include TEMPLATE
#undef ELEMENT
#define ELEMENT 1
#include TEMPLATE
#undef ELEMENT
#define ELEMENT 2
#include TEMPLATE
#undef ELEMENT
