/* overlap.h: programmatic dependent launch (bs_stream_set_overlap): a kernel that may start while the one before
 * it is still ending.
 *
 * Every kernel that is launched so does three things. It lets the next one start (bs_cuda_release_next), attention
 * behind its wait and all others at once; it fetches what nothing has written since the last launch without overlap:
 * weights, and attention's page tables and quantized pages; and it waits (bs_cuda_wait_before), in every thread, before
 * it reads anything else and before it writes anything. The wait ends when the kernel before is done, and that one has
 * waited too, so everything before it is done as well. But what runs beside this kernel's first part may be two or three
 * kernels back: nothing that the same chain writes may be read before the wait.
 * Compute capability 9.0; on older cards these are nothing, and launches follow each other. */
#ifndef BS_CUDA_OVERLAP_H
#define BS_CUDA_OVERLAP_H

#include "kernels/cuda/cuda_private.h"

static __device__ __forceinline__ void bs_cuda_wait_before()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

static __device__ __forceinline__ void bs_cuda_release_next()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* Launches kernel(args…) on the stream, overlapped if the stream asks; catches a bad configuration at once. */
template <typename... Params, typename... Args>
static inline bs_status bs_cuda_launch(const bs_stream *stream, const char *what, void (*kernel)(Params...),
                                       dim3 grid, dim3 block, size_t smem_bytes, const Args &...args)
{
    cudaLaunchAttribute overlap = {};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = smem_bytes;
    config.stream = bs_cuda_stream(stream);
    config.attrs = &overlap;
    config.numAttrs = stream->overlap ? 1 : 0;
    return bs_cuda_status(cudaLaunchKernelEx(&config, kernel, Params(args)...), what);
}

#endif
