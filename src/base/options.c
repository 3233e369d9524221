/* options.c: reading the command line and the environment by the table.
 *
 * Own code rather than getopt_long: the table has ranges, choices, scaled numbers and environment names that
 * getopt knows nothing of, and getopt permutes argv and prints on its own. The rules are getopt's: --name
 * VALUE, --name=VALUE, -nVALUE, -n VALUE, one letter an argument, options and operands mixed, `--` ends the
 * options, a lone - is an operand.
 */
#include "config.h"

#include "src/base/options.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LABEL_BYTES = 96 };

typedef struct value {
    bool given, flag;
    int64_t number;
    double real;
    char **text; /* STRING and CHOICE: at most one; LIST: any number */
    int n_text;
} value;

struct bs_options {
    const bs_option *table;
    int n_options;
    uint32_t bit; /* of the subcommand */
    value *values;
    const char **operands; /* point into argv */
    int n_operands;
    bool help;
};

/* ---- values
 * ------------------------------------------------------------------------------------------------ */

void bs_options_env_name(const bs_option *option, char name[BS_OPTION_ENV_NAME])
{
    int n = snprintf(name, BS_OPTION_ENV_NAME, "BITSHARD_%s", option->name);
    assert(n < BS_OPTION_ENV_NAME);
    for (char *c = name; *c; c++) *c = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
}

void bs_options_range_text(const bs_option *option, char text[BS_OPTION_RANGE_TEXT])
{
    bool low = option->min > -0x1p62, high = option->max < 0x1p62;
    if (low && high) {
        snprintf(text, BS_OPTION_RANGE_TEXT, "%.15g to %.15g", option->min, option->max);
    } else if (low) {
        snprintf(text, BS_OPTION_RANGE_TEXT, "%.15g or more", option->min);
    } else if (high) {
        snprintf(text, BS_OPTION_RANGE_TEXT, "%.15g or less", option->max);
    } else {
        text[0] = 0;
    }
}

static bs_status fail_range(const bs_option *option, const char *label, const char *text)
{
    char range[BS_OPTION_RANGE_TEXT];
    bs_options_range_text(option, range);
    return bs_fail(BS_STATUS_USAGE, "%s %s: must be a %s%s%s%s", label, text,
                   option->kind == BS_OPTION_FLOAT ? "number" : "whole number", range[0] ? ", " : "", range,
                   option->scaled ? " (K, M and G are 1024 and its powers)" : "");
}

static bool read_whole(const char *text, bool scaled, const char **end, int64_t *out)
{
    static const char suffixes[] = "KMG";
    char *rest;
    errno = 0;
    long long n = strtoll(text, &rest, 10);
    if (!(isdigit((unsigned char)text[0]) || text[0] == '-') || rest == text || errno != 0) return false;
    const char *suffix = scaled && *rest ? strchr(suffixes, toupper((unsigned char)*rest)) : NULL;
    if (suffix && __builtin_mul_overflow(n, 1ll << (10 * (suffix - suffixes + 1)), &n)) return false;
    *end = suffix ? rest + 1 : rest;
    *out = n;
    return true;
}

bool bs_options_read_size(const char *text, const char **end, int64_t *out)
{
    return read_whole(text, true, end, out);
}

static bs_status read_int(const bs_option *option, const char *label, const char *text, int64_t *out)
{
    const char *end;
    int64_t n;
    if (!read_whole(text, option->scaled, &end, &n) || *end) return fail_range(option, label, text);
    if (!((double)n >= option->min && (double)n <= option->max)) return fail_range(option, label, text);
    *out = n;
    return BS_STATUS_OK;
}

static bs_status read_float(const bs_option *option, const char *label, const char *text, double *out)
{
    char *end;
    double x = strtod(text, &end);
    bool plain = text[0] && text[strspn(text, "0123456789.eE+-")] == 0; /* no hexadecimal, no inf, no nan */
    if (!plain || end == text || *end || !isfinite(x) || !(x >= option->min && x <= option->max))
        return fail_range(option, label, text);
    *out = x;
    return BS_STATUS_OK;
}

static bool is_choice(const char *choices, const char *text)
{
    size_t n = strlen(text);
    for (const char *c = choices; n > 0 && c; c = strchr(c, '|'), c = c ? c + 1 : NULL)
        if (strcspn(c, "|") == n && memcmp(c, text, n) == 0) return true;
    return false;
}

static bs_status add_text(value *v, const char *text)
{
    char **grown = realloc(v->text, sizeof *grown * (size_t)(v->n_text + 1));
    if (!grown) return bs_fail(BS_STATUS_NOMEM, "options: out of memory");
    v->text = grown;
    if (!(v->text[v->n_text] = strdup(text))) return bs_fail(BS_STATUS_NOMEM, "options: out of memory");
    v->n_text++;
    return BS_STATUS_OK;
}

static void clear_text(value *v)
{
    for (int i = 0; i < v->n_text; i++) free(v->text[i]);
    free(v->text);
    v->text = NULL;
    v->n_text = 0;
}

/* label: how the user wrote the option ("--top-k", "-n", "BITSHARD_TOP_K"). */
static bs_status set_value(const bs_option *option, value *v, const char *label, const char *text)
{
    switch (option->kind) {
    case BS_OPTION_FLAG:
        if (strcmp(text, "0") != 0 && strcmp(text, "1") != 0)
            return bs_fail(BS_STATUS_USAGE, "%s %s: must be 0 or 1", label, text);
        v->flag = text[0] == '1';
        return BS_STATUS_OK;
    case BS_OPTION_INT: return read_int(option, label, text, &v->number);
    case BS_OPTION_FLOAT: return read_float(option, label, text, &v->real);
    case BS_OPTION_CHOICE:
        if (!is_choice(option->choices, text))
            return bs_fail(BS_STATUS_USAGE, "%s %s: must be one of %s", label, text, option->choices);
        clear_text(v);
        return add_text(v, text);
    case BS_OPTION_STRING: clear_text(v); return add_text(v, text);
    case BS_OPTION_LIST: return add_text(v, text);
    }
    return bs_fail(BS_STATUS_INTERNAL, "option %s: unknown kind", option->name);
}

/* ---- command line
 * ------------------------------------------------------------------------------------------ */

typedef struct reader {
    bs_options *options;
    const bs_command *command;
    int argc, at;
    char **argv;
} reader;

/* The row of this name that the subcommand takes; if it takes none, another's. */
static int find_name(const bs_options *options, const char *name, size_t bytes)
{
    int found = -1;
    for (int i = 0; i < options->n_options; i++) {
        const bs_option *option = &options->table[i];
        if (strlen(option->name) != bytes || memcmp(option->name, name, bytes) != 0) continue;
        if (option->commands & options->bit) return i;
        if (found < 0) found = i;
    }
    return found;
}

static int find_letter(const bs_options *options, char letter)
{
    for (int i = 0; i < options->n_options; i++)
        if (options->table[i].letter && options->table[i].letter == letter) return i;
    return -1;
}

static bs_status check_takes(const reader *r, int i, const char *label)
{
    if (i >= 0 && r->options->table[i].commands & r->options->bit) return BS_STATUS_OK;
    return bs_fail(BS_STATUS_USAGE, "%s: not an option of %s; see bitshard %s --help", label,
                   r->command->name, r->command->name);
}

/* Takes option i, written as `label`, with the value joined to it (or NULL: the next argument). */
static bs_status take_option(reader *r, int i, const char *label, const char *joined, bool negated)
{
    const bs_option *option = &r->options->table[i];
    value *v = &r->options->values[i];
    if (option->kind == BS_OPTION_FLAG) {
        if (joined) return bs_fail(BS_STATUS_USAGE, "%s: takes no value", label);
        v->given = true;
        v->flag = !negated;
        return BS_STATUS_OK;
    }
    if (!joined) {
        if (r->at == r->argc) return bs_fail(BS_STATUS_USAGE, "%s: needs a value, %s", label, option->value);
        joined = r->argv[r->at++];
    }
    if (!v->given && option->kind == BS_OPTION_LIST) clear_text(v); /* the default's items */
    v->given = true;
    return set_value(option, v, label, joined);
}

static bs_status take_long(reader *r, const char *argument)
{
    const char *name = argument + 2;
    size_t bytes = strcspn(name, "=");
    const char *joined = name[bytes] ? name + bytes + 1 : NULL;
    char label[LABEL_BYTES];
    snprintf(label, sizeof label, "--%.*s", bytes > 64 ? 64 : (int)bytes, name);
    int i = find_name(r->options, name, bytes);
    bool negated = false;
    if (i < 0 && bytes > 3 && memcmp(name, "no-", 3) == 0) {
        i = find_name(r->options, name + 3, bytes - 3);
        if (i >= 0 && r->options->table[i].kind != BS_OPTION_FLAG) i = -1;
        negated = true;
    }
    BS_TRY(check_takes(r, i, label));
    return take_option(r, i, label, joined, negated);
}

static bs_status take_letter(reader *r, const char *argument)
{
    char label[] = {'-', argument[1], 0};
    int i = find_letter(r->options, argument[1]);
    BS_TRY(check_takes(r, i, label));
    return take_option(r, i, label, argument[2] ? argument + 2 : NULL, false);
}

static bs_status read_arguments(reader *r)
{
    bool ended = false;
    while (r->at < r->argc && !r->options->help) {
        const char *argument = r->argv[r->at++];
        if (ended || argument[0] != '-' || argument[1] == 0) {
            if (r->options->n_operands == r->command->max_operands)
                return bs_fail(BS_STATUS_USAGE, "%s: unexpected operand '%s'", r->command->name, argument);
            r->options->operands[r->options->n_operands++] = argument;
        } else if (strcmp(argument, "--") == 0) {
            ended = true;
        } else if (strcmp(argument, "--help") == 0 || strcmp(argument, "-h") == 0) {
            r->options->help = true;
        } else {
            BS_TRY(argument[1] == '-' ? take_long(r, argument) : take_letter(r, argument));
        }
    }
    if (!r->options->help && r->options->n_operands < r->command->min_operands)
        return bs_fail(BS_STATUS_USAGE, "%s: needs the operand %s", r->command->name, r->command->operands);
    return BS_STATUS_OK;
}

/* An empty variable counts as not set. */
static bs_status read_environment(reader *r)
{
    for (int i = 0; i < r->options->n_options; i++) {
        const bs_option *option = &r->options->table[i];
        value *v = &r->options->values[i];
        if (v->given || !(option->commands & r->options->bit)) continue;
        char name[BS_OPTION_ENV_NAME];
        bs_options_env_name(option, name);
        const char *text = getenv(name);
        if (!text || !text[0]) continue;
        if (option->kind == BS_OPTION_LIST) clear_text(v);
        v->given = true;
        BS_TRY(set_value(option, v, name, text));
    }
    return BS_STATUS_OK;
}

bs_status bs_options_parse(const bs_option *table, int n_options, const bs_command *commands, int command,
                           int argc, char **argv, bs_options **out)
{
    bs_status status;
    bs_options *options = calloc(1, sizeof *options);
    if (!options) return bs_fail(BS_STATUS_NOMEM, "options: out of memory");
    options->table = table;
    options->n_options = n_options;
    options->bit = (uint32_t)1 << command;
    options->values = calloc((size_t)n_options + 1, sizeof *options->values);
    options->operands = calloc((size_t)argc + 1, sizeof *options->operands);
    if (!options->values || !options->operands) {
        status = bs_fail(BS_STATUS_NOMEM, "options: out of memory");
        goto err_options;
    }
    for (int i = 0; i < n_options; i++)
        if (table[i].default_text)
            BS_TRY_GOTO(set_value(&table[i], &options->values[i], table[i].name, table[i].default_text),
                        err_options);
    reader r = {options, &commands[command], argc, 1, argv};
    BS_TRY_GOTO(read_arguments(&r), err_options);
    if (!options->help) BS_TRY_GOTO(read_environment(&r), err_options);
    *out = options;
    return BS_STATUS_OK;
err_options:
    bs_options_free(options);
    return status;
}

void bs_options_free(bs_options *options)
{
    if (!options) return;
    for (int i = 0; options->values && i < options->n_options; i++) clear_text(&options->values[i]);
    free(options->values);
    free(options->operands);
    free(options);
}

/* ---- access
 * ------------------------------------------------------------------------------------------------ */

static const value *find(const bs_options *options, const char *name, unsigned kinds)
{
    int i = find_name(options, name, strlen(name));
    assert(i >= 0 && "no such option in the table");
    assert((kinds >> options->table[i].kind & 1u) && "option of another kind");
    (void)kinds;
    return &options->values[i];
}

bool bs_options_help(const bs_options *options)
{
    return options->help;
}

bool bs_options_flag(const bs_options *options, const char *name)
{
    return find(options, name, 1u << BS_OPTION_FLAG)->flag;
}

int64_t bs_options_int(const bs_options *options, const char *name)
{
    return find(options, name, 1u << BS_OPTION_INT)->number;
}

double bs_options_float(const bs_options *options, const char *name)
{
    return find(options, name, 1u << BS_OPTION_FLOAT)->real;
}

const char *bs_options_string(const bs_options *options, const char *name)
{
    const value *v = find(options, name, 1u << BS_OPTION_STRING | 1u << BS_OPTION_CHOICE);
    return v->n_text > 0 ? v->text[0] : NULL;
}

int bs_options_count(const bs_options *options, const char *name)
{
    return find(options, name, 1u << BS_OPTION_LIST)->n_text;
}

const char *bs_options_item(const bs_options *options, const char *name, int i)
{
    const value *v = find(options, name, 1u << BS_OPTION_LIST);
    assert(i >= 0 && i < v->n_text);
    return v->text[i];
}

bool bs_options_given(const bs_options *options, const char *name)
{
    return find(options, name, ~0u)->given;
}

int bs_options_n_operands(const bs_options *options)
{
    return options->n_operands;
}

const char *bs_options_operand(const bs_options *options, int i)
{
    assert(i >= 0 && i < options->n_operands);
    return options->operands[i];
}
