/* options_print.c: --help and bitshard(1), from the same table that reads the options. */
#include "src/base/options.h"

#include <string.h>

enum { HELP_COLUMN = 28, HELP_WIDTH = 100 };

static const char summary[] =
    "decodes large language models over very long contexts, heads and KV cache sharded over MPI ranks";

/* ---- --help
 * ------------------------------------------------------------------------------------------------ */

/* Words of `text` from column `column` on, continued at `indent`; ends the line. A newline in the text stays
 * one. */
static void print_wrapped(FILE *out, const char *text, int column, int indent)
{
    while (*text) {
        size_t word = strcspn(text, " \n");
        if (column > indent && column + 1 + (int)word > HELP_WIDTH) {
            fprintf(out, "\n%*s", indent, "");
            column = indent;
        } else if (column > indent && word > 0) {
            fputc(' ', out);
            column++;
        }
        fwrite(text, 1, word, out);
        column += (int)word;
        text += word;
        if (*text == '\n') {
            fprintf(out, "\n%*s", text[1] && text[1] != '\n' ? indent : 0, "");
            column = indent;
        }
        if (*text) text++;
    }
    fputc('\n', out);
}

/* "--[no-]echo", "-n, --max-tokens N". */
static void option_label(const bs_option *option, char *text, size_t bytes)
{
    char letter[8] = "    ";
    if (option->letter) snprintf(letter, sizeof letter, "-%c, ", option->letter);
    bool on = option->kind == BS_OPTION_FLAG && option->default_text && option->default_text[0] == '1';
    snprintf(text, bytes, "%s--%s%s%s%s", letter, on ? "no-" : "", option->name, option->value ? " " : "",
             option->value ? option->value : "");
}

static void option_help(const bs_option *option, char *text, size_t bytes)
{
    bool choice = option->kind == BS_OPTION_CHOICE,
         shown = option->default_text && option->kind != BS_OPTION_FLAG;
    snprintf(text, bytes, "%s%s%s%s%s%s", option->help, choice ? ": " : "", choice ? option->choices : "",
             shown ? " [" : "", shown ? option->default_text : "", shown ? "]" : "");
}

static void print_option(FILE *out, const char *label, const char *help)
{
    int column = fprintf(out, "  %s", label);
    if (column + 2 > HELP_COLUMN) {
        fputc('\n', out);
        column = 0;
    }
    fprintf(out, "%*s", HELP_COLUMN - column, "");
    print_wrapped(out, help, HELP_COLUMN, HELP_COLUMN);
}

/* Whether option i is the first of its group among those of the subcommands in `commands`. */
static bool begins_group(const bs_option *table, int i, uint32_t commands)
{
    for (int j = 0; j < i; j++)
        if (table[j].commands & commands && strcmp(table[j].group, table[i].group) == 0) return false;
    return (table[i].commands & commands) != 0;
}

static void print_help_all(const bs_command *commands, int n_commands, FILE *out)
{
    fprintf(out, "Usage: bitshard COMMAND [OPTION]...\n       mpirun -np N bitshard COMMAND [OPTION]...\n\n");
    fprintf(out, "bitshard %s.\n\nCommands:\n", summary);
    for (int i = 0; i < n_commands; i++) fprintf(out, "  %-12s %s\n", commands[i].name, commands[i].summary);
    fprintf(out,
            "\n  bitshard COMMAND --help   options of a command\n"
            "  bitshard --version        version\n\n"
            "Every option can come from the environment: --top-k from BITSHARD_TOP_K. See bitshard(1).\n");
}

void bs_options_print_help(const bs_option *table, int n_options, const bs_command *commands, int n_commands,
                           int command, FILE *out)
{
    if (command < 0) {
        print_help_all(commands, n_commands, out);
        return;
    }
    const bs_command *c = &commands[command];
    uint32_t bit = (uint32_t)1 << command;
    fprintf(out, "Usage: bitshard %s [OPTION]...%s%s\n\n", c->name, c->operands[0] ? " " : "", c->operands);
    print_wrapped(out, c->summary, 0, 0);
    if (c->details) {
        fputc('\n', out);
        print_wrapped(out, c->details, 0, 0);
    }
    char label[128], help[512];
    for (int i = 0; i < n_options; i++) {
        if (!begins_group(table, i, bit)) continue;
        fprintf(out, "\n%s:\n", table[i].group);
        for (int j = i; j < n_options; j++) {
            if (!(table[j].commands & bit) || strcmp(table[i].group, table[j].group) != 0) continue;
            option_label(&table[j], label, sizeof label);
            option_help(&table[j], help, sizeof help);
            print_option(out, label, help);
        }
    }
    fputc('\n', out);
    print_option(out, "-h, --help", "this text");
}

/* ---- man page
 * ---------------------------------------------------------------------------------------------- */

/* Text as roff: hyphens that can be copied, no escapes or requests by accident. */
static void print_roff(FILE *out, const char *text)
{
    bool line_start = true;
    for (const char *c = text; *c; c++) {
        if (line_start && (*c == '.' || *c == '\'')) fputs("\\&", out);
        if (*c == '-') {
            fputs("\\-", out);
        } else if (*c == '\\') {
            fputs("\\e", out);
        } else {
            fputc(*c, out);
        }
        line_start = *c == '\n';
    }
}

/* Paragraphs, parted by empty lines in the text. */
static void print_roff_paragraphs(FILE *out, const char *text)
{
    while (*text) {
        const char *end = strstr(text, "\n\n");
        int bytes = end ? (int)(end - text) : (int)strlen(text);
        char paragraph[4096];
        snprintf(paragraph, sizeof paragraph, "%.*s", bytes, text);
        fputs(".PP\n", out);
        print_roff(out, paragraph);
        fputc('\n', out);
        text += bytes;
        text += strspn(text, "\n");
    }
}

static void print_man_option(const bs_option *option, const bs_command *commands, int n_commands, FILE *out)
{
    char env[BS_OPTION_ENV_NAME], range[BS_OPTION_RANGE_TEXT];
    fputs(".TP\n\\fB", out);
    if (option->letter) fprintf(out, "\\-%c\\fR, \\fB", option->letter);
    fputs("\\-\\-", out);
    print_roff(out, option->name);
    fputs("\\fR", out);
    if (option->value) {
        fputs(" \\fI", out);
        print_roff(out, option->value);
        fputs("\\fR", out);
    } else {
        fputs(", \\fB\\-\\-no\\-", out);
        print_roff(out, option->name);
        fputs("\\fR", out);
    }
    fputc('\n', out);
    print_roff(out, option->help);
    fputs(".\n", out);
    bool number = option->kind == BS_OPTION_INT || option->kind == BS_OPTION_FLOAT;
    if (number) {
        bs_options_range_text(option, range);
        if (range[0]) fprintf(out, "A %snumber, %s.\n", option->kind == BS_OPTION_INT ? "whole " : "", range);
    }
    if (option->kind == BS_OPTION_CHOICE) {
        fputs("One of ", out);
        for (const char *at = option->choices; *at; at++) {
            fputc(*at, out);
            if (*at == '|') fputs("\\:", out); /* a line may end here */
        }
        fputs(".\n", out);
    }
    if (option->default_text && option->kind != BS_OPTION_FLAG) {
        fputs("Default: ", out);
        print_roff(out, option->default_text);
        fputs(".\n", out);
    }
    bs_options_env_name(option, env);
    fprintf(out, "Environment: \\fB%s\\fR. Commands:", env);
    bool first = true;
    for (int i = 0; i < n_commands; i++) {
        if (!(option->commands >> i & 1u)) continue;
        fputs(first ? " " : ", ", out);
        print_roff(out, commands[i].name);
        first = false;
    }
    fputs(".\n", out);
}

void bs_options_print_man(const bs_option *table, int n_options, const bs_command *commands, int n_commands,
                          const char *version, FILE *out)
{
    fprintf(out, ".TH BITSHARD 1 \"\" \"bitshard %s\" \"User Commands\"\n.SH NAME\nbitshard \\- ", version);
    print_roff(out, summary);
    fputs("\n.SH SYNOPSIS\n", out);
    for (int i = 0; i < n_commands; i++) {
        fputs(".br\n\\fBbitshard ", out);
        print_roff(out, commands[i].name);
        fprintf(out, "\\fR [\\fIOPTION\\fR]...%s\\fI", commands[i].operands[0] ? " " : "");
        print_roff(out, commands[i].operands);
        fputs("\\fR\n", out);
    }
    fputs(".SH DESCRIPTION\n"
          "Start one process a rank with \\fBmpirun\\fR or \\fBsrun\\fR, or one alone. Tokens and tables go "
          "to standard\n"
          "output, everything else to standard error.\n.SH COMMANDS\n",
          out);
    for (int i = 0; i < n_commands; i++) {
        fputs(".SS ", out);
        print_roff(out, commands[i].name);
        fputc('\n', out);
        print_roff(out, commands[i].summary);
        fputs(".\n", out);
        if (commands[i].details) print_roff_paragraphs(out, commands[i].details);
    }
    fputs(".SH OPTIONS\n"
          "A value follows after a space or an equals sign; a list option may be given several times. "
          "Numbers that count\n"
          "tokens of a context take K, M and G (1024 and its powers).\n",
          out);
    for (int i = 0; i < n_options; i++) {
        if (!begins_group(table, i, ~0u)) continue;
        fprintf(out, ".SS %s\n", table[i].group);
        for (int j = i; j < n_options; j++)
            if (strcmp(table[i].group, table[j].group) == 0)
                print_man_option(&table[j], commands, n_commands, out);
    }
    fputs(".SH ENVIRONMENT\n"
          "Each option is also read from \\fBBITSHARD_\\fR and its name in capitals with _ for \\-: "
          "\\fB\\-\\-top\\-k\\fR\n"
          "from \\fBBITSHARD_TOP_K\\fR. Switches are 0 or 1, an empty variable counts as not set, and the "
          "command line\n"
          "wins.\n.SH EXIT STATUS\n"
          ".TP\n0\nDone.\n.TP\n1\nFailed; one line on standard error says why.\n"
          ".TP\n2\nWrong usage.\n.TP\n85\nStopped early with a good snapshot: start the job again.\n",
          out);
}
