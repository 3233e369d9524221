/* crc32c.h: CRC-32C (Castagnoli, RFC 3720 appendix B.4), the checksum of a snapshot's pages.
 *
 * It finds damage, not intent: against that there is sha256.h. It was chosen because it is as fast as a page can be
 * read on any CPU of the last ten years.
 */
#ifndef BS_CRC32C_H
#define BS_CRC32C_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The checksum of all bytes so far: crc is 0 to begin with, else what the last call returned. data may be NULL when n
 * is 0. Thread safe. bs_crc32c(0, "123456789", 9) is 0xe3069283. */
uint32_t bs_crc32c(uint32_t crc, const void *data, size_t n);

/* `--isa scalar`: without the CPU's own instruction, true, or with it where there is one, false (so it begins). */
void bs_crc32c_set_plain(bool plain);
/* What bs_crc32c uses now: "sse4.2", "armv8" or "table". */
const char *bs_crc32c_path(void);

#endif
