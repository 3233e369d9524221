/* backend.cu: one NVIDIA GPU behind the device seam: memory, streams, copies, and the table of ops.
 *
 * Ops arrive one file at a time; one that has no CUDA kernel yet says so by name, when it is called and never
 * by a wrong answer. Memory is plain cudaMalloc (never managed). */
#include "kernels/cuda/cuda_private.h"

#include <cstdio>

#define X(op)                                                                                                \
    static bs_status missing_##op(bs_stream *, const bs_##op##_args *)                                       \
    {                                                                                                        \
        return bs_fail(BS_STATUS_UNSUPPORTED, "%s: this build has no CUDA kernel for it", #op);              \
    }
X(embed)
X(rmsnorm)
X(gemm)
X(silu_mul)
X(rope_table)
X(append)
X(quantize)
X(clear_slots)
X(attend)
X(unrotate)
X(candidates)
X(sample)
X(pack)
#undef X

static bs_status missing_mark_seen(bs_stream *, uint64_t *, const int32_t *, int)
{
    return bs_fail(BS_STATUS_UNSUPPORTED, "mark_seen: this build has no CUDA kernel for it");
}

static bs_status slot_bytes(const bs_device *, const bs_kv_shape *, size_t *, size_t *)
{
    return bs_fail(BS_STATUS_UNSUPPORTED, "KV cache: this build has no CUDA kernels for it");
}

static size_t no_gemm_workspace(const bs_device *, int64_t, int64_t, int)
{
    return 0;
}

static size_t no_attend_workspace(const bs_device *, const bs_kv_shape *, int, int, int, int)
{
    return 0;
}

static void *memory_alloc(bs_device *, size_t bytes)
{
    void *memory = nullptr;
    if (cudaMalloc(&memory, bytes) != cudaSuccess) {
        cudaGetLastError(); /* an allocation that failed must not fail the next launch */
        return nullptr;
    }
    if (cudaMemset(memory, 0, bytes) == cudaSuccess) return memory;
    cudaFree(memory);
    return nullptr;
}

static void memory_free(bs_device *, void *memory)
{
    cudaFree(memory);
}

static bs_status copy(bs_stream *stream, void *dst, const void *src, size_t bytes, int direction)
{
    cudaMemcpyKind kind = direction == BS_COPY_TO_DEVICE ? cudaMemcpyHostToDevice
                          : direction == BS_COPY_TO_HOST ? cudaMemcpyDeviceToHost
                                                         : cudaMemcpyDeviceToDevice;
    return bs_cuda_status(cudaMemcpyAsync(dst, src, bytes, kind, bs_cuda_stream(stream)), "copy");
}

static bs_status fill_zero(bs_stream *stream, void *dst, size_t bytes)
{
    return bs_cuda_status(cudaMemsetAsync(dst, 0, bytes, bs_cuda_stream(stream)), "fill");
}

static bs_status stream_open(bs_stream *stream)
{
    cudaStream_t made;
    BS_TRY(bs_cuda_status(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "stream"));
    stream->state = made;
    return BS_STATUS_OK;
}

static void stream_close(bs_stream *stream)
{
    cudaStreamDestroy(bs_cuda_stream(stream));
}

static bs_status stream_sync(bs_stream *stream)
{
    return bs_cuda_status(cudaStreamSynchronize(bs_cuda_stream(stream)), "GPU");
}

static void device_close(bs_device *)
{
}

static bs_backend make_backend()
{
    bs_backend table = {};
#define X(op) table.op = missing_##op;
    X(embed)
    X(rmsnorm)
    X(gemm)
    X(silu_mul)
    X(rope_table)
    X(append)
    X(quantize)
    X(clear_slots)
    X(attend)
    X(unrotate)
    X(candidates)
    X(sample)
    X(pack)
    X(mark_seen)
#undef X
    table.unpack = missing_pack;
    table.merge = bs_cuda_merge;
    table.merge_weigh = bs_cuda_merge_weigh;
    table.merge_finish = bs_cuda_merge_finish;
    table.merge_fold = bs_cuda_merge_fold;
    table.slot_bytes = slot_bytes;
    table.gemm_workspace = no_gemm_workspace;
    table.attend_workspace = no_attend_workspace;
    table.memory_alloc = memory_alloc;
    table.memory_free = memory_free;
    table.copy = copy;
    table.fill_zero = fill_zero;
    table.stream_open = stream_open;
    table.stream_close = stream_close;
    table.stream_sync = stream_sync;
    table.device_close = device_close;
    return table;
}

int bs_cuda_count_gpus(void)
{
    int n = 0;
    if (cudaGetDeviceCount(&n) == cudaSuccess) return n;
    cudaGetLastError();
    return 0; /* no driver is no GPU */
}

bs_status bs_cuda_device_open(const bs_device_config *config, bs_device *device)
{
    static const bs_backend backend = make_backend();
    cudaDeviceProp properties;
    int n = bs_cuda_count_gpus();
    if (config->ordinal < 0 || config->ordinal >= n)
        return bs_fail(BS_STATUS_UNSUPPORTED, "GPU %d: this process sees %d", config->ordinal, n);
    BS_TRY(bs_cuda_status(cudaSetDevice(config->ordinal), "GPU"));
    BS_TRY(bs_cuda_status(cudaGetDeviceProperties(&properties, config->ordinal), "GPU"));
    if (properties.major < 8)
        return bs_fail(BS_STATUS_UNSUPPORTED, "GPU %d, %s: compute capability %d.%d, 8.0 is needed",
                       config->ordinal, properties.name, properties.major, properties.minor);
    device->backend = &backend;
    device->info.kind = BS_DEVICE_CUDA;
    snprintf(device->info.name, sizeof device->info.name, "%.127s", properties.name);
    device->info.act_type = BS_TYPE_BF16;
    device->info.memory_bytes = properties.totalGlobalMem;
    return BS_STATUS_OK;
}
