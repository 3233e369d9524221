/* nccl_library.h: NCCL's functions, from the library as it is found when the program runs. Private to comm/nccl*.c. */
#ifndef BS_NCCL_LIBRARY_H
#define BS_NCCL_LIBRARY_H

#include <nccl.h>

#define BS_NCCL_CALLS(X)                                                                                     \
    X(GetVersion)                                                                                            \
    X(GetUniqueId)                                                                                           \
    X(CommInitRankConfig)                                                                                    \
    X(CommGetAsyncError)                                                                                     \
    X(CommFinalize)                                                                                          \
    X(CommDestroy)                                                                                           \
    X(CommAbort)                                                                                             \
    X(AllReduce)                                                                                             \
    X(AllGather)                                                                                             \
    X(GetErrorString)                                                                                        \
    X(GetLastError)

typedef struct bs_nccl_library {
#define X(name) __typeof__(&nccl##name) name;
    BS_NCCL_CALLS(X)
#undef X
    int version; /* as 22803 */
} bs_nccl_library;

/* Opened once a process and never closed. NULL with one line in why where it is missing or too old. One thread. */
const bs_nccl_library *bs_nccl_load(char *why, size_t bytes);

#endif
