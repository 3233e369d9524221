/* cuda_private.h: what the files of kernels/cuda share. */
#ifndef BS_CUDA_PRIVATE_H
#define BS_CUDA_PRIVATE_H

#include "config.h"

#include <cuda_runtime.h>

extern "C" {
#include "kernels/backend.h"
}

/* BS_STATUS_OK, or one line with CUDA's own words. */
static inline bs_status bs_cuda_status(cudaError_t error, const char *what)
{
    if (error == cudaSuccess) return BS_STATUS_OK;
    return bs_fail(error == cudaErrorMemoryAllocation ? BS_STATUS_NOMEM : BS_STATUS_INTERNAL, "%s: %s", what,
                   cudaGetErrorString(error));
}

static inline cudaStream_t bs_cuda_stream(const bs_stream *stream)
{
    return (cudaStream_t)stream->state;
}

/* After a launch: catches a bad configuration at once; errors of the running kernel come with the next sync.
 */
static inline bs_status bs_cuda_launched(const char *what)
{
    return bs_cuda_status(cudaGetLastError(), what);
}

bs_status bs_cuda_merge(bs_stream *stream, const bs_merge_args *args);
bs_status bs_cuda_merge_weigh(bs_stream *stream, const bs_merge_weigh_args *args);
bs_status bs_cuda_merge_finish(bs_stream *stream, const bs_merge_finish_args *args);
bs_status bs_cuda_merge_fold(bs_stream *stream, const bs_merge_fold_args *args);

#endif
