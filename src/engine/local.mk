noinst_LIBRARIES += libbs_engine.a
libbs_engine_a_SOURCES = src/engine/plan.h src/engine/engine.h src/engine/sched.h src/engine/engine_private.h \
    src/engine/cost.h src/engine/request.h src/engine/plan.c src/engine/memory.c src/engine/engine.c \
    src/engine/forward.c src/engine/logits.c src/engine/step.c src/engine/graph.c src/engine/chain.c src/engine/loop.c src/engine/boundary.c src/engine/cost.c \
    src/engine/request.c src/engine/sched.c src/engine/forced.h src/engine/forced.c src/engine/score.h src/engine/score.c
