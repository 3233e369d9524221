/* format.c: KV format names. A name is a K/V pair and fields in any order; what is left out comes from the
 * pair's own defaults, so that "int2" on a command line is the int2 that was measured, and the canonical name
 * spells out all that differs from nothing: it parses back to the same format whatever the defaults are by
 * then, but for :norm (below).
 */
#include "src/cache/format.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TEXT = 256, MAX_PAGES = 64 };

static const char expected_pair[] = "f16, int8, int4, int2, a pair as int4vint2, or k4v2 for short";
static const char expected_field[] =
    "kc or kt, g32, g64 or g128, had or nohad, norm or nonorm, s0 … s64, r0 … r64";

static bs_kv_format pair_defaults(int k_bits, int v_bits)
{
    bs_kv_format f = {.k_bits = k_bits, .v_bits = v_bits, .v_encoder = BS_V_ENCODER_BEST};
    if (k_bits == 16) return f;
    bool plain = k_bits == v_bits && k_bits != 2; /* int8 and int4 need neither rotation nor norm */
    f.k_per_channel = true;
    f.group = k_bits == 2 && v_bits == 2 ? 32 : 128;
    f.hadamard = f.k_norm = !plain;
    f.n_sink = 1;
    f.n_recent = 2;
    return f;
}

/* Bits of "f16", "int8", "int4" or "int2" at *text, which is moved behind it; 0 when none of them stands
 * there. */
static int take_bits(const char **text)
{
    static const struct {
        const char *name;
        int bits;
    } names[] = {{"f16", 16}, {"int8", 8}, {"int4", 4}, {"int2", 2}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        size_t n = strlen(names[i].name);
        if (strncmp(*text, names[i].name, n) != 0) continue;
        *text += n;
        return names[i].bits;
    }
    return 0;
}

static bool is_short_digit(char c)
{
    return c == '8' || c == '4' || c == '2';
}

static bool parse_pair(const char *pair, int *k_bits, int *v_bits)
{
    if (pair[0] == 'k' && is_short_digit(pair[1]) && pair[2] == 'v' && is_short_digit(pair[3]) && !pair[4]) {
        *k_bits = pair[1] - '0';
        *v_bits = pair[3] - '0';
        return true;
    }
    *k_bits = take_bits(&pair);
    if (*k_bits == 0) return false;
    *v_bits = *k_bits;
    if (*pair == 'v') {
        pair++;
        *v_bits = take_bits(&pair);
    }
    return *v_bits != 0 && *pair == 0;
}

/* Digits only, at most three: no sign, no space, no overflow. −1 when it is not that. */
static int parse_count(const char *text)
{
    size_t n = strspn(text, "0123456789");
    return n == 0 || n > 3 || text[n] ? -1 : atoi(text);
}

/* Each field once. */
enum { SEEN_ORDER = 1, SEEN_GROUP = 2, SEEN_HADAMARD = 4, SEEN_NORM = 8, SEEN_SINK = 16, SEEN_RECENT = 32 };

/* Which field it is, 0 when it is none; sets it in *f. */
static int parse_field(const char *field, bs_kv_format *f)
{
    int count = field[0] ? parse_count(field + 1) : -1;
    if (!strcmp(field, "kc") || !strcmp(field, "kt")) {
        f->k_per_channel = field[1] == 'c';
        return SEEN_ORDER;
    }
    if (!strcmp(field, "had") || !strcmp(field, "nohad")) {
        f->hadamard = field[0] == 'h';
        return SEEN_HADAMARD;
    }
    if (!strcmp(field, "norm") || !strcmp(field, "nonorm")) {
        f->k_norm = field[2] == 'r';
        return SEEN_NORM;
    }
    if (field[0] == 'g' && (count == 32 || count == 64 || count == 128)) {
        f->group = count;
        return SEEN_GROUP;
    }
    if (field[0] == 's' && count >= 0 && count <= MAX_PAGES) {
        f->n_sink = count;
        return SEEN_SINK;
    }
    if (field[0] == 'r' && count >= 0 && count <= MAX_PAGES) {
        f->n_recent = count;
        return SEEN_RECENT;
    }
    return 0;
}

static bs_status parse_fields(const char *text, char *fields, bs_kv_format *f)
{
    int seen = 0;
    for (char *field = fields, *next; field; field = next) {
        next = strchr(field, ':');
        if (next) *next++ = 0;
        if (f->k_bits == 16)
            return bs_fail(BS_STATUS_USAGE, "KV format \"%s\": field \"%s\": f16 takes no field", text,
                           field);
        int which = parse_field(field, f);
        if (which == 0)
            return bs_fail(BS_STATUS_USAGE, "KV format \"%s\": field \"%s\": must be %s", text, field,
                           expected_field);
        if (seen & which)
            return bs_fail(BS_STATUS_USAGE,
                           "KV format \"%s\": field \"%s\": given before, must be given once", text, field);
        seen |= which;
    }
    return BS_STATUS_OK;
}

bs_status bs_kv_format_parse(const char *text, bs_kv_format *out)
{
    char copy[MAX_TEXT];
    if (strlen(text) >= sizeof copy)
        return bs_fail(BS_STATUS_USAGE, "KV format \"%.32s…\": longer than %d bytes", text, MAX_TEXT - 1);
    snprintf(copy, sizeof copy, "%s", text);
    char *fields = strchr(copy, ':');
    if (fields) *fields++ = 0;
    int k_bits, v_bits;
    if (!parse_pair(copy, &k_bits, &v_bits))
        return bs_fail(BS_STATUS_USAGE, "KV format \"%s\": \"%s\": must be %s", text, copy, expected_pair);
    if ((k_bits == 16) != (v_bits == 16))
        return bs_fail(BS_STATUS_USAGE, "KV format \"%s\": \"%s\": f16 must be given for both K and V", text,
                       copy);
    bs_kv_format format = pair_defaults(k_bits, v_bits);
    if (fields) BS_TRY(parse_fields(text, fields, &format));
    *out = format;
    return BS_STATUS_OK;
}

void bs_kv_format_name(const bs_kv_format *f, char name[BS_KV_FORMAT_NAME])
{
    if (f->k_bits == 16) {
        snprintf(name, BS_KV_FORMAT_NAME, "f16");
        return;
    }
    char v[8] = "";
    if (f->v_bits != f->k_bits) snprintf(v, sizeof v, "vint%d", f->v_bits & 15);
    /* :nonorm is said only where leaving it out would mean norm. */
    const char *norm = f->k_norm ? ":norm" : pair_defaults(f->k_bits, f->v_bits).k_norm ? ":nonorm" : "";
    snprintf(name, BS_KV_FORMAT_NAME, "int%d%s:%s:g%d:%s%s:s%d:r%d", f->k_bits, v,
             f->k_per_channel ? "kc" : "kt", f->group, f->hadamard ? "had" : "nohad", norm, f->n_sink,
             f->n_recent);
}

double bs_kv_format_bits(const bs_kv_format *f, int head_dim)
{
    if (f->k_bits == 16) return 16;
    int channels = f->group < head_dim ? f->group : head_dim;
    double k = f->k_bits + 32.0 / (f->k_per_channel ? f->group : channels);
    double v = f->v_bits + 32.0 / channels;
    if (f->k_norm) k += 16.0 / head_dim;
    return (k + v) / 2;
}
