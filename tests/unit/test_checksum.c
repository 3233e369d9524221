/* test_checksum.c: CRC-32C and SHA-256: published vectors, any split, every path, combination.
 *
 * `test_checksum speed` prints GB/s of each path instead (docs/perf/LOG.md).
 */
#include "config.h"

#include "src/base/crc32c.h"
#include "src/base/progress.h"
#include "src/base/sha256.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static uint64_t seed = 20261129;

static uint32_t draw(void) /* xorshift64* */
{
    seed ^= seed >> 12, seed ^= seed << 25, seed ^= seed >> 27;
    return (uint32_t)(seed * 2685821657736338717ull >> 32);
}

static uint8_t *draw_bytes(size_t n)
{
    uint8_t *bytes = malloc(n);
    assert_non_null(bytes);
    for (size_t i = 0; i < n; i++) bytes[i] = (uint8_t)draw();
    return bytes;
}

/* The definition, bit by bit. */
static uint32_t crc_by_bits(const uint8_t *p, size_t n)
{
    uint32_t r = ~0u;
    for (size_t i = 0; i < n; i++) {
        r ^= p[i];
        for (int bit = 0; bit < 8; bit++) r = r >> 1 ^ (r & 1 ? 0x82f63b78u : 0);
    }
    return ~r;
}

/* RFC 3720 B.4, whose bytes stand in transmission order. */
static void check_crc_vectors(void)
{
    static const uint8_t read_command[48] = {0x01, 0xc0, 0, 0, 0, 0, 0, 0, 0,    0, 0, 0,    0, 0, 0, 0,
                                             0x14, 0,    0, 0, 0, 0, 4, 0, 0,    0, 0, 0x14, 0, 0, 0, 0x18,
                                             0x28, 0,    0, 0, 0, 0, 0, 0, 0x02, 0, 0, 0,    0, 0, 0, 0};
    uint8_t bytes[32];
    assert_int_equal(bs_crc32c(0, NULL, 0), 0);
    assert_int_equal(bs_crc32c(0, "123456789", 9), 0xe3069283);
    assert_int_equal(bs_crc32c(0, memset(bytes, 0, 32), 32), 0x8a9136aa);
    assert_int_equal(bs_crc32c(0, memset(bytes, 0xff, 32), 32), 0x62a8ab43);
    for (int i = 0; i < 32; i++) bytes[i] = (uint8_t)i;
    assert_int_equal(bs_crc32c(0, bytes, 32), 0x46dd794e);
    for (int i = 0; i < 32; i++) bytes[i] = (uint8_t)(31 - i);
    assert_int_equal(bs_crc32c(0, bytes, 32), 0x113fdb5c);
    assert_int_equal(bs_crc32c(0, read_command, 48), 0xd9963a56);
}

/* Lengths around the parts' ends, at odd addresses and in pieces. */
static void check_crc_lengths(void)
{
    static const size_t around[] = {8,    256,   512,   768,         1024,
                                    8192, 16384, 24576, 24576 + 768, 3 * 24576 + 2 * 768 + 7};
    uint8_t *bytes = draw_bytes(100000);
    for (size_t i = 0; i < 30 * 7; i++) {
        size_t n = i < 30 * 6 ? around[i % 10] + i / 10 - 9 + (i % 10 == 0 ? 9 : 0) : draw() % 90000;
        const uint8_t *p = bytes + draw() % 64;
        const uint32_t whole = crc_by_bits(p, n);
        assert_int_equal(bs_crc32c(0, p, n), whole);
        uint32_t running = 0;
        for (size_t at = 0; at < n || at == 0;) {
            size_t piece = n - at < 2 ? n - at : draw() % (n - at + 1);
            running = bs_crc32c(running, p + at, piece);
            at += piece;
            if (n == 0) break;
        }
        assert_int_equal(running, whole);
    }
    free(bytes);
}

static void test_crc(void **state)
{
    (void)state;
    bs_crc32c_set_plain(true);
    assert_string_equal(bs_crc32c_path(), "table");
    check_crc_vectors();
    check_crc_lengths();
    bs_crc32c_set_plain(false);
    print_message("with %s\n", bs_crc32c_path());
    check_crc_vectors();
    check_crc_lengths();
}

/* Any single flipped bit, and a 16-bit word from 0 to 0xffff (which fletcher32 misses), change it. */
static void test_crc_finds(void **state)
{
    (void)state;
    uint8_t page[4096] = {0};
    const uint32_t clean = bs_crc32c(0, page, sizeof page);
    for (size_t bit = 0; bit < 8 * sizeof page; bit++) {
        page[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_int_not_equal(bs_crc32c(0, page, sizeof page), clean);
        page[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    for (size_t i = 0; i < sizeof page; i += 2) {
        page[i] = page[i + 1] = 0xff;
        assert_int_not_equal(bs_crc32c(0, page, sizeof page), clean);
        page[i] = page[i + 1] = 0;
    }
}

static void expect_sha(const void *data, size_t n, const char *hex)
{
    uint8_t digest[BS_SHA256_BYTES];
    char text[BS_SHA256_HEX];
    bs_sha256(data, n, digest);
    bs_sha256_to_hex(digest, text);
    assert_string_equal(text, hex);
}

/* FIPS 180-2 appendix B and NIST's SHA256ShortMsg, and lengths where the padding takes one block or two. */
static void check_sha_vectors(void)
{
    expect_sha(NULL, 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    expect_sha("abc", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    expect_sha("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56,
               "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    expect_sha("\xd3", 1, "28969cdfa74a12c82f3bad960b0b000aca2ac329deea5c2328ebc6f2ba9802c1");
    expect_sha("\x11\xaf", 2, "5ca7133fa735326081558ac312c620eeca9970d1e70a4b95533d956f072d1f98");
    uint8_t *a = malloc(1000000);
    assert_non_null(a);
    memset(a, 'a', 1000000);
    expect_sha(a, 1000000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    expect_sha(a, 55, "9f4390f8d30c2dd92ec9f095b65e2b9ae9b0a925a5258e241c9f1e910f734318");
    expect_sha(a, 56, "b35439a4ac6f0948b6d6f9e3c6af0f5f590ce20f1bde7090ef7970686ec6738a");
    expect_sha(a, 63, "7d3e74a05d7db15bce4ad9ec0658ea98e3f06eeecf16b4c6fff2da457ddc2f34");
    expect_sha(a, 64, "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb");
    expect_sha(a, 119, "31eba51c313a5c08226adf18d4a359cfdfd8d2e816b13f4af952f7ea6584dcfb");
    expect_sha(a, 120, "2f3d335432c70b580af0e8e1b3674a7c020d683aa5f73aaaedfdc55af904c21c");
    free(a);
}

static void test_sha(void **state)
{
    (void)state;
    bs_sha256_set_plain(true);
    assert_string_equal(bs_sha256_path(), "plain");
    check_sha_vectors();
    bs_sha256_set_plain(false);
    print_message("with %s\n", bs_sha256_path());
    check_sha_vectors();
}

/* Both paths agree on any length, in any pieces. */
static void test_sha_pieces(void **state)
{
    (void)state;
    uint8_t *bytes = draw_bytes(8192);
    for (int i = 0; i < 400; i++) {
        size_t n = i < 200 ? (size_t)i : draw() % 8000;
        const uint8_t *p = bytes + draw() % 64;
        uint8_t whole[BS_SHA256_BYTES], pieces[BS_SHA256_BYTES];
        bs_sha256_set_plain(true);
        bs_sha256(p, n, whole);
        bs_sha256_set_plain(false);
        bs_sha256_state s;
        bs_sha256_init(&s);
        for (size_t at = 0, piece; at < n; at += piece) {
            piece = 1 + draw() % (n - at < 150 ? n - at : 150);
            bs_sha256_update(&s, p + at, piece);
            bs_sha256_update(&s, NULL, 0);
        }
        bs_sha256_final(&s, pieces);
        assert_memory_equal(whole, pieces, sizeof whole);
    }
    free(bytes);
}

static void test_hex(void **state)
{
    (void)state;
    uint8_t digest[BS_SHA256_BYTES], back[BS_SHA256_BYTES];
    char text[BS_SHA256_HEX];
    for (int i = 0; i < BS_SHA256_BYTES; i++) digest[i] = (uint8_t)(i * 37);
    bs_sha256_to_hex(digest, text);
    assert_true(bs_sha256_from_hex(text, back));
    assert_memory_equal(digest, back, sizeof digest);
    memset(back, 0x5a, sizeof back);
    for (int i = 0; i < 64; i++) { /* too short, not a digit, a capital */
        char bad[BS_SHA256_HEX];
        strcpy(bad, text);
        bad[i] = "\0gA /:`@"[i % 8];
        assert_false(bs_sha256_from_hex(bad, back));
    }
    char longer[BS_SHA256_HEX + 1];
    strcat(strcpy(longer, text), "0");
    assert_false(bs_sha256_from_hex(longer, back));
    for (int i = 0; i < BS_SHA256_BYTES; i++) assert_int_equal(back[i], 0x5a);
}

/* ---- speed ---- */

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void time_path(const char *what, const char *path, const uint8_t *bytes, size_t n, size_t piece)
{
    enum { ROUNDS = 9 };
    double rates[ROUNDS];
    uint8_t digest[BS_SHA256_BYTES];
    volatile uint32_t sink = 0;
    for (int round = 0; round < ROUNDS; round++) {
        const double start = bs_now_s();
        for (size_t at = 0; at + piece <= n; at += piece) {
            if (what[0] == 'c') sink ^= bs_crc32c(0, bytes + at, piece);
            else bs_sha256(bytes + at, piece, digest);
        }
        rates[round] = (double)(n / piece * piece) / (bs_now_s() - start) / 1e9;
    }
    qsort(rates, ROUNDS, sizeof rates[0], by_value);
    printf("%-8s %-8s pieces of %8zu B: %6.2f GB/s (%.2f to %.2f)\n", what, path, piece, rates[ROUNDS / 2],
           rates[0], rates[ROUNDS - 1]);
}

static int print_speed(void)
{
    enum { N = 64 << 20 };
    uint8_t *bytes = malloc(N);
    if (!bytes) return 1;
    for (size_t i = 0; i < N; i++) bytes[i] = (uint8_t)(i * 167 >> 3);
    for (int plain = 0; plain < 2; plain++) {
        bs_crc32c_set_plain(plain);
        bs_sha256_set_plain(plain);
        for (size_t piece = 4096; piece <= 1 << 20; piece *= 16) {
            time_path("crc32c", bs_crc32c_path(), bytes, N, piece);
            if (piece > 4096) time_path("sha256", bs_sha256_path(), bytes, N / 4, piece);
        }
        time_path("crc32c", bs_crc32c_path(), bytes, 256 << 10, 256 << 10); /* from the cache */
    }
    free(bytes);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "speed") == 0) return print_speed();
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_crc), cmocka_unit_test(test_crc_finds),
                                       cmocka_unit_test(test_sha), cmocka_unit_test(test_sha_pieces),
                                       cmocka_unit_test(test_hex)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
