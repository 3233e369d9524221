/* noise.h: what a random weight and a random cached element are: Philox, integers and one rounded product, so that all
 * devices give the same bits.
 *
 * The four bytes of a word are summed: a bell curve of ±3.45 standard deviations out of 32 random bits. */
#ifndef BS_NOISE_H
#define BS_NOISE_H

#include "kernels/philox.h"

/* Standard deviation of the sum of four bytes: √(4 (256² − 1) / 12). */
#define BS_NOISE_SUM_STD 147.80054f

/* −510 … 510 */
BS_PHILOX_FN int bs_noise_sum(uint32_t word)
{
    return (int)((word & 255u) + (word >> 8 & 255u) + (word >> 16 & 255u) + (word >> 24)) - 510;
}

/* The four words of group `group` of four elements of a tensor. */
BS_PHILOX_FN void bs_noise_of_tensor(uint64_t seed, uint32_t tensor, uint64_t group, uint32_t words[4])
{
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    const uint32_t counter[4] = {(uint32_t)group, (uint32_t)(group >> 32), tensor, 0x57u};
    bs_philox(key, counter, words);
}

/* The same of channels 4·group … of K or V [128][D] of one page, layer and KV head of the model. */
BS_PHILOX_FN void bs_noise_of_page(uint64_t seed, uint32_t page, uint32_t layer, uint32_t kv_head,
                                   uint32_t is_v, uint32_t group, uint32_t words[4])
{
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    const uint32_t counter[4] = {group, page, layer, kv_head << 9 | is_v << 8 | 0x4bu};
    bs_philox(key, counter, words);
}

#endif
