/* sha256.h: SHA-256 (FIPS 180-4), the digest of weights, headers, token ids and manifests.
 *
 * Our own, since it is one page and a crypto library would be one more thing that a cluster lacks. By the CPU's SHA
 * instructions where it has them, else in plain C. Nothing here is secret, so nothing is wiped.
 */
#ifndef BS_SHA256_H
#define BS_SHA256_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { BS_SHA256_BYTES = 32, BS_SHA256_HEX = 65 };

typedef struct bs_sha256_state {
    uint32_t h[8];
    uint64_t n_bytes;  /* so far */
    uint8_t block[64]; /* the n_bytes mod 64 that make no whole block yet */
} bs_sha256_state;

/* init, any number of updates, final. A state can be copied at any point; after final it must be initialized again.
 * data may be NULL when n is 0. */
void bs_sha256_init(bs_sha256_state *state);
void bs_sha256_update(bs_sha256_state *state, const void *data, size_t n);
void bs_sha256_final(bs_sha256_state *state, uint8_t out[BS_SHA256_BYTES]);
/* The three in one. */
void bs_sha256(const void *data, size_t n, uint8_t out[BS_SHA256_BYTES]);

/* 64 small hexadecimal digits and a 0. */
void bs_sha256_to_hex(const uint8_t digest[BS_SHA256_BYTES], char out[BS_SHA256_HEX]);
/* Exactly 64 digits, small ones only, so that a digest has one spelling. False: anything else; out is left alone. */
bool bs_sha256_from_hex(const char *hex, uint8_t out[BS_SHA256_BYTES]);

/* `--isa scalar`: plain C even where the CPU has the instructions. */
void bs_sha256_set_plain(bool plain);
/* What is used now: "sha-ni" or "plain". */
const char *bs_sha256_path(void);

#endif
