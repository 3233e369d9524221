/* ops_check.h: how the ops refuse a bad argument: by naming the op and the condition it needs. Private to
 * kernels/. */
#ifndef BS_OPS_CHECK_H
#define BS_OPS_CHECK_H

#include "kernels/backend.h"

#define REQUIRE(op, condition)                                                                               \
    do {                                                                                                     \
        if (!(condition)) return bs_fail(BS_STATUS_RANGE, "%s: needs %s", op, #condition);                   \
    } while (0)

/* A CPU's activations are F32; a GPU takes BF16, its own, and F16 and F32, for models and tests that need them. */
static inline bool is_act(const bs_stream *stream, bs_type act)
{
    if (stream->device->info.kind == BS_DEVICE_CPU) return act == BS_TYPE_F32;
    return act == BS_TYPE_F32 || act == BS_TYPE_F16 || act == BS_TYPE_BF16;
}

#endif
