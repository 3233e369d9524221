# Snapshots.
check_PROGRAMS += tests/snapshot/snap_run
tests_snapshot_snap_run_SOURCES = tests/snapshot/snap_run.c tests/snapshot/rig.h
tests_snapshot_snap_run_LDADD = $(BS_LIBS) $(BS_SYSLIBS)
