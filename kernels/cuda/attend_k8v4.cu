/* attend_k8v4.cu: the kernels of attention over pages with 8 bits of K and 4 of V. */
#include "kernels/cuda/attend_kernel.cuh"

bs_status bs_attend_launch_8_4(const attend_params *p, int rows, int n_ctas, int n_warps, size_t smem,
                               const bs_stream *stream)
{
    return attend_launch_pair<8, 4>(p, rows, n_ctas, n_warps, smem, stream);
}
