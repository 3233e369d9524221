# Plans, the forward pass, the loop, the scheduler.
EXTRA_DIST += tests/unit/engine_fixture.h
BS_ENGINE_TESTS = tests/unit/test_plan tests/unit/test_forward tests/unit/test_engine tests/unit/test_sched \
    tests/unit/test_score tests/unit/test_forced tests/unit/test_sched_snapshot
check_PROGRAMS += $(BS_ENGINE_TESTS)
TESTS += $(BS_ENGINE_TESTS)
tests_unit_test_forward_SOURCES = tests/unit/test_forward.c
tests_unit_test_forward_LDADD = $(BS_TEST_LIBS)
tests_unit_test_plan_SOURCES = tests/unit/test_plan.c
tests_unit_test_plan_LDADD = $(BS_TEST_LIBS)
tests_unit_test_engine_SOURCES = tests/unit/test_engine.c
tests_unit_test_engine_LDADD = $(BS_TEST_LIBS)
tests_unit_test_engine_LDFLAGS = -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=aligned_alloc
tests_unit_test_sched_SOURCES = tests/unit/test_sched.c
tests_unit_test_sched_LDADD = $(BS_TEST_LIBS)
tests_unit_test_score_SOURCES = tests/unit/test_score.c
tests_unit_test_score_LDADD = $(BS_TEST_LIBS)
tests_unit_test_forced_SOURCES = tests/unit/test_forced.c
tests_unit_test_forced_LDADD = $(BS_TEST_LIBS)
tests_unit_test_sched_snapshot_SOURCES = tests/unit/test_sched_snapshot.c
tests_unit_test_sched_snapshot_LDADD = $(BS_TEST_LIBS)
