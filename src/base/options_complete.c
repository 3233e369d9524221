/* options_complete.c: completion for bash, from the same table that reads the options.
 *
 * One function of plain bash (3.2 and later, no bash-completion package needed): the subcommands, each one's options, the
 * words of a choice, file names where a value or an operand is a file. Bash parts words at "=", so --kv=int4 is three.
 */
#include "src/base/options.h"

#include <ctype.h>
#include <string.h>

/* "generate) words='--model -m …' ;;" */
static void print_words(const bs_option *table, int n_options, const bs_command *command, uint32_t bit,
                        FILE *out)
{
    fprintf(out, "        %s) words='--help -h", command->name);
    for (int i = 0; i < n_options; i++) {
        const bs_option *option = &table[i];
        if (!(option->commands & bit)) continue;
        fprintf(out, " --%s", option->name);
        if (option->kind == BS_OPTION_FLAG) fprintf(out, " --no-%s", option->name);
        if (option->letter) fprintf(out, " -%c", option->letter);
    }
    fputs("' ;;\n", out);
}

/* What may follow an option that takes a value: "generate:--merge) words='allreduce …' ;;". */
static void print_values(const bs_option *option, const bs_command *command, FILE *out)
{
    if (option->kind == BS_OPTION_FLAG) return;
    fprintf(out, "    %s:--%s", command->name, option->name);
    if (option->letter) fprintf(out, " | %s:-%c", command->name, option->letter);
    fputs(") value=", out);
    if (option->kind == BS_OPTION_CHOICE) {
        fputs("words words='", out);
        for (const char *c = option->choices; *c; c++) fputc(*c == '|' ? ' ' : *c, out);
        fputs("' ;;\n", out);
    } else {
        const bool path = strstr(option->value, "FILE") || strcmp(option->value, "MODEL") == 0;
        fprintf(out, "%s ;;\n", path ? "path" : "other");
    }
}

/* The operands that are words ("tiny|smol OUT.gguf": tiny and smol). */
static void print_operands(const bs_command *command, FILE *out)
{
    if (!command->operands[0]) return;
    fprintf(out, "        %s) words='", command->name);
    for (const char *c = command->operands; *c;) {
        size_t n = strcspn(c, " |[]");
        if (n > 0 && islower((unsigned char)*c)) fprintf(out, "%.*s ", (int)n, c);
        c += n + (c[n] != 0);
    }
    fputs("' ;;\n", out);
}

void bs_options_print_bash(const bs_option *table, int n_options, const bs_command *commands, int n_commands,
                           FILE *out)
{
    fputs("# bash completion for bitshard, made from its table of options: bitshard --bash-completion\n"
          "_bitshard()\n{\n"
          "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} "
          "command=${COMP_WORDS[1]}\n"
          "    local words='' value='' word\n"
          "    COMPREPLY=()\n"
          "    if [ \"$prev\" = = ]; then\n"
          "        prev=${COMP_WORDS[COMP_CWORD - 2]}\n"
          "    elif [ \"$cur\" = = ]; then\n"
          "        cur=''\n"
          "    fi\n"
          "    if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
          "        words='--help --version",
          out);
    for (int i = 0; i < n_commands; i++) fprintf(out, " %s", commands[i].name);
    fputs("'\n"
          "        # shellcheck disable=SC2207  # no word has a space\n"
          "        COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
          "        return\n"
          "    fi\n"
          "    case $command:$prev in\n",
          out);
    for (int i = 0; i < n_commands; i++)
        for (int j = 0; j < n_options; j++)
            if (table[j].commands >> i & 1u) print_values(&table[j], &commands[i], out);
    fputs("    esac\n"
          "    case $value:$cur in\n"
          "    words:* | other:* | path:*) ;;\n"
          "    :-*)\n"
          "        case $command in\n",
          out);
    for (int i = 0; i < n_commands; i++) print_words(table, n_options, &commands[i], (uint32_t)1 << i, out);
    fputs("        esac ;;\n"
          "    *)\n"
          "        value=operand\n"
          "        case $command in\n",
          out);
    for (int i = 0; i < n_commands; i++) print_operands(&commands[i], out);
    fputs("        esac ;;\n"
          "    esac\n"
          "    # shellcheck disable=SC2207  # no word has a space\n"
          "    [ -z \"$words\" ] || COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
          "    case $value in\n"
          "    path | operand)\n"
          "        type compopt >/dev/null 2>&1 && compopt -o filenames 2>/dev/null\n"
          "        while IFS= read -r word; do COMPREPLY+=(\"$word\"); done < <(compgen -f -- \"$cur\") ;;\n"
          "    esac\n"
          "}\n"
          "complete -F _bitshard bitshard\n",
          out);
}
