/* gemm_cublas.cu: y = x Wᵀ by cuBLAS, for many tokens.
 *
 * Math     y[t, r] = Σ_c x[t, c] · W[r, c] (+ bias[r]).
 * Layout   row-major [rows, cols] is cuBLAS's column-major [cols, rows]: y is Wᵀ x of an m × n = rows × T problem.
 * Mapping  cuBLAS's own.
 * Cost     2 · T · rows · cols operations: a chunk of 2,048 tokens through 14336 × 4096 is 241 G, 0.3 ms at 800
 * Tflop/s; below some 250 tokens the bytes of W are the bound.
 * Numerics products of act, sums in f32, no TF32; the same bits run to run (one stream, one workspace). The bias is
 * written to y first and added by cuBLAS (beta 1), after the sum has been rounded to the output's type: exact for the
 * biases of bf16 models, two roundings of the rest.
 * Limits   W and x of one type; sizes and strides below 2^31. The workspace is the op's, so nothing is allocated.
 * Measured docs/perf/LOG.md.
 *
 * The library is loaded when a GPU is opened, not linked: it is 600 MB that every CPU rank would map at start, 0.3 s
 * of each. */
#include "kernels/cuda/dense.h"
#include "kernels/cuda/overlap.h"
#include "kernels/cuda/warp_head.h"

#include <cublas_v2.h>
#include <dlfcn.h>

#include <cstdlib>

#define STRING(x)  STRING_(x)
#define STRING_(x) #x
#define LIBRARY    "libcublas.so." STRING(CUBLAS_VER_MAJOR)

enum { THREADS = 256 };

struct bs_cuda_cublas {
    void *library;
    cublasHandle_t handle;
    decltype(&cublasCreate) create;
    decltype(&cublasDestroy) destroy;
    decltype(&cublasSetStream) set_stream;
    decltype(&cublasSetWorkspace) set_workspace;
    decltype(&cublasSetMathMode) set_math_mode;
    cublasStatus_t (*gemm)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int m, int n, int k,
                           const void *alpha, const void *a, cudaDataType a_type, int lda, const void *b,
                           cudaDataType b_type, int ldb, const void *beta, void *c, cudaDataType c_type,
                           int ldc, cublasComputeType_t, cublasGemmAlgo_t); /* overloaded in C++ */
    decltype(&cublasGetStatusString) status_string;
};

static bs_status check(const bs_cuda_cublas *c, cublasStatus_t status, const char *what)
{
    if (status == CUBLAS_STATUS_SUCCESS) return BS_STATUS_OK;
    return bs_fail(status == CUBLAS_STATUS_ALLOC_FAILED ? BS_STATUS_NOMEM : BS_STATUS_INTERNAL,
                   "%s: cuBLAS says %s", what, c->status_string(status));
}

template <typename F> static bool find(const bs_cuda_cublas *c, const char *name, F *function)
{
    *function = (F)dlsym(c->library, name);
    return *function != nullptr;
}

void bs_cuda_cublas_close(bs_cuda_cublas *c)
{
    if (!c) return;
    if (c->handle) c->destroy(c->handle);
    if (c->library) dlclose(c->library);
    free(c);
}

bs_status bs_cuda_cublas_open(bs_cuda_cublas **out)
{
    bs_cuda_cublas *c = (bs_cuda_cublas *)calloc(1, sizeof *c);
    if (!c) return bs_fail(BS_STATUS_NOMEM, "GPU: no memory for cuBLAS's state");
    bs_status status;
    if (!(c->library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL)))
        status = bs_fail(BS_STATUS_UNSUPPORTED, "GPU: cuBLAS cannot be loaded: %s", dlerror());
    else if (!find(c, STRING(cublasCreate), &c->create) || !find(c, STRING(cublasDestroy), &c->destroy) ||
             !find(c, STRING(cublasSetStream), &c->set_stream) ||
             !find(c, STRING(cublasSetWorkspace), &c->set_workspace) ||
             !find(c, STRING(cublasSetMathMode), &c->set_math_mode) ||
             !find(c, STRING(cublasGemmEx), &c->gemm) ||
             !find(c, STRING(cublasGetStatusString), &c->status_string))
        status = bs_fail(BS_STATUS_UNSUPPORTED, "GPU: %s lacks a function: %s", LIBRARY, dlerror());
    else status = check(c, c->create(&c->handle), "GPU");
    /* Parts of a sum are added in f32 before the one rounding to 16 bits. */
    const int math = CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
    if (status == BS_STATUS_OK) status = check(c, c->set_math_mode(c->handle, (cublasMath_t)math), "GPU");
    if (status == BS_STATUS_OK) *out = c;
    else bs_cuda_cublas_close(c);
    return status;
}

static __global__ void __launch_bounds__(THREADS) bias_kernel(bs_gemm_args a, int64_t n_rows)
{
    const int64_t row = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    bs_cuda_release_next();
    bs_cuda_wait_before();
    if (row >= n_rows) return;
    const float bias = a.bias[row];
    for (int t = (int)blockIdx.y; t < a.n_tokens; t += (int)gridDim.y)
        bs_cuda_store_act(a.y, t * a.ldy + row, a.out_type, bias);
}

static cudaDataType_t type_of(bs_type type)
{
    return type == BS_TYPE_BF16 ? CUDA_R_16BF : type == BS_TYPE_F16 ? CUDA_R_16F : CUDA_R_32F;
}

bs_status bs_cuda_gemm_cublas(bs_stream *stream, const bs_gemm_args *a)
{
    const bs_cuda_cublas *c = bs_cuda_dense_of(stream)->cublas;
    const bs_weight *w = a->w;
    const int64_t ldw = (int64_t)w->row_bytes / bs_type_block_bytes(w->type);
    const float one = 1, beta = a->bias ? 1 : 0;
    if (w->n_rows > INT32_MAX || w->n_cols > INT32_MAX || ldw > INT32_MAX || a->ldx > INT32_MAX ||
        a->ldy > INT32_MAX)
        return bs_fail(BS_STATUS_RANGE, "gemm: a side of %lld × %lld is 2^31 or more", (long long)w->n_rows,
                       (long long)w->n_cols);
    if (a->bias) {
        const unsigned n_ctas = (unsigned)((w->n_rows + THREADS - 1) / THREADS);
        const unsigned n_groups = a->n_tokens < 64 ? (unsigned)a->n_tokens : 64;
        BS_TRY(bs_cuda_launch(stream, "gemm", bias_kernel, dim3(n_ctas, n_groups), dim3(THREADS), 0, *a,
                              w->n_rows));
    }
    BS_TRY(check(c, c->set_stream(c->handle, bs_cuda_stream(stream)), "gemm"));
    BS_TRY(check(c, c->set_workspace(c->handle, a->workspace, a->workspace_bytes), "gemm"));
    return check(c,
                 c->gemm(c->handle, CUBLAS_OP_T, CUBLAS_OP_N, (int)w->n_rows, a->n_tokens, (int)w->n_cols,
                         &one, bs_cuda_weight_data(w), type_of(w->type), (int)ldw, a->x, type_of(a->act),
                         (int)a->ldx, &beta, a->y, type_of(a->out_type), (int)a->ldy, CUBLAS_COMPUTE_32F,
                         CUBLAS_GEMM_DEFAULT),
                 "gemm");
}
