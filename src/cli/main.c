/* main.c: finds the subcommand, starts the ranks, ends the process.
 *
 * Exit codes are bs_status_exit_code's. Under a launcher rank 0 alone leaves with one that is not 0: mpirun
 * kills the slower ranks as soon as one does, and everything was agreed before. MPI is started before the
 * options are read, so that a wrong one gives one line on any number of ranks.
 */
#include "config.h"

#include "src/cli/common.h"
#include "src/cli/table.h"
#include "src/base/log.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>

static int find_command(const char *name)
{
    for (int i = 0; i < BS_CLI_N_COMMANDS; i++)
        if (strcmp(bs_cli_commands[i].name, name) == 0) return i;
    return -1;
}

static bs_status set_log_level(const bs_options *options)
{
    bool quiet = bs_options_flag(options, "quiet"), verbose = bs_options_flag(options, "verbose");
    if (quiet && verbose) return bs_fail(BS_STATUS_USAGE, "--quiet and --verbose: only one of them");
    bs_log_set_level(quiet ? BS_LOG_QUIET : verbose ? BS_LOG_DEBUG : BS_LOG_INFO);
    return BS_STATUS_OK;
}

/* Everything behind the name of a subcommand. comm: NULL if it needs no ranks. */
static bs_status run_command(int command, int argc, char **argv, bs_comm *comm)
{
    bs_options *options = NULL;
    bs_status status = bs_options_parse(bs_cli_options, bs_cli_n_options, bs_cli_commands, command, argc,
                                        argv, &options);
    if (status == BS_STATUS_OK && !bs_options_help(options)) status = set_log_level(options);
    if (comm) status = bs_comm_agree(comm, status);
    if (status != BS_STATUS_OK) goto err_options;
    if (!bs_options_help(options)) {
        status = bs_cli_entries[command].run(options, comm);
    } else if (!comm || bs_comm_rank(comm) == 0) {
        bs_options_print_help(bs_cli_options, bs_cli_n_options, bs_cli_commands, BS_CLI_N_COMMANDS, command,
                              stdout);
        status = bs_cli_write("", 0);
    }
err_options:
    bs_options_free(options);
    return status;
}

/* bitshard without a subcommand: --help, --version, --man and --bash-completion (for the build, so not in --help). */
static bs_status run_plain(const char *argument)
{
    if (argument && (strcmp(argument, "--help") == 0 || strcmp(argument, "-h") == 0)) {
        bs_options_print_help(bs_cli_options, bs_cli_n_options, bs_cli_commands, BS_CLI_N_COMMANDS, -1,
                              stdout);
    } else if (argument && strcmp(argument, "--version") == 0) {
        printf("bitshard %s\n", PACKAGE_VERSION);
    } else if (argument && strcmp(argument, "--man") == 0) {
        bs_options_print_man(bs_cli_options, bs_cli_n_options, bs_cli_commands, BS_CLI_N_COMMANDS,
                             PACKAGE_VERSION, stdout);
    } else if (argument && strcmp(argument, "--bash-completion") == 0) {
        bs_options_print_bash(bs_cli_options, bs_cli_n_options, bs_cli_commands, BS_CLI_N_COMMANDS, stdout);
    } else if (argument) {
        return bs_fail(BS_STATUS_USAGE, "%s: not a command; see bitshard --help", argument);
    } else {
        return bs_fail(BS_STATUS_USAGE, "no command; see bitshard --help");
    }
    return bs_cli_write("", 0);
}

/* A standard stream that the parent closed must not become a file that is opened later: error lines would go into it.
 * What is opened instead cannot be used the way the stream would be, so that its use is an error. */
static void hold_standard_streams(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) < 0) continue;
}

int main(int argc, char **argv)
{
    hold_standard_streams();
    signal(SIGPIPE, SIG_IGN); /* a write says EPIPE instead, and EFBIG */
    signal(SIGXFSZ, SIG_IGN);
    /* Launchers pass them on to all ranks at any time; they mean something only where somebody has asked for snapshots. */
    signal(SIGUSR1, SIG_IGN);
    signal(SIGUSR2, SIG_IGN);
    int command = argc > 1 ? find_command(argv[1]) : -1;
    bs_comm *comm = NULL;
    bs_status status = BS_STATUS_OK;
    if (command >= 0 && !bs_cli_entries[command].needs_ranks) {
        status = run_command(command, argc - 1, argv + 1, NULL);
        bs_error_flush();
        return bs_status_exit_code(status);
    }
    status = bs_comm_init(&argc, &argv, &comm);
    if (status != BS_STATUS_OK) {
        bs_error_flush();
        return bs_status_exit_code(status);
    }
    if (command >= 0) {
        status = run_command(command, argc - 1, argv + 1, comm);
    } else if (bs_comm_rank(comm) == 0) {
        status = run_plain(argc > 1 ? argv[1] : NULL);
    }
    bs_error_flush();
    int exit_code = bs_comm_rank(comm) == 0 ? bs_status_exit_code(status) : 0;
    bs_comm_finalize(comm);
    return exit_code;
}
