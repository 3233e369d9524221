# Faults: a library that fails or kills at the k-th system call, and the tests that run the program under it.
# No sanitizer in the library: it is loaded into programs with and without.
check_PROGRAMS += tests/faults/shim.so
tests_faults_shim_so_SOURCES = tests/faults/shim.c
tests_faults_shim_so_CFLAGS = -std=gnu11 -Wall -Wextra -fPIC $(WERROR)
tests_faults_shim_so_LDFLAGS = -shared
tests_faults_shim_so_LDADD =
BS_FAULT_TESTS = tests/faults/test_batch_faults.py tests/faults/test_snapshot_faults.py tests/faults/test_generate_faults.py \
    tests/faults/test_snapshot_kills.py
TESTS += $(BS_FAULT_TESTS)
EXTRA_DIST += $(BS_FAULT_TESTS) tests/faults/shim.py tests/faults/snapshots.py
