noinst_LIBRARIES += libbs_snapshot.a
libbs_snapshot_a_SOURCES = src/snapshot/snapshot.h src/snapshot/snapshot_private.h src/snapshot/job.h \
    src/snapshot/shape.c src/snapshot/segment_create.c src/snapshot/pages.c src/snapshot/staging.c src/snapshot/workers.h src/snapshot/workers.c src/snapshot/manifest.c \
    src/snapshot/fingerprint.c src/snapshot/weights.c src/snapshot/dirs.c src/snapshot/lock.c src/snapshot/snapshots.c src/snapshot/capture.c src/snapshot/phases.c \
    src/snapshot/commit.c src/snapshot/dir.c src/snapshot/load.c src/snapshot/restore.c src/snapshot/gc.c src/snapshot/remove.c \
    src/snapshot/inspect.h src/snapshot/inspect.c src/snapshot/export.c
libbs_snapshot_a_CFLAGS = $(AM_CFLAGS) $(JANSSON_CFLAGS) $(HDF5_CFLAGS)
