/* test_watchdog.c: whom the watchdog blames for a hang. */
#include "config.h"

#include "comm/comm_private.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

enum { N = 4 };
static const double NOW = 100;

typedef struct machine {
    bs_watch_slot slots[N];
    bs_watch_memory beats[N];
} machine;

/* Four ranks at the same place of the same step, all beating. */
static void reset(machine *m)
{
    memset(m, 0, sizeof *m);
    for (int i = 0; i < N; i++) {
        m->slots[i].rank = 10 + i;
        m->slots[i].step = 648;
        m->slots[i].layer = 2;
        m->slots[i].phase = BS_PHASE_O_PROJ;
        m->slots[i].armed = m->slots[i].alive = true;
        m->beats[i].since = NOW - 0.1;
    }
}

static void expect(const machine *m, int self, int culprit, bool stopped)
{
    bool silent;
    const bs_watch_slot *slot = bs_watchdog_find_culprit(m->slots, m->beats, N, self, NOW, &silent);
    assert_int_equal((int)slot->rank, 10 + culprit);
    assert_int_equal(silent, stopped);
}

/* The rank that asks is in this very line, however long ago its own beats were noted. */
static void test_never_self(void **state)
{
    (void)state;
    machine m;
    for (int self = 0; self < N; self++)
        for (int stopped = 0; stopped < N; stopped++) {
            if (stopped == self) continue;
            reset(&m);
            m.beats[self].since = NOW - 8;
            m.beats[stopped].since = NOW - 7;
            expect(&m, self, stopped, true);
        }
}

static void test_longest_silence(void **state)
{
    (void)state;
    machine m;
    reset(&m);
    m.beats[1].since = NOW - 2.5; /* starved by what ends the job */
    m.beats[3].since = NOW - 7;
    m.slots[1].layer = 0;
    expect(&m, 0, 3, true);
    m.slots[3].alive = false; /* it has left: its silence is no fault */
    expect(&m, 0, 1, true);
}

static void test_furthest_behind(void **state)
{
    (void)state;
    machine m;
    reset(&m);
    m.beats[2].since = NOW - 1; /* a busy machine, not a stop */
    m.slots[2].phase = BS_PHASE_EMBED;
    expect(&m, 0, 2, false);
    m.slots[3].layer = 1;
    expect(&m, 0, 3, false);
    m.slots[1].step = 647;
    m.slots[1].layer = 29;
    expect(&m, 0, 1, false);
    m.slots[0].step = 600; /* a rank that hangs itself says so itself */
    expect(&m, 0, 0, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_never_self),
        cmocka_unit_test(test_longest_silence),
        cmocka_unit_test(test_furthest_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
