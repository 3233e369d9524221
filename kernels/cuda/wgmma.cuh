/* wgmma.cuh: Hopper's warpgroup matrix instructions, one function each, and what stands around them. sm_90a.
 *
 * Operands in shared memory are tiles of rows of 128 bytes (64 fp16), 8 rows an atom of 1,024 bytes in which 16-byte
 * chunk c of row r lies at chunk c ^ (r % 8), atoms one behind the other: the 128-byte swizzle. A matrix with more than
 * 64 columns is several such tiles. K-major: a row is a row of A or a column of B, its 64 values lie along k. MN-major
 * (B alone, here): a row is a k, its 64 values lie along n. Atoms begin at multiples of 1,024 bytes. */
#ifndef BS_CUDA_WGMMA_CUH
#define BS_CUDA_WGMMA_CUH

#include <cuda_fp16.h>
#include <stdint.h>

/* Descriptor of a tile: its shared address, and the bytes between tiles of 64 columns where the instruction takes
 * several (MN-major). */
static __device__ __forceinline__ uint64_t wgmma_tile(uint32_t address, uint32_t tile_bytes)
{
    return (uint64_t)1 << 62 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)(tile_bytes >> 4) << 16 |
           ((address & 0x3ffff) >> 4);
}

static __device__ __forceinline__ void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

static __device__ __forceinline__ void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until at most N groups are under way. */
template <int N> static __device__ __forceinline__ void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/* Sums are read and written here, not before. */
template <int N> static __device__ __forceinline__ void wgmma_hold(float (&c)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(c[i])::"memory");
}

#define BS_WGMMA_8(c, i)                                                                                     \
    "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]),              \
        "+f"(c[i + 6]), "+f"(c[i + 7])
#define BS_WGMMA_32(c, i) BS_WGMMA_8(c, i), BS_WGMMA_8(c, i + 8), BS_WGMMA_8(c, i + 16), BS_WGMMA_8(c, i + 24)
#define BS_WGMMA_0_31                                                                                        \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27," \
    "%28,%29,%30,%31"
#define BS_WGMMA_32_63                                                                                       \
    "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,"   \
    "%57,%58,%59,%60,%61,%62,%63"

/* c (+)= a · bᵀ: 64 x 16 times 16 x 128, both K-major in shared memory; `add` false: c is overwritten. */
static __device__ __forceinline__ void wgmma_128(float (&c)[64], uint64_t a, uint64_t b, int add)
{
    asm volatile("{\n"
                 ".reg .pred add;\n"
                 "setp.ne.b32 add, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" BS_WGMMA_0_31 "," BS_WGMMA_32_63
                 "}, %64, %65, add, 1, 1, 0, 0;\n"
                 "}"
                 : BS_WGMMA_32(c, 0), BS_WGMMA_32(c, 32)
                 : "l"(a), "l"(b), "r"(add));
}

/* c += a · b: a 64 x 16 in registers, b 16 x 128, MN-major. */
static __device__ __forceinline__ void wgmma_sum(float (&c)[64], const uint32_t (&a)[4], uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" BS_WGMMA_0_31 "," BS_WGMMA_32_63
                 "}, {%64,%65,%66,%67}, %68, 1, 1, 1, 1;\n"
                 : BS_WGMMA_32(c, 0), BS_WGMMA_32(c, 32)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

/* The same with 64 columns. */
static __device__ __forceinline__ void wgmma_sum(float (&c)[32], const uint32_t (&a)[4], uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" BS_WGMMA_0_31
                 "}, {%32,%33,%34,%35}, %36, 1, 1, 1, 1;\n"
                 : BS_WGMMA_32(c, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

/* What ordinary stores have left in shared memory is seen by matrix instructions and bulk copies begun behind the
 * next barrier. */
static __device__ __forceinline__ void fence_shared_async()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* A barrier of part of a CTA, of so many threads. */
static __device__ __forceinline__ void named_wait(int barrier, int threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

template <int N> static __device__ __forceinline__ void take_registers()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N> static __device__ __forceinline__ void give_registers()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

#endif
