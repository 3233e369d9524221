# Snapshots.
check_PROGRAMS += tests/snapshot/snap_run
tests_snapshot_snap_run_SOURCES = tests/snapshot/snap_run.c tests/snapshot/rig.h
tests_snapshot_snap_run_LDADD = $(BS_LIBS) $(BS_SYSLIBS)

if HAVE_CMOCKA
check_PROGRAMS += tests/snapshot/test_damage
TESTS += tests/snapshot/test_damage
tests_snapshot_test_damage_SOURCES = tests/snapshot/test_damage.c tests/snapshot/rig.h
tests_snapshot_test_damage_LDADD = $(BS_TEST_LIBS)
endif

BS_SNAPSHOT_TESTS = tests/snapshot/test_reshard.py tests/snapshot/test_reader.py tests/snapshot/test_commands.py
TESTS += $(BS_SNAPSHOT_TESTS)
EXTRA_DIST += $(BS_SNAPSHOT_TESTS) tests/snapshot/snapdir.py

clean-local: clean-snapshot
clean-snapshot:
	-rm -rf tests/snapshot/work
