noinst_LIBRARIES += libbs_comm.a
libbs_comm_a_SOURCES = comm/comm.h comm/comm_private.h comm/merge.h comm/grid.c comm/mpi.c comm/collectives.c comm/shared.c \
    comm/merge.c comm/watchdog.c
libbs_comm_a_CFLAGS = $(AM_CFLAGS) $(MPI_CFLAGS)
