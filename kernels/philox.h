/* philox.h: Philox4x32-10, a counter-based random generator: the same numbers from (key, counter) on every
 * rank and device, with no state to keep. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2,
 * 3", SC 2011. */
#ifndef BS_PHILOX_H
#define BS_PHILOX_H

#include <stdint.h>

#ifdef __CUDACC__
#define BS_PHILOX_FN static inline __host__ __device__
#else
#define BS_PHILOX_FN static inline
#endif

BS_PHILOX_FN void bs_philox(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4])
{
    uint32_t k0 = key[0], k1 = key[1], c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(b >> 32) ^ c1 ^ k0, n2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)b;
        c3 = (uint32_t)a;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* A sampler's number of a position and draw: within 0 … 1, neither of them. */
BS_PHILOX_FN double bs_philox_uniform(uint64_t seed, int32_t position, int32_t draw)
{
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    const uint32_t counter[4] = {(uint32_t)position, (uint32_t)draw, 0, 0};
    uint32_t words[4];
    bs_philox(key, counter, words);
    return (words[0] + 0.5) * 0x1p-32;
}

#endif
