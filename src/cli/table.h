/* table.h: the subcommands and the one table of options.
 *
 * Adding a subcommand: an id here, its line in bs_cli_commands and bs_cli_entries (table.c), its bit in the
 * options it takes, its function in cmd_<name>.c. Flags, environment variables, --help and bitshard(1) follow
 * from the table.
 */
#ifndef BS_CLI_TABLE_H
#define BS_CLI_TABLE_H

#include "comm/comm.h"
#include "src/base/options.h"

typedef enum bs_cli_id {
    BS_CLI_GENERATE,
    BS_CLI_TOKENIZE,
    BS_CLI_MAKE_MODEL,
    BS_CLI_INFO,
    BS_CLI_BENCH,
    BS_CLI_EVAL,
    BS_CLI_SNAPSHOT,
    BS_CLI_N_COMMANDS
} bs_cli_id;

/* A subcommand. comm is NULL for those that need no ranks, and such a command is not collective; the others
 * are run by all ranks, return the same status on all and have agreed on it (bs_comm_agree). */
typedef bs_status (*bs_cli_run)(const bs_options *options, bs_comm *comm);

typedef struct bs_cli_entry {
    bs_cli_run run;
    bool needs_ranks;
} bs_cli_entry;

extern const bs_command bs_cli_commands[BS_CLI_N_COMMANDS];
extern const bs_cli_entry bs_cli_entries[BS_CLI_N_COMMANDS];
extern const bs_option bs_cli_options[];
extern const int bs_cli_n_options;

bs_status bs_cli_generate(const bs_options *options, bs_comm *comm);
bs_status bs_cli_tokenize(const bs_options *options, bs_comm *comm);
bs_status bs_cli_make_model(const bs_options *options, bs_comm *comm);
bs_status bs_cli_info(const bs_options *options, bs_comm *comm);
bs_status bs_cli_bench(const bs_options *options, bs_comm *comm);
bs_status bs_cli_eval(const bs_options *options, bs_comm *comm);
bs_status bs_cli_snapshot(const bs_options *options, bs_comm *comm);

#endif
