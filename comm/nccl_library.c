/* nccl_library.c: opens libnccl.so.2 when ranks have GPUs.
 *
 * Opened rather than linked, so that one build also starts on laptops and login nodes that have no NCCL: the
 * CUDA runtime is linked statically for the same reason. The loader's own places come first (LD_LIBRARY_PATH,
 * modules), then where configure found it.
 */
#include "config.h"

#include "comm/comm_private.h"
#include "comm/nccl_library.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

enum { OLDEST = 21800 };

/* What NCCL would choose otherwise from run to run or between a graph and its eager twin; what the user has set in the
 * environment stands. NVLS leaves the order of a sum to the switch, and is not to be had on every host. Registration
 * by graphs lets a graph take another algorithm than the same calls outside of it. */
static void set_defaults(void)
{
    setenv("NCCL_NVLS_ENABLE", "0", 0);
    setenv("NCCL_GRAPH_REGISTER", "0", 0);
}

static void *open_library(void)
{
    void *handle = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!handle && BS_NCCL_LIBDIR[0]) handle = dlopen(BS_NCCL_LIBDIR "/libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    return handle;
}

/* ISO C has no conversion between pointers to objects and to functions; POSIX promises one. */
#define FIND(name)                                                                                           \
    *(void **)&library.name = dlsym(handle, "nccl" #name);                                                   \
    if (!library.name) {                                                                                     \
        snprintf(why, bytes, "libnccl.so.2 has no nccl%s", #name);                                           \
        return NULL;                                                                                         \
    }

const bs_nccl_library *bs_nccl_load(char *why, size_t bytes)
{
    static bs_nccl_library library;
    if (library.version) return &library;
    set_defaults();
    void *handle = open_library();
    if (!handle) {
        snprintf(why, bytes, "libnccl.so.2 cannot be opened");
        return NULL;
    }
    BS_NCCL_CALLS(FIND)
    int version = 0;
    if (library.GetVersion(&version) != ncclSuccess || version < OLDEST) {
        snprintf(why, bytes, "libnccl.so.2 is version %d, %d is needed", version, OLDEST);
        return NULL;
    }
    library.version = version;
    return &library;
}

int bs_nccl_version(char *why, size_t bytes)
{
    const bs_nccl_library *library = bs_nccl_load(why, bytes);
    return library ? library->version : 0;
}
