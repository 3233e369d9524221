/* backend.c: a CPU rank behind the device seam. Device memory is host memory, work is done when an op
 * returns. */
#include "config.h"

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/pool.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#ifdef HAVE_OPENBLAS
#include <cblas.h>
#endif

/* Pages of 2 MiB where the system has them: a decode step walks over all of the cache, and in a virtual machine
 * the walk of page tables costs as much as the reading. */
static void *memory_alloc(bs_device *device, size_t bytes)
{
    const size_t huge = (size_t)2 << 20;
    void *memory; /* aligned_alloc would want a multiple of its alignment */
    if (posix_memalign(&memory, bytes < huge ? 4096 : huge, bytes) != 0) return NULL;
#ifdef MADV_HUGEPAGE
    if (bytes >= huge) madvise(memory, bytes, MADV_HUGEPAGE); /* a wish: nothing depends on it */
#endif
    memset(memory, 0, bytes); /* touched now: no page faults in a step */
    return memory;
}

static void memory_free(bs_device *device, void *memory)
{
    free(memory);
}

/* Other ranks and the page cache share it. */
static size_t memory_available(const bs_device *device)
{
    return SIZE_MAX;
}

static bs_status copy(bs_stream *stream, void *dst, const void *src, size_t bytes, int direction)
{
    memmove(dst, src, bytes);
    return BS_STATUS_OK;
}

static bs_status fill_zero(bs_stream *stream, void *dst, size_t bytes)
{
    memset(dst, 0, bytes);
    return BS_STATUS_OK;
}

static bs_status stream_open(bs_stream *stream)
{
    return BS_STATUS_OK;
}

static void stream_close(bs_stream *stream)
{
}

static void *host_alloc(bs_device *device, size_t bytes)
{
    return calloc(bytes, 1);
}

static void host_free(bs_device *device, void *memory)
{
    free(memory);
}

/* Work is done when an op returns, and what goes wrong is said by the op itself. */
static bs_status stream_nothing(bs_stream *stream)
{
    return BS_STATUS_OK;
}

static bs_status timer_open(bs_device *device, void **marks)
{
    *marks = calloc(2, sizeof(struct timespec));
    return *marks ? BS_STATUS_OK : bs_fail(BS_STATUS_NOMEM, "timer: no memory");
}

static bs_status timer_mark(bs_stream *stream, void *marks, int which)
{
    clock_gettime(CLOCK_MONOTONIC, (struct timespec *)marks + which);
    return BS_STATUS_OK;
}

static bs_status timer_read(void *marks, double *ms)
{
    const struct timespec *t = marks;
    *ms = (double)(t[1].tv_sec - t[0].tv_sec) * 1e3 + (double)(t[1].tv_nsec - t[0].tv_nsec) * 1e-6;
    return BS_STATUS_OK;
}

static void device_close(bs_device *device)
{
    bs_pool_close(device->state);
}

static const bs_backend backend = {
#define X(op) .op = bs_cpu_##op,
    BS_OP_LIST(X)
#undef X
        .pack = bs_cpu_pack,
    .unpack = bs_cpu_unpack,
    .mark_seen = bs_cpu_mark_seen,
    .keep_tokens = bs_cpu_keep_tokens,
    .feed_tokens = bs_cpu_feed_tokens,
    .stream_read = bs_cpu_stream_read,
    .slot_bytes = bs_cpu_slot_bytes,
    .gemm_workspace = bs_cpu_gemm_workspace,
    .attend_workspace = bs_cpu_attend_workspace,
    .memory_alloc = memory_alloc,
    .memory_free = memory_free,
    .host_alloc = host_alloc,
    .host_free = host_free,
    .memory_available = memory_available,
    .copy = copy,
    .fill_zero = fill_zero,
    .stream_open = stream_open,
    .stream_close = stream_close,
    .stream_sync = stream_nothing,
    .stream_fault = stream_nothing,
    .device_close = device_close,
    .timer_open = timer_open,
    .timer_close = free,
    .timer_mark = timer_mark,
    .timer_read = timer_read,
};

static bool has_isa(bs_isa isa)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                __builtin_cpu_supports("f16c");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return isa == BS_ISA_SCALAR || (isa == BS_ISA_AVX2 && avx2) || (isa == BS_ISA_AVX512 && avx512);
#else
    return isa == BS_ISA_SCALAR;
#endif
}

static void read_cpu_name(char *name, size_t bytes)
{
    char line[256];
    snprintf(name, bytes, "CPU");
    FILE *file = fopen("/proc/cpuinfo", "r");
    while (file && fgets(line, sizeof line, file)) {
        char *value = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !value) continue;
        value[strcspn(value, "\n")] = 0;
        snprintf(name, bytes, "%.80s", value + 2);
        break;
    }
    if (file) fclose(file);
}

bs_status bs_cpu_device_open(const bs_device_config *config, bs_device *device)
{
    static const char *const isa_names[] = {"auto", "scalar", "avx2", "avx512"};
    bs_isa isa = config->isa;
    if (config->n_threads < 1 || config->n_threads > 1024)
        return bs_fail(BS_STATUS_USAGE, "--threads %d: must be 1 … 1024", config->n_threads);
    if (isa == BS_ISA_AUTO)
        isa = has_isa(BS_ISA_AVX512) ? BS_ISA_AVX512 : has_isa(BS_ISA_AVX2) ? BS_ISA_AVX2 : BS_ISA_SCALAR;
    if (!has_isa(isa))
        return bs_fail(BS_STATUS_UNSUPPORTED, "--isa %s: this machine has no such", isa_names[isa]);
    device->state = bs_pool_open(config->n_threads);
    if (!device->state)
        return bs_fail(BS_STATUS_NOMEM, "--threads %d: could not be started", config->n_threads);
#ifdef HAVE_OPENBLAS
    openblas_set_num_threads(config->n_threads);
#endif
    char name[96];
    read_cpu_name(name, sizeof name);
    device->backend = &backend;
    device->info = (bs_device_info){.kind = BS_DEVICE_CPU,
                                    .isa = isa,
                                    .n_threads = config->n_threads,
                                    .act_type = BS_TYPE_F32,
                                    .memory_bytes = (size_t)sysconf(_SC_PHYS_PAGES) *
                                                    (size_t)sysconf(_SC_PAGESIZE)};
    snprintf(device->info.name, sizeof device->info.name, "%s, %s, %d thread%s", name, isa_names[isa],
             config->n_threads, config->n_threads > 1 ? "s" : "");
    return BS_STATUS_OK;
}
