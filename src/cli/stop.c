/* stop.c: a signal that asks to stop, remembered until the command looks. */
#include "config.h"

#include "src/cli/stop.h"

#include <signal.h>
#include <stddef.h>

static volatile sig_atomic_t caught_signal;

static void on_signal(int number)
{
    caught_signal = number;
}

void bs_cli_catch_stop(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESETHAND | SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

int bs_cli_stop_signal(void)
{
    return caught_signal;
}

const char *bs_cli_stop_name(void)
{
    return caught_signal == SIGINT ? "SIGINT" : "SIGTERM";
}
