/* What surrounds the sums of a tile: they start at the bias and end with the shortcut, scaled,
 * activated and gated. */
#include "gelu.h"

ALWAYS_INLINE void V(start)(const depthwise *g, int64_t n, int64_t c, V(vec) (*sum)[4], const int T,
                            const int R) {
    V(vec) bias[4] = {{0}, {0}, {0}, {0}};
    if (g->bias != NULL) {
        const V(elem) *own = (const V(elem) *)g->bias + n * g->b_n + c;
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) V(load)(own + r * UNIT, bias + r * PARTS);
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; t++)
#pragma GCC unroll 4
        for (int r = 0; r < R * PARTS; r++) sum[t][r] = bias[r];
}

#define ONE (ELEMENT == 1 ? 0x3f80 : 1)

/* One unit of the gate at channel c; ones where it has ended. */
ALWAYS_INLINE void V(load_gate)(const depthwise *g, const V(elem) * gate, int64_t c, V(vec) * out) {
    if (c + UNIT <= g->gated) {
        V(load)(gate + c, out);
        return;
    }
    V(elem) padded[UNIT];
    for (int i = 0; i < UNIT; i++) padded[i] = c + i < g->gated ? gate[c + i] : ONE;
    V(load)(padded, out);
}

/* Finish and write pixels col, col + spacing, ... of a row, channels from c on. */
ALWAYS_INLINE void V(finish)(const depthwise *g, V(elem) * y, int64_t n, int64_t row, int64_t col,
                             int64_t spacing, int64_t c, V(vec) (*sum)[4], const int T,
                             const int R) {
    const V(acc) scale = (V(acc))g->scale;
    const int gated = c < g->gated;
    const V(elem) *gate = gated ? (const V(elem) *)g->gate_map + n * g->gate.n + row * g->gate.row : NULL;
    V(elem) *out = y + n * g->small.n + row * g->small.row + c;
    if (g->shortcut != NULL) {
        const V(elem) *own = (const V(elem) *)g->shortcut + n * g->full.n + row * g->full.row + c;
#pragma GCC unroll 8
        for (int t = 0; t < T; t++)
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                V(vec) value[2];
                V(load)(own + (col + t * spacing) * g->full.col + r * UNIT, value);
#pragma GCC unroll 2
                for (int part = 0; part < PARTS; part++) sum[t][r * PARTS + part] += value[part];
            }
    }
    if (g->scale != 1)
#pragma GCC unroll 8
        for (int t = 0; t < T; t++)
#pragma GCC unroll 4
            for (int r = 0; r < R * PARTS; r++) sum[t][r] *= scale;
    if (g->gelu)
#pragma GCC unroll 8
        for (int t = 0; t < T; t++)
#pragma GCC unroll 4
            for (int r = 0; r < R * PARTS; r++) sum[t][r] = V(gelu)(sum[t][r]);
#pragma GCC unroll 8
    for (int t = 0; t < T; t++)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            V(vec) factor[2];
            if (gated) {
                V(load_gate)(g, gate + (col + t * spacing) * g->gate.col, c + r * UNIT, factor);
#pragma GCC unroll 2
                for (int part = 0; part < PARTS; part++) sum[t][r * PARTS + part] *= factor[part];
            }
            V(store)(out + (col + t * spacing) * g->small.col + r * UNIT, sum[t] + r * PARTS);
        }
}
#undef ONE
