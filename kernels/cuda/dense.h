/* dense.h: the dense and sampling ops of a GPU, and what they keep for it. */
#ifndef BS_CUDA_DENSE_H
#define BS_CUDA_DENSE_H

#include "kernels/cuda/cuda_private.h"

/* Types of weights and activations that kernels read. */
static inline bool bs_cuda_is_float(bs_type type)
{
    return type == BS_TYPE_F32 || type == BS_TYPE_F16 || type == BS_TYPE_BF16;
}

/* First element of the view. */
static inline const void *bs_cuda_weight_data(const bs_weight *w)
{
    return (const uint8_t *)w->data + (size_t)w->first_col * (size_t)bs_type_block_bytes(w->type);
}

bs_status bs_cuda_embed(bs_stream *stream, const bs_embed_args *args);
bs_status bs_cuda_rmsnorm(bs_stream *stream, const bs_rmsnorm_args *args);
bs_status bs_cuda_gemm(bs_stream *stream, const bs_gemm_args *args);
bool bs_cuda_gemm_gates(const bs_device *device, const bs_gemm_args *args);
size_t bs_cuda_gemm_workspace(const bs_device *device, int64_t n_rows, int64_t n_cols, int n_tokens);
bs_status bs_cuda_silu_mul(bs_stream *stream, const bs_silu_mul_args *args);
bs_status bs_cuda_candidates(bs_stream *stream, const bs_candidates_args *args);
bs_status bs_cuda_sample(bs_stream *stream, const bs_sample_args *args);
bs_status bs_cuda_mark_seen(bs_stream *stream, uint64_t *bitmap, const int32_t *ids, int n);

/* What bs_device.state points to: set up when the device is opened, so that no op allocates. A rank has one stream,
 * so its ops take turns in what is here. */
enum { BS_CUDA_SAMPLING_BYTES = 16 << 20, BS_CUDA_CUBLAS_WORKSPACE = 32 << 20 };
typedef struct bs_cuda_cublas bs_cuda_cublas;
typedef struct bs_cuda_dense {
    bs_cuda_cublas *cublas;
    void *sampling; /* device memory of candidates.cu */
} bs_cuda_dense;

static inline const bs_cuda_dense *bs_cuda_dense_of(const bs_stream *stream)
{
    return (const bs_cuda_dense *)stream->device->state;
}

/* chain.cu: one token */
bs_status bs_cuda_dense_chain(bs_stream *stream, const bs_dense_chain_args *args);
bool bs_cuda_dense_chain_fits(const bs_device *device, int64_t n_attended, int64_t n_hidden, int64_t n_ffn,
                              bs_type act);
/* gemv.cu: up to 16 tokens at the speed of memory. `takes` says whether it takes these operands. */
bool bs_cuda_gemv_takes(const bs_gemm_args *args);
bs_status bs_cuda_gemv(bs_stream *stream, const bs_gemm_args *args);
/* gemm_cublas.cu: many tokens; W and x of one type. Opening loads the library; closing takes NULL. */
bs_status bs_cuda_cublas_open(bs_cuda_cublas **out);
void bs_cuda_cublas_close(bs_cuda_cublas *cublas);
bs_status bs_cuda_gemm_cublas(bs_stream *stream, const bs_gemm_args *args);
/* gemm_any.cu: any of the three types, any alignment, any T: correct, not fast. */
bs_status bs_cuda_gemm_any(bs_stream *stream, const bs_gemm_args *args);

#endif
