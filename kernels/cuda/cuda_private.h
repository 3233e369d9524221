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

/* Where kernels say that they met NaN or infinity (fault.h). stream_fault moves the record to the stream. */
typedef struct bs_cuda_fault {
    int32_t *claimed;         /* device memory: 1 from the first fault on, so that one writer wins whole */
    bs_numeric_fault *record; /* pinned host memory: read after a sync without a copy */
} bs_cuda_fault;

/* What bs_stream.state points to. */
typedef struct bs_cuda_stream_state {
    cudaStream_t stream;
    bs_cuda_fault fault;
} bs_cuda_stream_state;

static inline cudaStream_t bs_cuda_stream(const bs_stream *stream)
{
    return ((const bs_cuda_stream_state *)stream->state)->stream;
}

static inline bs_cuda_fault bs_cuda_stream_fault(const bs_stream *stream)
{
    return ((const bs_cuda_stream_state *)stream->state)->fault;
}

/* A number of the current device. */
static inline bs_status bs_cuda_attribute(cudaDeviceAttr attribute, const char *what, int *value)
{
    int device;
    BS_TRY(bs_cuda_status(cudaGetDevice(&device), what));
    return bs_cuda_status(cudaDeviceGetAttribute(value, attribute, device), what);
}

/* After a launch: catches a bad configuration at once; errors of the running kernel come with the next sync.
 */
static inline bs_status bs_cuda_launched(const char *what)
{
    return bs_cuda_status(cudaGetLastError(), what);
}

bs_status bs_cuda_keep_tokens(bs_stream *stream, int32_t *last, const int32_t *token, const int32_t *seq,
                              int n);
bs_status bs_cuda_feed_tokens(bs_stream *stream, int32_t *ids, int n, const int32_t *last);
bs_status bs_cuda_rope_table(bs_stream *stream, const bs_rope_table_args *args);
bs_status bs_cuda_append(bs_stream *stream, const bs_append_args *args);
bs_status bs_cuda_quantize(bs_stream *stream, const bs_quantize_args *args);
bs_status bs_cuda_clear_slots(bs_stream *stream, const bs_clear_slots_args *args);
bs_status bs_cuda_pack(bs_stream *stream, const bs_pack_args *args);
bs_status bs_cuda_unpack(bs_stream *stream, const bs_pack_args *args);
bs_status bs_cuda_unrotate(bs_stream *stream, const bs_unrotate_args *args);
/* Whether attention has kernels for the format's widths of K and V. */
bool bs_cuda_attend_has(const bs_kv_format *format);
bs_status bs_cuda_attend(bs_stream *stream, const bs_attend_args *args);
bool bs_cuda_attend_turns(const bs_device *device, const bs_attend_args *args);
size_t bs_cuda_attend_workspace(const bs_device *device, const bs_kv_shape *shape, int n_heads, int max_seqs,
                                int max_tokens, int max_pages);
bs_status bs_cuda_slot_bytes(const bs_device *device, const bs_kv_shape *shape, size_t *f16, size_t *quant);
/* graph.cu */
bs_status bs_cuda_capture_begin(bs_stream *stream);
bs_status bs_cuda_capture_end(bs_stream *stream, void **graph);
bs_status bs_cuda_graph_launch(bs_stream *stream, void *graph);
void bs_cuda_graph_close(void *graph);
bs_status bs_cuda_timer_open(bs_device *device, void **marks);
void bs_cuda_timer_close(void *marks);
bs_status bs_cuda_timer_mark(bs_stream *stream, void *marks, int which);
bs_status bs_cuda_timer_read(void *marks, double *ms);

bs_status bs_cuda_random_fill(bs_stream *stream, const bs_random_fill_args *args);
bs_status bs_cuda_random_page(bs_stream *stream, const bs_random_page_args *args);

bs_status bs_cuda_stream_read(bs_stream *stream, const void *data, size_t bytes, uint32_t *sink);

bs_status bs_cuda_merge(bs_stream *stream, const bs_merge_args *args);
bs_status bs_cuda_merge_weigh(bs_stream *stream, const bs_merge_weigh_args *args);
bs_status bs_cuda_merge_finish(bs_stream *stream, const bs_merge_finish_args *args);
bs_status bs_cuda_merge_fold(bs_stream *stream, const bs_merge_fold_args *args);

#endif
