/* fault_kind.h: what bs_numeric_fault.slot says where the fault is not in a slot of the cache. Private to kernels/. */
#ifndef BS_FAULT_KIND_H
#define BS_FAULT_KIND_H

enum {
    BS_FAULT_LOGIT = -1,        /* candidates: the logit of id `token` is NaN */
    BS_FAULT_NO_CANDIDATE = -2, /* sample: nothing to draw from at position `token` */
};

#endif
