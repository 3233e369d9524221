/* backend.cu: one NVIDIA GPU behind the device seam: memory, streams, copies, and the table of ops.
 *
 * Memory is plain cudaMalloc (never managed). */
#include "kernels/cuda/cuda_private.h"
#include "kernels/cuda/dense.h"
#include "kernels/cuda/overlap.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

static void *memory_alloc(bs_device *, size_t bytes)
{
    void *memory = nullptr;
    if (cudaMalloc(&memory, bytes) != cudaSuccess) {
        cudaGetLastError(); /* an allocation that failed must not fail the next launch */
        return nullptr;
    }
    /* The device's streams do not wait for the default stream, so the host waits for the zeros. */
    if (cudaMemset(memory, 0, bytes) == cudaSuccess && cudaStreamSynchronize(cudaStreamLegacy) == cudaSuccess)
        return memory;
    cudaFree(memory);
    return nullptr;
}

static void memory_free(bs_device *, void *memory)
{
    cudaFree(memory);
}

static void *host_alloc(bs_device *, size_t bytes)
{
    void *memory = nullptr;
    if (cudaHostAlloc(&memory, bytes, cudaHostAllocDefault) != cudaSuccess) {
        cudaGetLastError();
        return nullptr;
    }
    memset(memory, 0, bytes);
    return memory;
}

static void host_free(bs_device *, void *memory)
{
    cudaFreeHost(memory);
}

static size_t memory_available(const bs_device *)
{
    size_t left = 0, total = 0;
    if (cudaMemGetInfo(&left, &total) == cudaSuccess) return left;
    cudaGetLastError();
    return 0;
}

/* ---- copies ---- */

enum { SMALL_COPY = 64 << 10, COPY_THREADS = 256 };

/* N: what a thread loads and stores. */
template <typename N>
static __global__ void __launch_bounds__(COPY_THREADS) copy_kernel(N *dst, const N *src, int n)
{
    const int i = (int)blockIdx.x * COPY_THREADS + (int)threadIdx.x;
    bs_cuda_release_next();
    bs_cuda_wait_before();
    if (i < n) dst[i] = __ldcv(src + i);
}

template <typename N> static bs_status copy_small(bs_stream *stream, void *dst, const void *src, size_t bytes)
{
    const int n = (int)(bytes / sizeof(N));
    return bs_cuda_launch(stream, "copy", copy_kernel<N>,
                          dim3((unsigned)((n + COPY_THREADS - 1) / COPY_THREADS)), dim3(COPY_THREADS), 0,
                          (N *)dst, (const N *)src, n);
}

/* Host memory that a kernel may reach: host_alloc's. */
static bool is_mapped(const void *host)
{
    cudaPointerAttributes a;
    if (cudaPointerGetAttributes(&a, host) == cudaSuccess)
        return a.type == cudaMemoryTypeHost && a.devicePointer == host;
    cudaGetLastError();
    return false;
}

/* A step's inputs and its drawn tokens are a few hundred bytes; a copy engine takes 3 to 9 µs for each, the stream's
 * kernels waiting on both sides, and a kernel that reads or writes the host's memory 1 to 2. */
static bs_status copy(bs_stream *stream, void *dst, const void *src, size_t bytes, int direction)
{
    const uintptr_t places = (uintptr_t)dst | (uintptr_t)src | bytes;
    const void *host = direction == BS_COPY_TO_DEVICE ? src : dst;
    if (direction != BS_COPY_ON_DEVICE && bytes > 0 && bytes <= SMALL_COPY && places % 4 == 0 &&
        is_mapped(host))
        return places % 16 == 0 ? copy_small<uint4>(stream, dst, src, bytes)
                                : copy_small<uint32_t>(stream, dst, src, bytes);
    cudaMemcpyKind kind = direction == BS_COPY_TO_DEVICE ? cudaMemcpyHostToDevice
                          : direction == BS_COPY_TO_HOST ? cudaMemcpyDeviceToHost
                                                         : cudaMemcpyDeviceToDevice;
    return bs_cuda_status(cudaMemcpyAsync(dst, src, bytes, kind, bs_cuda_stream(stream)), "copy");
}

static bs_status fill_zero(bs_stream *stream, void *dst, size_t bytes)
{
    return bs_cuda_status(cudaMemsetAsync(dst, 0, bytes, bs_cuda_stream(stream)), "fill");
}

static void stream_close(bs_stream *stream)
{
    bs_cuda_stream_state *state = (bs_cuda_stream_state *)stream->state;
    if (state->fault.record) cudaFreeHost(state->fault.record);
    if (state->fault.claimed) cudaFree(state->fault.claimed);
    if (state->stream) cudaStreamDestroy(state->stream);
    free(state);
}

static bs_status stream_open(bs_stream *stream)
{
    bs_cuda_stream_state *state = (bs_cuda_stream_state *)calloc(1, sizeof *state);
    if (!state) return bs_fail(BS_STATUS_NOMEM, "stream: no memory for its state");
    stream->state = state;
    int lowest = 0, highest = 0;
    cudaError_t error = cudaDeviceGetStreamPriorityRange(&lowest, &highest);
    if (error == cudaSuccess)
        error = cudaStreamCreateWithPriority(&state->stream, cudaStreamNonBlocking,
                                             stream->background ? lowest : highest);
    if (error == cudaSuccess) error = cudaMalloc(&state->fault.claimed, sizeof *state->fault.claimed);
    if (error == cudaSuccess)
        error = cudaMemsetAsync(state->fault.claimed, 0, sizeof *state->fault.claimed, state->stream);
    if (error == cudaSuccess)
        error = cudaHostAlloc(&state->fault.record, sizeof *state->fault.record, cudaHostAllocMapped);
    if (error == cudaSuccess) {
        memset(state->fault.record, 0, sizeof *state->fault.record);
        return BS_STATUS_OK;
    }
    stream_close(stream);
    cudaGetLastError(); /* what could not be had must not fail the next launch */
    return bs_cuda_status(error, "stream");
}

/* Takes over a fault that a kernel has recorded; bs_stream_fault reports it. */
static bs_status take_fault(bs_stream *stream)
{
    bs_cuda_stream_state *state = (bs_cuda_stream_state *)stream->state;
    if (!state->fault.record->seen) return BS_STATUS_OK;
    if (!stream->fault.seen) stream->fault = *state->fault.record;
    memset(state->fault.record, 0, sizeof *state->fault.record);
    return bs_cuda_status(
        cudaMemsetAsync(state->fault.claimed, 0, sizeof *state->fault.claimed, state->stream), "GPU");
}

static bs_status stream_sync(bs_stream *stream)
{
    return bs_cuda_status(cudaStreamSynchronize(bs_cuda_stream(stream)), "GPU");
}

static void *stream_native(const bs_stream *stream)
{
    return bs_cuda_stream(stream);
}

/* A thread begins with GPU 0. */
static bs_status device_enter(bs_device *device)
{
    return bs_cuda_status(cudaSetDevice(device->ordinal), "GPU");
}

static void device_close(bs_device *device)
{
    bs_cuda_dense *dense = (bs_cuda_dense *)device->state;
    if (!dense) return;
    bs_cuda_cublas_close(dense->cublas);
    cudaFree(dense->sampling);
    free(dense);
    device->state = nullptr;
}

/* cuBLAS and the sampling ops' memory. */
static bs_status open_dense(bs_device *device)
{
    bs_cuda_dense *dense = (bs_cuda_dense *)calloc(1, sizeof *dense);
    if (!dense) return bs_fail(BS_STATUS_NOMEM, "GPU: no memory for its state");
    device->state = dense;
    bs_status status = bs_cuda_cublas_open(&dense->cublas);
    if (status == BS_STATUS_OK)
        status = bs_cuda_status(cudaMalloc(&dense->sampling, BS_CUDA_SAMPLING_BYTES), "GPU: sampling");
    if (status == BS_STATUS_OK) return status;
    device_close(device);
    cudaGetLastError(); /* what could not be had must not fail the next launch */
    return status;
}

static bs_backend make_backend()
{
    bs_backend table = {};
    table.embed = bs_cuda_embed;
    table.rmsnorm = bs_cuda_rmsnorm;
    table.gemm = bs_cuda_gemm;
    table.gemm_gates = bs_cuda_gemm_gates;
    table.gemm_workspace = bs_cuda_gemm_workspace;
    table.silu_mul = bs_cuda_silu_mul;
    table.candidates = bs_cuda_candidates;
    table.sample = bs_cuda_sample;
    table.mark_seen = bs_cuda_mark_seen;
    table.rope_table = bs_cuda_rope_table;
    table.append = bs_cuda_append;
    table.quantize = bs_cuda_quantize;
    table.clear_slots = bs_cuda_clear_slots;
    table.unrotate = bs_cuda_unrotate;
    table.pack = bs_cuda_pack;
    table.unpack = bs_cuda_unpack;
    table.merge = bs_cuda_merge;
    table.merge_weigh = bs_cuda_merge_weigh;
    table.merge_finish = bs_cuda_merge_finish;
    table.merge_fold = bs_cuda_merge_fold;
    table.dense_chain = bs_cuda_dense_chain;
    table.dense_chain_fits = bs_cuda_dense_chain_fits;
    table.slot_bytes = bs_cuda_slot_bytes;
    table.stream_read = bs_cuda_stream_read;
    table.random_fill = bs_cuda_random_fill;
    table.random_page = bs_cuda_random_page;
    table.capture_begin = bs_cuda_capture_begin;
    table.capture_end = bs_cuda_capture_end;
    table.graph_launch = bs_cuda_graph_launch;
    table.graph_close = bs_cuda_graph_close;
    table.timer_open = bs_cuda_timer_open;
    table.timer_close = bs_cuda_timer_close;
    table.timer_mark = bs_cuda_timer_mark;
    table.timer_read = bs_cuda_timer_read;
    table.attend = bs_cuda_attend;
    table.attend_turns = bs_cuda_attend_turns;
    table.attend_workspace = bs_cuda_attend_workspace;
    table.memory_alloc = memory_alloc;
    table.memory_free = memory_free;
    table.host_alloc = host_alloc;
    table.host_free = host_free;
    table.memory_available = memory_available;
    table.copy = copy;
    table.fill_zero = fill_zero;
    table.stream_open = stream_open;
    table.stream_close = stream_close;
    table.stream_sync = stream_sync;
    table.stream_fault = take_fault;
    table.keep_tokens = bs_cuda_keep_tokens;
    table.feed_tokens = bs_cuda_feed_tokens;
    table.stream_native = stream_native;
    table.device_enter = device_enter;
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
    memcpy(device->info.uuid, properties.uuid.bytes, sizeof device->info.uuid);
    return open_dense(device);
}
