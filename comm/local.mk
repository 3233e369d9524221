noinst_LIBRARIES += libbs_comm.a
libbs_comm_a_SOURCES = comm/comm.h comm/comm_private.h comm/merge.h comm/grid.c comm/mpi.c comm/transport.c comm/collectives.c comm/exchange.c \
    comm/shared.c comm/merge.c comm/watchdog.c
libbs_comm_a_CFLAGS = $(AM_CFLAGS) $(MPI_CFLAGS)
libbs_comm_a_CPPFLAGS = $(AM_CPPFLAGS) $(NCCL_CPPFLAGS) $(CUDA_CPPFLAGS)
if HAVE_NCCL
libbs_comm_a_SOURCES += comm/nccl.c comm/nccl_library.c comm/nccl_library.h
else
EXTRA_DIST += comm/nccl.c comm/nccl_library.c comm/nccl_library.h
endif
