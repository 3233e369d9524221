/* format.h: KV format names, K[vV][:kc|:kt][:gN][:had|:nohad][:norm|:nonorm][:sN][:rN], to and from bs_kv_format.
 *
 * Names and defaults: docs/kv-format.md and DESIGN §1. f16 takes no field but sN and rN, which mean nothing to it and
 * are refused.
 */
#ifndef BS_CACHE_FORMAT_H
#define BS_CACHE_FORMAT_H

#include "kernels/kernels.h"

/* BS_STATUS_USAGE with one line that names the option's text, the field and what would be right. */
bs_status bs_kv_format_parse(const char *text, bs_kv_format *out);
/* Canonical name with every field ("int4:kc:g128:nohad:s1:r2", "f16"); at most BS_KV_FORMAT_NAME bytes with the 0. */
enum { BS_KV_FORMAT_NAME = 64 };
void bs_kv_format_name(const bs_kv_format *format, char name[BS_KV_FORMAT_NAME]);
/* Stored bits per element of a quantized page (16 for f16), parameters and norms counted, at this head size. */
double bs_kv_format_bits(const bs_kv_format *format, int head_dim);

#endif
