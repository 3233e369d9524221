/* pack.cu: between slots and canonical bytes, bit for bit, for snapshots, tests and tools.
 *
 * Math     none: codes and parameters change places.
 * Layout   slots: kv_layout.h; canonical: docs/kv-format.md, device staging, 4-byte aligned.
 * Mapping  grid (pieces, page refs), 256 threads; a thread makes whole 32-bit words of what it writes and
 * gathers their codes: canonical words when it packs, slot words when it unpacks, so no two threads write a
 * byte. Refs are host memory: up to 60 go by value as a kernel's parameters, more in further launches.
 * Cost     reads and writes each byte once, but a code at a time: about 3 instructions a code, so the issue
 * rate bounds it, some 300 GB/s of canonical bytes at int4; the disk behind it is slower.
 * Numerics exact.
 * Limits   any number of refs; canonical pointers not aligned to 4 are refused.
 * Measured docs/perf/LOG.md. */
#include "kernels/cuda/cuda_private.h"
#include "kernels/cuda/kv_layout.h"

#include <cstring>

enum { THREADS = 256, PIECES = 4, MAX_REFS = 60, PAGE = BS_PAGE_TOKENS };

typedef struct ref_batch {
    bs_kv_page_ref page[MAX_REFS];
} ref_batch;

/* This thread's share of n words: for (i = my_word(); i < n; i += WORDS_A_TURN). */
enum { WORDS_A_TURN = THREADS * PIECES };

static __device__ int my_word()
{
    return (int)(blockIdx.x * THREADS + threadIdx.x);
}

/* ---- codes ---- */

/* The inverse of kv_layout.h's code functions: whose code is field `field` of a byte of the codes. */
static __device__ void place_of(int dim, int bits, bool is_v, int byte, int field, int *token, int *channel)
{
    const int fields = 8 / bits, in_word = byte % 4, word = byte / 4 % 4, lane = byte / 16 % 32;
    const int block = byte / 512;
    if (is_v) {
        *channel = (block / 4 * fields + field) * 16 + word % 2 * 8 + lane / 4;
        *token = block % 2 * 64 + word / 2 * 32 + in_word * 8 + lane % 4 * 2 + block / 2 % 2;
    } else {
        *token = (block / (dim / 32) * fields + field) * 16 + word % 2 * 8 + lane / 4;
        *channel = block % (dim / 32) * 32 + word / 2 * 16 + lane % 4 * 4 + in_word;
    }
}

static __device__ uint32_t slot_code(const uint8_t *codes, int dim, int bits, bool is_v, int token,
                                     int channel)
{
    int shift;
    uint32_t at = is_v ? bs_cuda_kv_v_code(bits, token, channel, &shift)
                       : bs_cuda_kv_k_code(dim, bits, token, channel, &shift);
    return codes[at] >> shift & ((1u << bits) - 1);
}

static __device__ void pack_codes(const uint8_t *codes, uint32_t *canonical, int dim, int bits, bool is_v)
{
    const int n_codes = 32 / bits, n_words = PAGE * dim / n_codes;
    for (int i = my_word(); i < n_words; i += WORDS_A_TURN) {
        const int token = i * n_codes / dim, channel = i * n_codes % dim;
        uint32_t word = 0;
        for (int j = 0; j < n_codes; j++)
            word |= slot_code(codes, dim, bits, is_v, token, channel + j) << j * bits;
        canonical[i] = word;
    }
}

static __device__ void unpack_codes(uint32_t *codes, const uint8_t *canonical, int dim, int bits, bool is_v)
{
    const int fields = 8 / bits, n_words = PAGE * dim * bits / 32;
    for (int i = my_word(); i < n_words; i += WORDS_A_TURN) {
        uint32_t word = 0;
        for (int j = 0; j < 4 * fields; j++) {
            int token, channel;
            place_of(dim, bits, is_v, 4 * i + j / fields, j % fields, &token, &channel);
            const int bit = (token * dim + channel) * bits;
            word |= (canonical[bit / 8] >> bit % 8 & ((1u << bits) - 1)) << j * bits;
        }
        codes[i] = word;
    }
}

/* ---- parameters ---- */

/* z is two bytes, 4 apart, where kv_layout.h says "high byte", else an int16. */
typedef struct pair_place {
    uint32_t s, z;
    bool z_split;
} pair_place;

/* Place in its half of the canonical pair i. K per channel: [group][channel]; else [token][group]. */
static __device__ pair_place pair_at(const bs_cuda_kv_layout &l, bool is_v, int i)
{
    pair_place p;
    if (!is_v && l.k_per_channel) {
        const int channel = i % l.head_dim;
        const uint32_t group = (uint32_t)(i / l.head_dim * 2 * l.head_dim);
        p.s = l.k_s + group + bs_cuda_kv_k_channel_s(channel);
        p.z = l.k_z + group + bs_cuda_kv_k_channel_z(channel);
        p.z_split = true;
        return p;
    }
    const int n_groups = l.head_dim / l.v_group, token = i / n_groups;
    const uint32_t group = (uint32_t)(i % n_groups * 256);
    p.s = (is_v ? l.v_s : l.k_s) + group + bs_cuda_kv_token_byte(token);
    p.z = is_v ? l.v_z + group + bs_cuda_kv_v_z(token) : l.k_z + group + bs_cuda_kv_token_byte(token);
    p.z_split = is_v;
    return p;
}

static __device__ int n_pairs(const bs_cuda_kv_layout &l, bool is_v)
{
    if (!is_v && l.k_per_channel) return PAGE / l.k_group * l.head_dim;
    return PAGE * (l.head_dim / l.v_group);
}

static __device__ void pack_meta(const bs_cuda_kv_layout &l, const uint8_t *half, uint32_t *canonical,
                                 bool is_v)
{
    const int n = n_pairs(l, is_v);
    for (int i = my_word(); i < n; i += WORDS_A_TURN) {
        const pair_place p = pair_at(l, is_v, i);
        int z = p.z_split ? 256 * (int8_t)half[p.z] + (int8_t)half[p.z + 4] : *(const int16_t *)(half + p.z);
        canonical[i] = *(const uint16_t *)(half + p.s) | (uint32_t)z << 16;
    }
}

static __device__ void unpack_meta(const bs_cuda_kv_layout &l, uint8_t *half, const uint32_t *canonical,
                                   bool is_v)
{
    const int n = n_pairs(l, is_v);
    for (int i = my_word(); i < n; i += WORDS_A_TURN) {
        const pair_place p = pair_at(l, is_v, i);
        const int16_t z = (int16_t)(canonical[i] >> 16);
        *(uint16_t *)(half + p.s) = (uint16_t)canonical[i];
        if (p.z_split) {
            half[p.z] = (uint8_t)bs_cuda_kv_z_high(z);
            half[p.z + 4] = (uint8_t)bs_cuda_kv_z_low(z);
        } else {
            *(int16_t *)(half + p.z) = z;
        }
    }
}

/* n: token order in the slot, [token] behind the pairs in the canonical bytes. */
template <bool PACK>
static __device__ void move_norms(const bs_cuda_kv_layout &l, uint8_t *half, uint8_t *canonical)
{
    uint16_t *there = (uint16_t *)(canonical + 4 * n_pairs(l, false));
    for (int i = my_word(); i < PAGE; i += WORDS_A_TURN) {
        uint16_t *here = (uint16_t *)(half + l.k_n + bs_cuda_kv_token_byte(i));
        if (PACK) there[i] = *here;
        else *here = there[i];
    }
}

/* ---- kernels ---- */

template <bool PACK>
static __global__ void __launch_bounds__(THREADS)
    quantized_kernel(bs_cuda_kv_layout l, uint8_t *pool, ref_batch refs)
{
    const bs_kv_page_ref &page = refs.page[blockIdx.y];
    uint8_t *k_half = pool + bs_cuda_kv_record_at(&l, page.slot, page.layer, page.kv_head);
    for (int is_v = 0; is_v < 2; is_v++) {
        uint8_t *half = is_v ? k_half + l.k_half : k_half;
        void *codes = is_v ? page.v : page.k, *meta = is_v ? page.v_meta : page.k_meta;
        const int bits = is_v ? l.v_bits : l.k_bits;
        if (codes && PACK) pack_codes(half, (uint32_t *)codes, l.head_dim, bits, is_v);
        if (codes && !PACK) unpack_codes((uint32_t *)half, (const uint8_t *)codes, l.head_dim, bits, is_v);
        if (meta && PACK) pack_meta(l, half, (uint32_t *)meta, is_v);
        if (meta && !PACK) unpack_meta(l, half, (const uint32_t *)meta, is_v);
        if (meta && !is_v && l.k_norm) move_norms<PACK>(l, half, (uint8_t *)meta);
    }
}

template <bool PACK>
static __global__ void __launch_bounds__(THREADS)
    f16_kernel(bs_cuda_kv_layout l, uint8_t *pool, ref_batch refs)
{
    const bs_kv_page_ref &page = refs.page[blockIdx.y];
    const int pairs_a_token = l.head_dim / 2;
    for (int is_v = 0; is_v < 2; is_v++) {
        uint32_t *canonical = (uint32_t *)(is_v ? page.v : page.k);
        if (!canonical) continue;
        uint8_t *part = pool + bs_cuda_kv_f16_at(&l, page.slot, page.layer, page.kv_head, is_v);
        for (int i = my_word(); i < PAGE * pairs_a_token; i += WORDS_A_TURN) {
            uint32_t at = bs_cuda_kv_f16_byte(l.head_dim, is_v, i / pairs_a_token, i % pairs_a_token * 2);
            if (PACK) canonical[i] = *(const uint32_t *)(part + at);
            else *(uint32_t *)(part + at) = canonical[i];
        }
    }
}

static bool is_aligned(const bs_kv_page_ref *page)
{
    return (((uintptr_t)page->k | (uintptr_t)page->k_meta | (uintptr_t)page->v | (uintptr_t)page->v_meta) &
            3) == 0;
}

template <bool PACK> static bs_status move_pages(bs_stream *stream, const bs_pack_args *args)
{
    const bs_cuda_kv_layout layout = bs_cuda_kv_layout_of(args->pools->shape);
    for (int i = 0; i < args->n; i++)
        if (!is_aligned(&args->pages[i]))
            return bs_fail(BS_STATUS_RANGE, "pack: canonical bytes of page %d are not 4-byte aligned", i);
    for (int first = 0; first < args->n; first += MAX_REFS) {
        ref_batch refs;
        const int n = args->n - first < MAX_REFS ? args->n - first : MAX_REFS;
        memcpy(refs.page, args->pages + first, (size_t)n * sizeof *refs.page);
        if (args->quantized)
            quantized_kernel<PACK><<<dim3(PIECES, (unsigned)n), THREADS, 0, bs_cuda_stream(stream)>>>(
                layout, (uint8_t *)args->pools->quant_pool, refs);
        else
            f16_kernel<PACK><<<dim3(PIECES, (unsigned)n), THREADS, 0, bs_cuda_stream(stream)>>>(
                layout, (uint8_t *)args->pools->f16_pool, refs);
    }
    return bs_cuda_launched("pack");
}

bs_status bs_cuda_pack(bs_stream *stream, const bs_pack_args *args)
{
    return move_pages<true>(stream, args);
}

bs_status bs_cuda_unpack(bs_stream *stream, const bs_pack_args *args)
{
    return move_pages<false>(stream, args);
}
