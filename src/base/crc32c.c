/* crc32c.c: CRC-32C by the CPU's instruction in three interleaved streams, or by eight tables.
 *
 * The instruction takes 8 bytes a cycle but has a latency of three, so one stream gets a third of it. A block is cut
 * into three equal parts, each part has a register of its own, and at the block's end the three are joined: a register
 * is a polynomial over GF(2), and n bytes behind it multiply it by x^(8n) mod P. For the two fixed lengths of a part
 * that product is four table look-ups. Folding by carry-less multiplication would be faster still on new CPUs; with
 * 17 GB/s a core the disk is the bound, and this needs no second version for CPUs without it.
 *
 * Bits are reflected: bit 31 is the coefficient of x^0. Registers hold the complement of the checksum, as the RFC has it.
 */
#include "config.h"

#include "src/base/crc32c.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#if defined(__x86_64__)
#include <nmmintrin.h>
#define BS_CRC_INSTRUCTION 1
#define BS_CRC_TARGET      __attribute__((target("sse4.2")))
#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#define BS_CRC_INSTRUCTION 1
#define BS_CRC_TARGET
#endif

#define POLYNOMIAL 0x82f63b78u
/* Bytes of one of the three parts: long for the speed, short so that a page's few KiB still go three at a time. */
enum { LONG_PART = 8192, SHORT_PART = 256 };

static uint32_t byte_tables[8][256]; /* [k][v]: v, and k bytes of 0 behind it */
static uint32_t long_tables[4][256],
    short_tables[4][256];   /* [k][v]: byte k of a register, one part further */
static uint32_t powers[64]; /* [i]: x^(8·2^i), i.e. 2^i bytes of 0 */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static atomic_bool use_plain;
static bool has_instruction;

/* a·b mod P. */
static uint32_t multiply(uint32_t a, uint32_t b)
{
    uint32_t product = 0;
    for (int bit = 31; bit >= 0; bit--) {
        if (a >> bit & 1) product ^= b;
        b = b >> 1 ^ (b & 1 ? POLYNOMIAL : 0);
    }
    return product;
}

/* x^(8n) mod P. */
static uint32_t power_of_bytes(uint64_t n)
{
    uint32_t power = 0x80000000u; /* 1 */
    for (int i = 0; n != 0; i++, n >>= 1)
        if (n & 1) power = multiply(power, powers[i]);
    return power;
}

static void fill_part(uint32_t tables[4][256], uint64_t n)
{
    uint32_t power = power_of_bytes(n);
    for (int k = 0; k < 4; k++)
        for (uint32_t v = 0; v < 256; v++) tables[k][v] = multiply(power, v << 8 * k);
}

static void initialize(void)
{
    uint32_t power = 0x40000000u; /* x */
    for (int i = 0; i < 3; i++) power = multiply(power, power);
    for (int i = 0; i < 64; i++, power = multiply(power, power)) powers[i] = power;
    for (int k = 0; k < 8; k++)
        for (uint32_t v = 0; v < 256; v++) byte_tables[k][v] = multiply(power_of_bytes((uint64_t)k + 1), v);
    fill_part(long_tables, LONG_PART);
    fill_part(short_tables, SHORT_PART);
#if defined(__x86_64__)
    has_instruction = __builtin_cpu_supports("sse4.2");
#elif defined(BS_CRC_INSTRUCTION)
    has_instruction = true; /* what the compiler was told */
#endif
}

/* ---- tables ---- */

static uint32_t update_plain(uint32_t r, const uint8_t *p, size_t n)
{
    for (; n >= 8; n -= 8, p += 8) {
        r ^= (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
        r = byte_tables[7][r & 255] ^ byte_tables[6][r >> 8 & 255] ^ byte_tables[5][r >> 16 & 255] ^
            byte_tables[4][r >> 24] ^ byte_tables[3][p[4]] ^ byte_tables[2][p[5]] ^ byte_tables[1][p[6]] ^
            byte_tables[0][p[7]];
    }
    for (; n > 0; n--, p++) r = r >> 8 ^ byte_tables[0][(r ^ *p) & 255];
    return r;
}

/* ---- the instruction ---- */

#ifdef BS_CRC_INSTRUCTION
BS_CRC_TARGET static inline uint32_t add8(uint32_t r, const uint8_t *p)
{
    uint64_t word;
    memcpy(&word, p, 8);
#if defined(__x86_64__)
    return (uint32_t)_mm_crc32_u64(r, word);
#else
    return __crc32cd(r, word);
#endif
}

BS_CRC_TARGET static inline uint32_t add1(uint32_t r, uint8_t byte)
{
#if defined(__x86_64__)
    return _mm_crc32_u8(r, byte);
#else
    return __crc32cb(r, byte);
#endif
}

static inline uint32_t shift(const uint32_t tables[4][256], uint32_t r)
{
    return tables[0][r & 255] ^ tables[1][r >> 8 & 255] ^ tables[2][r >> 16 & 255] ^ tables[3][r >> 24];
}

/* As many blocks of three parts as there are; *p and *n move on. */
BS_CRC_TARGET static inline uint32_t add_blocks(uint32_t r, const uint8_t **p, size_t *n, size_t part,
                                                const uint32_t tables[4][256])
{
    for (; *n >= 3 * part; *n -= 3 * part, *p += 3 * part) {
        uint32_t second = 0, third = 0;
        for (const uint8_t *q = *p, *end = *p + part; q < end; q += 8) {
            r = add8(r, q);
            second = add8(second, q + part);
            third = add8(third, q + 2 * part);
        }
        r = shift(tables, r) ^ second;
        r = shift(tables, r) ^ third;
    }
    return r;
}

BS_CRC_TARGET static uint32_t update_fast(uint32_t r, const uint8_t *p, size_t n)
{
    r = add_blocks(r, &p, &n, LONG_PART, long_tables);
    r = add_blocks(r, &p, &n, SHORT_PART, short_tables);
    for (; n >= 8; n -= 8, p += 8) r = add8(r, p);
    for (; n > 0; n--, p++) r = add1(r, *p);
    return r;
}
#endif

static bool is_fast(void)
{
    pthread_once(&once, initialize);
    return has_instruction && !atomic_load_explicit(&use_plain, memory_order_relaxed);
}

uint32_t bs_crc32c(uint32_t crc, const void *data, size_t n)
{
    const bool fast = is_fast();
#ifdef BS_CRC_INSTRUCTION
    if (fast) return ~update_fast(~crc, data, n);
#endif
    (void)fast;
    return ~update_plain(~crc, data, n);
}

void bs_crc32c_set_plain(bool plain)
{
    atomic_store_explicit(&use_plain, plain, memory_order_relaxed);
}

const char *bs_crc32c_path(void)
{
#if defined(__x86_64__)
    return is_fast() ? "sse4.2" : "table";
#else
    return is_fast() ? "armv8" : "table";
#endif
}
