/* sha256.c: SHA-256 as FIPS 180-4 has it, and the same by the SHA instructions of x86.
 *
 * The round constants are the first 32 bits of the fraction of the cube roots of the first 64 primes, the initial
 * values those of the square roots of the first 8. The instructions keep the eight words in two registers, (A, B, E, F)
 * and (C, D, G, H) from the highest lane down; two rounds turn one into the other.
 */
#include "config.h"

#include "src/base/sha256.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

static const uint32_t initial[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

static const uint32_t constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static atomic_bool use_plain;
static bool has_instructions;

static void look_at_cpu(void)
{
#if defined(__x86_64__)
    unsigned a, b, c, d;
    has_instructions = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 29 & 1) &&
                       __builtin_cpu_supports("sse4.1");
#endif
}

static bool is_fast(void)
{
    pthread_once(&once, look_at_cpu);
    return has_instructions && !atomic_load_explicit(&use_plain, memory_order_relaxed);
}

/* ---- plain ---- */

static inline uint32_t turn(uint32_t x, int n)
{
    return x >> n | x << (32 - n);
}

static void add_blocks_plain(uint32_t h[8], const uint8_t *p, size_t n_blocks)
{
    for (; n_blocks > 0; n_blocks--, p += 64) {
        uint32_t w[16], s[8]; /* w: the 16 newest words of the schedule */
        for (int i = 0; i < 16; i++)
            w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 | (uint32_t)p[4 * i + 2] << 8 |
                   (uint32_t)p[4 * i + 3];
        memcpy(s, h, sizeof s);
        for (int group = 0; group < 64; group += 16) {
            /* Eight rounds turn the names of the eight words once around: unrolled, nothing is moved. */
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) {
#define WORD(k) s[((k) + 16 - i) & 7]
                const uint32_t a = WORD(0), e = WORD(4), x = w[(i + 1) & 15], y = w[(i + 14) & 15];
                if (group > 0)
                    w[i] += (turn(x, 7) ^ turn(x, 18) ^ x >> 3) + w[(i + 9) & 15] +
                            (turn(y, 17) ^ turn(y, 19) ^ y >> 10);
                const uint32_t t1 = WORD(7) + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) +
                                    (((WORD(5) ^ WORD(6)) & e) ^ WORD(6)) + constants[group + i] + w[i];
                WORD(3) += t1;
                WORD(7) = t1 + (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) +
                          (((a | WORD(1)) & WORD(2)) | (a & WORD(1)));
#undef WORD
            }
        }
        for (int i = 0; i < 8; i++) h[i] += s[i];
    }
}

/* ---- SHA instructions ---- */

#if defined(__x86_64__)
__attribute__((target("sha,sse4.1,ssse3"))) static void add_blocks_ni(uint32_t h[8], const uint8_t *p,
                                                                      size_t n_blocks)
{
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i abef = _mm_set_epi32((int)h[0], (int)h[1], (int)h[4], (int)h[5]);
    __m128i cdgh = _mm_set_epi32((int)h[2], (int)h[3], (int)h[6], (int)h[7]);
    for (; n_blocks > 0; n_blocks--, p += 64) {
        const __m128i abef_before = abef, cdgh_before = cdgh;
        __m128i w[4]; /* the 16 newest words of the schedule */
        for (int i = 0; i < 4; i++)
            w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(const void *)p + i), swap);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            const __m128i now = w[i & 3];
            __m128i sum = _mm_add_epi32(now, _mm_loadu_si128((const __m128i *)(const void *)constants + i));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum); /* two rounds: the names change places */
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0e));
            if (i < 12) {
                const __m128i last = w[(i + 3) & 3];
                __m128i next = _mm_add_epi32(_mm_sha256msg1_epu32(now, w[(i + 1) & 3]),
                                             _mm_alignr_epi8(last, w[(i + 2) & 3], 4));
                w[i & 3] = _mm_sha256msg2_epu32(next, last);
            }
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    uint32_t low[4], high[4];
    _mm_storeu_si128((__m128i *)(void *)low, abef);
    _mm_storeu_si128((__m128i *)(void *)high, cdgh);
    for (int i = 0; i < 2; i++) {
        h[i] = low[3 - i], h[4 + i] = low[1 - i];
        h[2 + i] = high[3 - i], h[6 + i] = high[1 - i];
    }
}
#endif

static void add_blocks(uint32_t h[8], const uint8_t *p, size_t n_blocks)
{
    const bool fast = is_fast();
#if defined(__x86_64__)
    if (fast) {
        add_blocks_ni(h, p, n_blocks);
        return;
    }
#endif
    (void)fast;
    add_blocks_plain(h, p, n_blocks);
}

/* ---- the interface ---- */

void bs_sha256_init(bs_sha256_state *state)
{
    memcpy(state->h, initial, sizeof initial);
    state->n_bytes = 0;
}

void bs_sha256_update(bs_sha256_state *state, const void *data, size_t n)
{
    const uint8_t *p = data;
    const size_t held = state->n_bytes % 64;
    if (n == 0) return;
    state->n_bytes += n;
    if (held > 0) {
        const size_t room = 64 - held;
        memcpy(state->block + held, p, n < room ? n : room);
        if (n < room) return;
        add_blocks(state->h, state->block, 1);
        p += room;
        n -= room;
    }
    add_blocks(state->h, p, n / 64);
    if (n % 64 > 0) memcpy(state->block, p + n / 64 * 64, n % 64);
}

void bs_sha256_final(bs_sha256_state *state, uint8_t out[BS_SHA256_BYTES])
{
    const uint64_t n_bits = state->n_bytes * 8;
    const size_t held = state->n_bytes % 64, n_zeros = (held < 56 ? 55 : 119) - held;
    uint8_t end[72] = {0x80};
    for (int i = 0; i < 8; i++) end[1 + n_zeros + (size_t)i] = (uint8_t)(n_bits >> (56 - 8 * i));
    bs_sha256_update(state, end, n_zeros + 9);
    for (int i = 0; i < 32; i++) out[i] = (uint8_t)(state->h[i / 4] >> (24 - 8 * (i % 4)));
}

void bs_sha256(const void *data, size_t n, uint8_t out[BS_SHA256_BYTES])
{
    bs_sha256_state state;
    bs_sha256_init(&state);
    bs_sha256_update(&state, data, n);
    bs_sha256_final(&state, out);
}

void bs_sha256_to_hex(const uint8_t digest[BS_SHA256_BYTES], char out[BS_SHA256_HEX])
{
    for (int i = 0; i < BS_SHA256_BYTES; i++) {
        out[2 * i] = "0123456789abcdef"[digest[i] >> 4];
        out[2 * i + 1] = "0123456789abcdef"[digest[i] & 15];
    }
    out[2 * BS_SHA256_BYTES] = 0;
}

static int value_of(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool bs_sha256_from_hex(const char *hex, uint8_t out[BS_SHA256_BYTES])
{
    uint8_t digest[BS_SHA256_BYTES];
    for (int i = 0; i < 2 * BS_SHA256_BYTES; i++) {
        int value = value_of(hex[i]); /* the end of a short text is no digit either */
        if (value < 0) return false;
        digest[i / 2] = (uint8_t)(i % 2 ? digest[i / 2] | value : value << 4);
    }
    if (hex[2 * BS_SHA256_BYTES] != 0) return false;
    memcpy(out, digest, sizeof digest);
    return true;
}

void bs_sha256_set_plain(bool plain)
{
    atomic_store_explicit(&use_plain, plain, memory_order_relaxed);
}

const char *bs_sha256_path(void)
{
    return is_fast() ? "sha-ni" : "plain";
}
