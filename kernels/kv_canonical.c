/* kv_canonical.c: sizes of one page in the canonical order (docs/kv-format.md), the same for every device. */
#include "kernels/kernels.h"

bs_kv_page_bytes bs_kv_canonical_bytes(const bs_kv_format *format, int head_dim)
{
    const size_t d = (size_t)head_dim, pair = sizeof(bs_f16) + sizeof(int16_t);
    bs_kv_page_bytes bytes = {.f16 = 2 * BS_PAGE_TOKENS * d * sizeof(bs_f16)};
    if (format->k_bits == 16) return bytes;

    const size_t channels = (size_t)(format->group < head_dim ? format->group : head_dim);
    const size_t per_token = BS_PAGE_TOKENS * (d / channels) * pair;
    bytes.k = BS_PAGE_TOKENS * d * (size_t)format->k_bits / 8;
    bytes.v = BS_PAGE_TOKENS * d * (size_t)format->v_bits / 8;
    bytes.k_meta = format->k_per_channel ? (size_t)(BS_PAGE_TOKENS / format->group) * d * pair : per_token;
    if (format->k_norm) bytes.k_meta += BS_PAGE_TOKENS * sizeof(bs_f16);
    bytes.v_meta = per_token;
    return bytes;
}
