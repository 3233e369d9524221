/* nfc.c: canonical composition: take characters apart, put marks into their order, compose again.
 *
 * Characters are kept until one comes that neither is a mark nor composes with what is in front of it; then those
 * kept are composed and written. So a long text needs little memory, and a hostile one (a million marks) only time
 * that is linear. Hangul is arithmetic, everything else in tables (nfc_apart.h, nfc_joined.h, made from Python's unicodedata).
 */
#include "config.h"
#include "src/model/nfc.h"
#include "src/model/nfc_apart.h"
#include "src/model/nfc_joined.h"
#include "src/model/utf8.h"

#include <stdlib.h>
#include <string.h>

#define ROWS(table) (sizeof(table) / sizeof(table)[0])

/* Hangul (The Unicode Standard, 3.12): syllables are leading consonant × vowel × trailing consonant. */
enum {
    S0 = 0xac00,
    L0 = 0x1100,
    V0 = 0x1161,
    T0 = 0x11a7,
    N_L = 19,
    N_V = 21,
    N_T = 28,
    N_S = N_L * N_V * N_T
};

typedef struct mark {
    uint32_t code;
    uint8_t class;
} mark;

typedef struct composer {
    mark *kept, *sorted; /* sorted: room to order marks in */
    size_t n_kept, capacity;
    char *out;
    size_t n, out_capacity;
} composer;

/* The row whose first column is the last not above `code`, NULL if none is. */
static const uint32_t *find_row(const uint32_t *table, size_t n_rows, size_t n_columns, uint32_t code)
{
    size_t low = 0, high = n_rows;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (table[middle * n_columns] <= code) low = middle + 1;
        else high = middle;
    }
    return low ? table + (low - 1) * n_columns : NULL;
}

static uint8_t class_of(uint32_t code)
{
    if (code < 0x300) return 0;
    const uint32_t *row = find_row(nfc_classes[0], ROWS(nfc_classes), 3, code);
    return row && code <= row[1] ? (uint8_t)row[2] : 0;
}

static bool is_second(uint32_t code)
{
    if (code < 0x300) return false;
    if ((code >= V0 && code < V0 + N_V) || (code > T0 && code < T0 + N_T)) return true;
    const uint32_t *row = find_row(nfc_seconds[0], ROWS(nfc_seconds), 1, code);
    return row && row[0] == code;
}

/* The code that two compose to, 0 if they do not. */
static uint32_t join(uint32_t a, uint32_t b)
{
    if (a >= L0 && a < L0 + N_L && b >= V0 && b < V0 + N_V) return S0 + ((a - L0) * N_V + b - V0) * N_T;
    if (a >= S0 && a < S0 + N_S && (a - S0) % N_T == 0 && b > T0 && b < T0 + N_T) return a + b - T0;
    const uint32_t *row = find_row(nfc_joined[0], ROWS(nfc_joined), 3, a);
    size_t rows_left = row ? (size_t)(row - nfc_joined[0]) / 3 + 1 : 0;
    for (; rows_left > 0 && nfc_joined[rows_left - 1][0] == a; rows_left--)
        if (nfc_joined[rows_left - 1][1] == b) return nfc_joined[rows_left - 1][2];
    return 0;
}

static bs_status no_memory(size_t n)
{
    return bs_fail(BS_STATUS_NOMEM, "tokenizer: out of memory for %zu characters", n);
}

static bs_status keep(composer *c, uint32_t code)
{
    if (c->n_kept == c->capacity) {
        size_t capacity = c->capacity ? 2 * c->capacity : 64;
        mark *kept = realloc(c->kept, capacity * sizeof *kept);
        if (kept) c->kept = kept;
        mark *sorted = realloc(c->sorted, capacity * sizeof *sorted);
        if (sorted) c->sorted = sorted;
        if (!kept || !sorted) return no_memory(capacity);
        c->capacity = capacity;
    }
    c->kept[c->n_kept++] = (mark){code, class_of(code)};
    return BS_STATUS_OK;
}

static bs_status put(composer *c, uint32_t code)
{
    if (c->out_capacity - c->n < 4) {
        size_t capacity = 2 * c->out_capacity + 64;
        char *out = realloc(c->out, capacity);
        if (!out) return no_memory(capacity);
        c->out = out;
        c->out_capacity = capacity;
    }
    char *to = c->out + c->n;
    int more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static const unsigned char leads[] = {0, 0xc0, 0xe0, 0xf0};
    to[0] = (char)(leads[more] | code >> 6 * more);
    for (int i = 1; i <= more; i++) to[i] = (char)(0x80 | (code >> 6 * (more - i) & 0x3f));
    c->n += (size_t)more + 1;
    return BS_STATUS_OK;
}

/* Marks [first, end) by class, equal ones as they stand: a pass a class, or by insertion when they are few. */
static void order_marks(composer *c, size_t first, size_t end)
{
    mark *marks = c->kept;
    if (end - first <= 16) {
        for (size_t i = first + 1; i < end; i++) {
            mark moved = marks[i];
            size_t j = i;
            for (; j > first && marks[j - 1].class > moved.class; j--) marks[j] = marks[j - 1];
            marks[j] = moved;
        }
        return;
    }
    size_t n = 0;
    for (int class = 1; class < 256; class ++)
        for (size_t i = first; i < end; i++)
            if (marks[i].class == class) c->sorted[n++] = marks[i];
    memcpy(marks + first, c->sorted, n * sizeof *marks);
}

/* Composes what is kept, writes it, and keeps nothing. */
static bs_status flush(composer *c)
{
    size_t n = 0, starter = SIZE_MAX; /* kept[0 … n) is composed */
    for (size_t i = 0, end; i < c->n_kept; i = end) {
        for (end = i + 1; end < c->n_kept && c->kept[i].class && c->kept[end].class;) end++;
        if (c->kept[i].class) order_marks(c, i, end);
    }
    for (size_t i = 0; i < c->n_kept; i++) {
        mark m = c->kept[i];
        /* Blocked by a mark of the same or a higher class between the starter and this one. */
        bool blocked = starter == SIZE_MAX || (n > starter + 1 && c->kept[n - 1].class >= m.class);
        uint32_t joined = blocked ? 0 : join(c->kept[starter].code, m.code);
        if (joined) {
            c->kept[starter].code = joined;
            continue;
        }
        if (m.class == 0) starter = n;
        c->kept[n++] = m;
    }
    for (size_t i = 0; i < n; i++) BS_TRY(put(c, c->kept[i].code));
    c->n_kept = 0;
    return BS_STATUS_OK;
}

/* A code that does not come apart any more. */
static bs_status take(composer *c, uint32_t code)
{
    if (c->n_kept > 0 && class_of(code) == 0 && !is_second(code)) BS_TRY(flush(c));
    return keep(c, code);
}

/* Every decomposition is another's or a base and a mark, four codes at most. */
static bs_status take_apart(composer *c, uint32_t code)
{
    if (code >= S0 && code < S0 + N_S) {
        uint32_t s = code - S0;
        BS_TRY(take(c, L0 + s / (N_V * N_T)));
        BS_TRY(take(c, V0 + s % (N_V * N_T) / N_T));
        return s % N_T ? take(c, T0 + s % N_T) : BS_STATUS_OK;
    }
    const uint32_t *row = code < 0xc0 ? NULL : find_row(nfc_apart[0], ROWS(nfc_apart), 3, code);
    if (!row || row[0] != code) return take(c, code);
    BS_TRY(take_apart(c, row[1]));
    return row[2] ? take_apart(c, row[2]) : BS_STATUS_OK;
}

bool bs_nfc_may_change(const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if ((unsigned char)text[i] >= 0xcc) return true; /* U+0300 and up */
    return false;
}

bs_status bs_nfc(const char *text, size_t bytes, char **out, size_t *n)
{
    bs_status status = BS_STATUS_OK;
    composer c = {.out = malloc(bytes + 64), .out_capacity = bytes + 64};
    if (!c.out) return no_memory(bytes);
    for (size_t at = 0, length; at < bytes && status == BS_STATUS_OK; at += length) {
        uint32_t code = 0;
        bs_utf8_next(text + at, bytes - at, &length, &code);
        status = take_apart(&c, code);
    }
    if (status == BS_STATUS_OK) status = flush(&c);
    free(c.kept);
    free(c.sorted);
    if (status == BS_STATUS_OK) {
        *out = c.out;
        *n = c.n;
    } else {
        free(c.out);
    }
    return status;
}
