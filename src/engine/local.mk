noinst_LIBRARIES += libbs_engine.a
libbs_engine_a_SOURCES = src/engine/plan.h src/engine/engine.h src/engine/sched.h
