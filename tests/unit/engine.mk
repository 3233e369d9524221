# Plans, the forward pass, the loop, the scheduler.
EXTRA_DIST += tests/unit/engine_fixture.h
check_PROGRAMS += tests/unit/test_plan
TESTS += tests/unit/test_plan
tests_unit_test_plan_SOURCES = tests/unit/test_plan.c
tests_unit_test_plan_LDADD = $(BS_TEST_LIBS)
