noinst_LIBRARIES += libbs_comm.a
libbs_comm_a_SOURCES = comm/comm.h comm/merge.h comm/grid.c
libbs_comm_a_CFLAGS = $(AM_CFLAGS) $(MPI_CFLAGS)
