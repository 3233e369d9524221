/* attend_wgmma.cu: chunk attention's kernels, for the architecture that has warpgroup products (sm_90a, which the build
 * gives to this file alone). */
#include "kernels/cuda/attend_chunk_kernel.cuh"

bs_status bs_cuda_chunk_slab(const bs_stream *stream, const chunk_params *p, int max_blocks, bool first)
{
    return p->layout.head_dim == 64 ? chunk_launch<64>(stream, p, max_blocks, first)
                                    : chunk_launch<128>(stream, p, max_blocks, first);
}
