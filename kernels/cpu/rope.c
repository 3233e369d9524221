/* rope.c: the cos and sin of a step's positions, once for all layers.
 *
 * The angle is a product in f64: at position 10⁶ an f32 angle would be off by 0.06 radians. Rounding to f32
 * comes after cos and sin, as docs/kv-format.md says, so that a resumed job rotates by the same bits.
 */
#include <math.h>

#include "kernels/backend.h"
#include "kernels/cpu/cpu_ops.h"

bs_status bs_cpu_rope_table(bs_stream *stream, const bs_rope_table_args *args)
{
    const int n_pairs = args->n_rot / 2;
    for (int t = 0; t < args->n_tokens; t++) {
        float *row = args->cos_sin + (size_t)t * (size_t)args->n_rot;
        const int32_t position = args->positions[t];
        for (int i = 0; i < n_pairs; i++) {
            double angle = (double)position * args->inv_freq[i];
            row[2 * i] = position < 0 ? 1.0f : (float)cos(angle) * args->attention_factor;
            row[2 * i + 1] = position < 0 ? 0.0f : (float)sin(angle) * args->attention_factor;
        }
    }
    return BS_STATUS_OK;
}
