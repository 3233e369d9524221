/* ops_check.h: how the ops refuse a bad argument: by naming the op and the condition it needs. Private to
 * kernels/. */
#ifndef BS_OPS_CHECK_H
#define BS_OPS_CHECK_H

#include "kernels/backend.h"

#define REQUIRE(op, condition)                                                                               \
    do {                                                                                                     \
        if (!(condition)) return bs_fail(BS_STATUS_RANGE, "%s: needs %s", op, #condition);                   \
    } while (0)

static inline bool is_act(const bs_stream *stream, bs_type act)
{
    return act == stream->device->info.act_type;
}

#endif
