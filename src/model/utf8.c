/* utf8.c: Table 3-7 of the Unicode standard: only the second byte's range depends on the first. */
#include "src/model/utf8.h"

#include <string.h>

bs_utf8_kind bs_utf8_next(const char *text, size_t bytes, size_t *length, uint32_t *code_point)
{
    const unsigned char *u = (const unsigned char *)text;
    unsigned first = u[0], low = 0x80, high = 0xbf;
    size_t wanted = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    *length = 1;
    if ((first >= 0x80 && first < 0xc2) || first > 0xf4) return BS_UTF8_BROKEN;
    if (first == 0xe0) low = 0xa0;  /* shorter forms exist */
    if (first == 0xed) high = 0x9f; /* surrogates */
    if (first == 0xf0) low = 0x90;
    if (first == 0xf4) high = 0x8f; /* beyond U+10FFFF */
    uint32_t value = wanted == 1 ? first : first & (0x7fu >> wanted);
    for (; *length < wanted; ++*length) {
        if (*length == bytes) return BS_UTF8_BEGINNING;
        if (u[*length] < low || u[*length] > high) return BS_UTF8_BROKEN;
        value = value << 6 | (u[*length] & 0x3fu);
        low = 0x80;
        high = 0xbf;
    }
    if (code_point) *code_point = value;
    return BS_UTF8_CHARACTER;
}

size_t bs_utf8_valid_bytes(const char *text, size_t bytes)
{
    size_t at = 0, length;
    while (at < bytes) {
        uint64_t eight;
        if (bytes - at >= sizeof eight) {
            memcpy(&eight, text + at, sizeof eight);
            if ((eight & 0x8080808080808080u) == 0) {
                at += sizeof eight;
                continue;
            }
        }
        if (bs_utf8_next(text + at, bytes - at, &length, NULL) != BS_UTF8_CHARACTER) break;
        at += length;
    }
    return at;
}
