/* slots.cu: which KV shapes a GPU takes, the bytes of their slots, and clearing them.
 *
 * Math     none; zeros.
 * Layout   kv_layout.h; a slot is a multiple of 128 bytes, so 16-byte stores fit.
 * Mapping  grid (pieces of a slot, slots), 256 threads, one 16-byte store a thread and turn.
 * Cost     the slot's bytes at the speed of writes: 32 layers x 8 heads of int4 are 4.5 MB, 1.5 us.
 * Numerics none.
 * Limits   any number of slots, 64-bit offsets.
 * Measured docs/perf/LOG.md. */
#include "kernels/cuda/cuda_private.h"
#include "kernels/cuda/kv_layout.h"

enum { THREADS = 256, STORES_A_THREAD = 4, MAX_GRID_Y = 65535 };

bs_status bs_cuda_slot_bytes(const bs_device *, const bs_kv_shape *shape, size_t *f16, size_t *quant)
{
    const bs_kv_format *format = &shape->format;
    if (shape->head_dim != 64 && shape->head_dim != 128)
        return bs_fail(BS_STATUS_UNSUPPORTED, "head size %d: the KV cache has GPU kernels for 64 and 128",
                       shape->head_dim);
    if (!bs_cuda_attend_has(format))
        return bs_fail(BS_STATUS_UNSUPPORTED,
                       "KV format with %d bits of K and %d of V: GPU kernels exist for f16, 8/8, 4/4, 2/2, "
                       "8/4 and 4/2",
                       format->k_bits, format->v_bits);
    if (format->k_bits != 16 && format->group != 32 && format->group != 64 && format->group != 128)
        return bs_fail(BS_STATUS_UNSUPPORTED, "KV format with groups of %d: 32, 64 or 128", format->group);
    int major;
    BS_TRY(bs_cuda_attribute(cudaDevAttrComputeCapabilityMajor, "KV cache", &major));
    if (major < 9)
        return bs_fail(BS_STATUS_UNSUPPORTED,
                       "this GPU has compute capability %d, attention over the KV cache needs 9.0", major);
    bs_cuda_kv_layout layout = bs_cuda_kv_layout_of(shape);
    *f16 = layout.f16_slot;
    *quant = layout.quant_slot;
    return BS_STATUS_OK;
}

static __global__ void __launch_bounds__(THREADS)
    clear_kernel(uint8_t *pool, size_t slot_bytes, const uint32_t *slots, int n)
{
    const uint4 zero = {0, 0, 0, 0};
    const size_t n_stores = slot_bytes / sizeof zero;
    for (int i = (int)blockIdx.y; i < n; i += (int)gridDim.y) {
        uint4 *slot = (uint4 *)(pool + slots[i] * slot_bytes);
        for (size_t s = (size_t)blockIdx.x * THREADS + threadIdx.x; s < n_stores;
             s += (size_t)gridDim.x * THREADS)
            slot[s] = zero;
    }
}

bs_status bs_cuda_clear_slots(bs_stream *stream, const bs_clear_slots_args *args)
{
    const bs_cuda_kv_layout layout = bs_cuda_kv_layout_of(args->pools->shape);
    const size_t bytes = args->quantized ? layout.quant_slot : layout.f16_slot;
    const size_t piece = THREADS * STORES_A_THREAD * sizeof(uint4);
    if (bytes == 0) return BS_STATUS_OK;
    const dim3 grid((unsigned)((bytes + piece - 1) / piece),
                    (unsigned)(args->n < MAX_GRID_Y ? args->n : MAX_GRID_Y));
    uint8_t *pool = (uint8_t *)(args->quantized ? args->pools->quant_pool : args->pools->f16_pool);
    clear_kernel<<<grid, THREADS, 0, bs_cuda_stream(stream)>>>(pool, bytes, args->slot, args->n);
    return bs_cuda_launched("clear_slots");
}
