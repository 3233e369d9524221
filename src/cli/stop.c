/* stop.c: signals, remembered until the command looks. */
#include "config.h"

#include "src/cli/stop.h"

#include <signal.h>
#include <stddef.h>

static volatile sig_atomic_t caught_signal, snapshot_asked;

static void on_signal(int number)
{
    if (number == SIGUSR1) snapshot_asked = 1;
    else caught_signal = number;
}

static void catch_signal(int number, int flags)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = flags | SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(number, &action, NULL);
}

void bs_cli_catch_stop(void)
{
    catch_signal(SIGINT, SA_RESETHAND);
    catch_signal(SIGTERM, SA_RESETHAND);
}

void bs_cli_catch_stop_and_snapshot(void)
{
    catch_signal(SIGINT, SA_RESETHAND);
    catch_signal(SIGTERM, 0);
    catch_signal(SIGUSR1, 0);
    catch_signal(SIGUSR2, 0);
}

int bs_cli_stop_signal(void)
{
    return caught_signal;
}

const char *bs_cli_stop_name(void)
{
    const int number = caught_signal;
    return number == SIGINT ? "SIGINT" : number == SIGUSR2 ? "SIGUSR2" : "SIGTERM";
}

bool bs_cli_snapshot_asked(void)
{
    const bool asked = snapshot_asked;
    if (asked) snapshot_asked = 0;
    return asked;
}
