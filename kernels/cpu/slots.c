/* slots.c: sizes of the CPU's KV slots, and clearing them. The order inside is kv_layout.h's. */
#include "kernels/backend.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/kv_layout.h"

static bool is_code_width(int bits)
{
    return bits == 8 || bits == 4 || bits == 2;
}

bs_status bs_cpu_slot_bytes(const bs_device *device, const bs_kv_shape *shape, size_t *f16, size_t *quant)
{
    const bs_kv_format *format = &shape->format;
    if (shape->head_dim != 64 && shape->head_dim != 128)
        return bs_fail(BS_STATUS_UNSUPPORTED, "head size %d: the KV cache has kernels for 64 and 128",
                       shape->head_dim);
    if ((format->k_bits == 16) != (format->v_bits == 16))
        return bs_fail(BS_STATUS_UNSUPPORTED,
                       "KV format with %d bits of K and %d of V: f16 is for both or neither", format->k_bits,
                       format->v_bits);
    if (format->k_bits != 16) {
        if (!is_code_width(format->k_bits) || !is_code_width(format->v_bits))
            return bs_fail(BS_STATUS_UNSUPPORTED, "KV format with %d bits of K and %d of V: 8, 4 or 2",
                           format->k_bits, format->v_bits);
        if (format->group != 32 && format->group != 64 && format->group != 128)
            return bs_fail(BS_STATUS_UNSUPPORTED, "KV format with groups of %d: 32, 64 or 128",
                           format->group);
    }
    bs_cpu_kv_layout layout = bs_cpu_kv_layout_of(shape);
    *f16 = layout.f16_slot_bytes;
    *quant = layout.quant_slot_bytes;
    return BS_STATUS_OK;
}

bs_status bs_cpu_clear_slots(bs_stream *stream, const bs_clear_slots_args *args)
{
    const bs_kv_pools *pools = args->pools;
    bs_cpu_kv_layout layout = bs_cpu_kv_layout_of(pools->shape);
    size_t bytes = args->quantized ? layout.quant_slot_bytes : layout.f16_slot_bytes;
    uint8_t *pool = args->quantized ? pools->quant_pool : pools->f16_pool;
    for (int i = 0; i < args->n; i++) memset(pool + args->slot[i] * bytes, 0, bytes);
    return BS_STATUS_OK;
}
