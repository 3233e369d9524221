/* gemm.cu: y = x Wᵀ on a GPU: which way.
 *
 * gemv.cu for up to 16 tokens, cuBLAS for more (and on cards older than 9.0, and where addresses are odd), both where W
 * and x are of one type; gemm_any.cu for the rest. Weights in the blocks of GGUF's quantized types are not read here:
 * they become BF16 or F16 when a model is loaded. */
#include "kernels/cuda/dense.h"

size_t bs_cuda_gemm_workspace(const bs_device *, int64_t n_rows, int64_t n_cols, int n_tokens)
{
    return n_rows > 0 && n_cols > 0 && n_tokens > 0 ? BS_CUDA_CUBLAS_WORKSPACE : 0;
}

static bool is_for_gemv(const bs_gemm_args *a)
{
    int major;
    return bs_cuda_gemv_takes(a) &&
           bs_cuda_attribute(cudaDevAttrComputeCapabilityMajor, "gemm", &major) == BS_STATUS_OK && major >= 9;
}

bool bs_cuda_gemm_gates(const bs_device *, const bs_gemm_args *a)
{
    return is_for_gemv(a);
}

bs_status bs_cuda_gemm(bs_stream *stream, const bs_gemm_args *a)
{
    const bs_weight *w = a->w;
    if (!bs_cuda_is_float(w->type))
        return bs_fail(BS_STATUS_UNSUPPORTED, "gemm: %s weights; a GPU reads F32, F16 and BF16",
                       bs_type_name(w->type));
    if (w->type != a->act || w->n_cols == 0) return bs_cuda_gemm_any(stream, a);
    return is_for_gemv(a) ? bs_cuda_gemv(stream, a) : bs_cuda_gemm_cublas(stream, a);
}
