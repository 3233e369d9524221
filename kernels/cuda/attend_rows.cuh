/* attend_rows.cuh: q of a job, brought into shared memory by one warp for the whole CTA.
 *
 * Copies of the next segment's q are under way while this one is computed (cp.async, each lane its own part,
 * into a staging buffer); then the warp scales every row to [−1, 1] by a power of two and leaves it as fp16
 * in the order that lanes read (attend_q_at), with its gain beside it.
 */
#ifndef BS_CUDA_ATTEND_ROWS_CUH
#define BS_CUDA_ATTEND_ROWS_CUH

#include "kernels/cuda/attend_plan.cuh"
#include "kernels/cuda/attend_warp.cuh"

/* Starts the copy of a job's rows: lane (r, i) its column's channels 16k + 4i … + 3. */
template <int D, int R>
static __device__ __forceinline__ void attend_copy_q(uint32_t staging, const attend_params &p,
                                                     const attend_span &span, const attend_segment &segment)
{
    const int lane = threadIdx.x & 31;
    const int row = (lane >> 2) / (R == 4 ? 2 : 1), token = attend_token_of(p, segment.block, R, row);
    const int head = segment.kv_head * p.group + segment.block * R + row - token * p.group;
    const int64_t at = (int64_t)(span.q_start + token) * p.q_ld + (int64_t)head * D + 4 * (lane & 3);
    const bool wide = p.act == BS_TYPE_F32;
    const uint8_t *from = static_cast<const uint8_t *>(p.q) + at * (wide ? 4 : 2);
    const uint32_t to = staging + (uint32_t)(16 * lane);
    if (token >= span.n_query) {
#pragma unroll
        for (int k = 0; k < D / 16; k++) store_shared(to + 512 * k, make_uint4(0, 0, 0, 0));
    } else if (wide) {
#pragma unroll
        for (int k = 0; k < D / 16; k++) copy_async_16(to + 512 * k, from + 64 * k);
    } else {
#pragma unroll
        for (int k = 0; k < D / 16; k++) copy_async_8(to + 512 * k, from + 32 * k);
    }
}

/* Waits for the copies, and leaves q and the gains. Lanes of a warp each wait for their own. */
template <int D, int R>
static __device__ __forceinline__ void attend_put_q(uint32_t staging, const attend_params &p, uint32_t rows,
                                                    float *gains)
{
    const int lane = threadIdx.x & 31, row = (lane >> 2) / (R == 4 ? 2 : 1), i = lane & 3;
    copy_async_wait();
    uint4 x[D / 16]; /* f32 bits */
#pragma unroll
    for (int k = 0; k < D / 16; k++) x[k] = load_shared(staging + (uint32_t)(512 * k + 16 * lane));
    if (p.act == BS_TYPE_BF16) {
#pragma unroll
        for (int k = 0; k < D / 16; k++)
            x[k] = make_uint4(x[k].x << 16, x[k].x & 0xffff0000u, x[k].y << 16, x[k].y & 0xffff0000u);
    } else if (p.act == BS_TYPE_F16) {
#pragma unroll
        for (int k = 0; k < D / 16; k++)
            x[k] = make_uint4(__float_as_uint(__low2float(half2_of(x[k].x))),
                              __float_as_uint(__high2float(half2_of(x[k].x))),
                              __float_as_uint(__low2float(half2_of(x[k].y))),
                              __float_as_uint(__high2float(half2_of(x[k].y))));
    }
    uint32_t most = 0;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        /* The bits of |x| are in the order of their values, infinity and NaN on top. */
        most = max(max(max(most, x[k].x & 0x7fffffffu), max(x[k].y & 0x7fffffffu, x[k].z & 0x7fffffffu)),
                   x[k].w & 0x7fffffffu);
    }
    most = max(most, __shfl_xor_sync(~0u, most, 1));
    most = max(most, __shfl_xor_sync(~0u, most, 2));
    const int e = max(27, min((int)(most >> 23) + 1, 247)); /* 2^(e-127) > most */
    const float shrink = __int_as_float((254 - e) << 23);
    const uint32_t to = attend_q_at<D>(rows, row, i);
#pragma unroll
    for (int k = 0; k < D / 32; k++) {
        const uint4 a = x[2 * k], b = x[2 * k + 1];
        const uint4 q = make_uint4(
            bits_of(__floats2half2_rn(__uint_as_float(a.x) * shrink, __uint_as_float(a.y) * shrink)),
            bits_of(__floats2half2_rn(__uint_as_float(a.z) * shrink, __uint_as_float(a.w) * shrink)),
            bits_of(__floats2half2_rn(__uint_as_float(b.x) * shrink, __uint_as_float(b.y) * shrink)),
            bits_of(__floats2half2_rn(__uint_as_float(b.z) * shrink, __uint_as_float(b.w) * shrink)));
        if (R == 8 || !(lane & 4)) store_shared(to ^ (uint32_t)(16 * k), q);
    }
    float gain = __int_as_float(e << 23) * p.scale * BS_LOG2E;
    if (most >= 0x7f800000u) gain = NAN; /* so that the row's result is */
    if (i == 0 && (R == 8 || !(lane & 4))) gains[row] = gain;
}

#endif
