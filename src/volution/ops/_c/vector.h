/* Vectors of one width for one element type, by the compiler's own vector extension.
 *
 * Include with  ELEMENT  one of DTYPE_F32 0, DTYPE_BF16 1, DTYPE_F64 2 and  BYTES  the width;
 * may be included again with others. Provides, each with ELEMENT and BYTES in its name through
 * V(name):
 *
 *   elem    the stored type          UNIT    elements one load brings
 *   acc     the type summed in       LANES   lanes of a vector of acc
 *   vec     a vector of acc          PARTS   vectors one load fills (2 for bf16)
 *   load, store, splat, store_lanes
 *
 * bfloat16 is the upper half of a float32. A load of 2 * LANES of them is split into its even and
 * its odd elements with one shift and one mask, and sums are joined the same way: no shuffles.
 */
#include <stdint.h>
#include <string.h>

#undef V
#define V(name) VOLUTION_JOIN(VOLUTION_JOIN(name, ELEMENT), BYTES)

#undef LANES
#undef UNIT
#undef PARTS
#if ELEMENT == 2
#define LANES (BYTES / 8)
#define UNIT LANES
#define PARTS 1
typedef double V(elem);
typedef double V(acc);
typedef int64_t V(lane_int);
#elif ELEMENT == 1
#define LANES (BYTES / 4)
#define UNIT (2 * LANES)
#define PARTS 2
typedef uint16_t V(elem);
typedef float V(acc);
typedef int32_t V(lane_int);
#else
#define LANES (BYTES / 4)
#define UNIT LANES
#define PARTS 1
typedef float V(elem);
typedef float V(acc);
typedef int32_t V(lane_int);
#endif

typedef V(acc) V(vec) __attribute__((vector_size(BYTES)));
typedef V(lane_int) V(ivec) __attribute__((vector_size(BYTES)));
typedef uint32_t V(uvec) __attribute__((vector_size(BYTES)));

#if ELEMENT == 1

ALWAYS_INLINE void V(load)(const uint16_t *p, V(vec) * out) {
    V(uvec) raw;
    memcpy(&raw, p, BYTES);
    out[0] = (V(vec))(raw << 16);
    out[1] = (V(vec))(raw & 0xffff0000u);
}

/* Round to nearest, ties to even; NaN stays NaN. The result is in the upper half. */
ALWAYS_INLINE V(uvec) V(round)(V(vec) v) {
    V(uvec) bits = (V(uvec))v;
    V(uvec) nan = (V(uvec))(v != v);
    V(uvec) rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    return (nan & 0x7fc00000u) | (~nan & rounded);
}

ALWAYS_INLINE void V(store)(uint16_t *p, const V(vec) * in) {
    V(uvec) raw = (V(round)(in[0]) >> 16) | (V(round)(in[1]) & 0xffff0000u);
    memcpy(p, &raw, BYTES);
}

typedef uint16_t V(half_vec) __attribute__((vector_size(BYTES / 2)));

/* The first `count` lanes, one after the other. */
ALWAYS_INLINE void V(store_lanes)(uint16_t *p, V(vec) value, int count) {
    V(half_vec) rounded = __builtin_convertvector(V(round)(value) >> 16, V(half_vec));
    if (count == LANES) memcpy(p, &rounded, sizeof rounded);
    else
        for (int i = 0; i < count; i++) p[i] = rounded[i];
}

ALWAYS_INLINE void V(store_one)(uint16_t *p, float value) {
    V(vec) v = {value};
    *p = (uint16_t)((V(round)(v) >> 16)[0]);
}

ALWAYS_INLINE float V(widen)(uint16_t value) {
    uint32_t bits = (uint32_t)value << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

#else

ALWAYS_INLINE void V(store_lanes)(V(elem) * p, V(vec) value, int count) {
    if (count == LANES) memcpy(p, &value, sizeof value);
    else /* by lane: a memcpy of part of a vector would keep the whole vector in memory */
        for (int i = 0; i < count; i++) p[i] = value[i];
}

ALWAYS_INLINE void V(store_one)(V(elem) * p, V(acc) value) { *p = value; }
ALWAYS_INLINE void V(load)(const V(elem) * p, V(vec) * out) { memcpy(out, p, BYTES); }
ALWAYS_INLINE void V(store)(V(elem) * p, const V(vec) * in) { memcpy(p, in, BYTES); }

#endif

/* Subtracting zero changes no value, -0 included, so this is a plain broadcast. */
ALWAYS_INLINE V(vec) V(splat)(V(acc) value) { return value - (V(vec)){0}; }
