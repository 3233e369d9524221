# Collectives, merges, the watchdog: programs that run at 1 2 3 4 5 ranks.
TEST_EXTENSIONS = .mpi .sh
MPI_LOG_COMPILER = $(SHELL) $(top_srcdir)/build-aux/mpi-test
SH_LOG_COMPILER = $(SHELL)
EXTRA_DIST += build-aux/mpi-launch build-aux/mpi-test build-aux/gpu-launch tests/comm/check.h tests/comm/ranks.h

check_PROGRAMS += tests/comm/test_comm.mpi tests/comm/test_merge.mpi
TESTS += tests/comm/test_comm.mpi tests/comm/test_merge.mpi
tests_comm_test_comm_mpi_SOURCES = tests/comm/test_comm.c
tests_comm_test_comm_mpi_LDADD = $(BS_TEST_LIBS)
tests_comm_test_merge_mpi_SOURCES = tests/comm/test_merge.c
tests_comm_test_merge_mpi_LDADD = $(BS_TEST_LIBS)

# The same programs with ranks on GPUs, and what a rank that comes to harm does to the others.
check_PROGRAMS += tests/faults/comm_run
tests_faults_comm_run_SOURCES = tests/faults/comm_run.c
tests_faults_comm_run_LDADD = $(BS_TEST_LIBS)
TESTS += tests/comm/on_gpu.sh tests/faults/test_comm_ranks.py
EXTRA_DIST += tests/comm/on_gpu.sh tests/faults/test_comm_ranks.py

# What needs no ranks: whom the watchdog blames, which ranks may use NCCL.
check_PROGRAMS += tests/unit/test_watchdog tests/unit/test_transport
TESTS += tests/unit/test_watchdog tests/unit/test_transport
tests_unit_test_transport_SOURCES = tests/unit/test_transport.c
tests_unit_test_transport_LDADD = $(BS_TEST_LIBS)
tests_unit_test_transport_CFLAGS = $(AM_CFLAGS) $(MPI_CFLAGS)
tests_unit_test_watchdog_SOURCES = tests/unit/test_watchdog.c
tests_unit_test_watchdog_LDADD = $(BS_TEST_LIBS)
tests_unit_test_watchdog_CFLAGS = $(AM_CFLAGS) $(MPI_CFLAGS)
