/* options.h: one table makes flags, environment variables, --help and the man page.
 *
 * The program's table is src/cli/table.c; this is the mechanism. An option has a long name, maybe a letter, a
 * kind, a default, a range, one line of help and the subcommands that take it. The environment variable is
 * BITSHARD_ + the name in capitals with _ for -; the command line wins over it. Nobody else calls getenv. A name may
 * have several rows, of different kinds, as long as no subcommand takes two of them.
 */
#ifndef BS_OPTIONS_H
#define BS_OPTIONS_H

#include "src/base/status.h"

#include <stdint.h>
#include <stdio.h>

typedef enum bs_option_kind {
    BS_OPTION_FLAG,   /* --name, --no-name; environment 0 or 1 */
    BS_OPTION_INT,    /* 64-bit, in [min, max]; K M G suffixes (1024) when scaled is set */
    BS_OPTION_FLOAT,  /* in [min, max] */
    BS_OPTION_STRING, /* any text */
    BS_OPTION_CHOICE, /* one of choices, "a|b|c" */
    BS_OPTION_LIST    /* STRING that may be given several times */
} bs_option_kind;

typedef struct bs_option {
    const char *name; /* "top-k" */
    char letter;      /* 'n' or 0 */
    bs_option_kind kind;
    bool scaled;
    const char *value;        /* name of the value in --help: "N", "FILE"; NULL for flags */
    const char *default_text; /* as a user would write it; NULL: none */
    double min, max;          /* INT, FLOAT */
    const char *choices;      /* CHOICE */
    const char *group;        /* heading in --help: "Model", "Cache", "Sampling" … */
    const char *help;         /* one line */
    uint32_t commands;        /* bit i: subcommand i of the command table takes it */
} bs_option;

typedef struct bs_command {
    const char *name;     /* "generate" */
    const char *operands; /* "" or "OUT.gguf": for the usage line */
    int min_operands, max_operands;
    const char *summary; /* one line */
    const char *details; /* paragraphs for --help and the man page, or NULL */
} bs_command;

typedef struct bs_options bs_options;

/* Parses argv[1…] of subcommand `command` (argv[0] is its name). Unknown options, missing or bad values:
 * BS_STATUS_USAGE with the option and the value named. `--` ends the options. Values from the environment are
 * checked the same way and named by their variable; an empty variable counts as not set. --help and -h, of
 * every subcommand, end the parsing: nothing after them is checked. argv must outlive the options. */
bs_status bs_options_parse(const bs_option *table, int n_options, const bs_command *commands, int command,
                           int argc, char **argv, bs_options **out);
void bs_options_free(bs_options *options);

/* Whether --help was met; then nothing else may be asked. */
bool bs_options_help(const bs_options *options);

/* Values by name; asking for a name or kind that the table does not have is a bug and asserts. */
bool bs_options_flag(const bs_options *options, const char *name);
int64_t bs_options_int(const bs_options *options, const char *name);
double bs_options_float(const bs_options *options, const char *name);
const char *bs_options_string(const bs_options *options, const char *name); /* NULL: not given, no default */
int bs_options_count(const bs_options *options, const char *name);          /* LIST: how many */
const char *bs_options_item(const bs_options *options, const char *name, int i);
/* Whether it is on the command line or in the environment. */
bool bs_options_given(const bs_options *options, const char *name);
int bs_options_n_operands(const bs_options *options);
const char *bs_options_operand(const bs_options *options, int i);

/* Reads a number as a scaled option has it, for texts that hold one and more: digits and K, M or G (also small) if one is behind
 * them. *end: what follows. false: no number, or too large. */
bool bs_options_read_size(const char *text, const char **end, int64_t *out);

/* "BITSHARD_TOP_K" of --top-k; "0 to 256", "1 or more" or "" for the range of a number. For the printers. */
enum { BS_OPTION_ENV_NAME = 64, BS_OPTION_RANGE_TEXT = 64 };
void bs_options_env_name(const bs_option *option, char name[BS_OPTION_ENV_NAME]);
void bs_options_range_text(const bs_option *option, char text[BS_OPTION_RANGE_TEXT]);

/* --help of one subcommand; of all (command < 0: the list of subcommands). */
void bs_options_print_help(const bs_option *table, int n_options, const bs_command *commands, int n_commands,
                           int command, FILE *out);
/* The man page bitshard(1) in man(7). */
void bs_options_print_man(const bs_option *table, int n_options, const bs_command *commands, int n_commands,
                          const char *version, FILE *out);
/* Completion for bash: a script that defines it. */
void bs_options_print_bash(const bs_option *table, int n_options, const bs_command *commands, int n_commands,
                           FILE *out);

#endif
