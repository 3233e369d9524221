/* device.c: devices, streams and buffers, whatever is behind them, and the account of what was allocated. */
#include "config.h"

#include "kernels/backend.h"
#include "src/base/progress.h"
#include "kernels/fault_kind.h"

#include <stdlib.h>
#include <string.h>

struct bs_buffer {
    bs_device *device;
    void *memory;
    size_t bytes;
};

bs_status bs_device_open(const bs_device_config *config, bs_device **out)
{
    bs_device *device = calloc(1, sizeof *device);
    if (!device) return bs_fail(BS_STATUS_NOMEM, "device: %zu bytes", sizeof *device);
    bs_status status;
    if (config->kind == BS_DEVICE_CPU) {
        status = bs_cpu_device_open(config, device);
    } else {
#ifdef BS_HAVE_CUDA
        status = bs_cuda_device_open(config, device);
#else
        status = bs_fail(BS_STATUS_UNSUPPORTED, "GPU %d: this build has no CUDA", config->ordinal);
#endif
    }
    if (status != BS_STATUS_OK) {
        free(device);
        return status;
    }
    device->info.memory_cap = config->memory_cap;
    device->ordinal = config->ordinal;
    *out = device;
    return BS_STATUS_OK;
}

void bs_device_close(bs_device *device)
{
    if (!device) return;
    device->backend->device_close(device);
    free(device);
}

bs_status bs_device_enter(bs_device *device)
{
    return device->backend->device_enter ? device->backend->device_enter(device) : BS_STATUS_OK;
}

const bs_device_info *bs_device_get_info(const bs_device *device)
{
    return &device->info;
}

int bs_device_count_gpus(void)
{
#ifdef BS_HAVE_CUDA
    return bs_cuda_count_gpus();
#else
    return 0;
#endif
}

static bs_status create_stream(bs_device *device, bool background, bs_stream **out)
{
    bs_stream *stream = calloc(1, sizeof *stream);
    if (!stream) return bs_fail(BS_STATUS_NOMEM, "stream: %zu bytes", sizeof *stream);
    stream->device = device;
    stream->background = background;
    bs_status status = device->backend->stream_open(stream);
    if (status != BS_STATUS_OK) {
        free(stream);
        return status;
    }
    *out = stream;
    return BS_STATUS_OK;
}

bs_status bs_stream_create(bs_device *device, bs_stream **out)
{
    return create_stream(device, false, out);
}

bs_status bs_stream_create_background(bs_device *device, bs_stream **out)
{
    return create_stream(device, true, out);
}

void bs_stream_destroy(bs_stream *stream)
{
    if (!stream) return;
    stream->device->backend->stream_close(stream);
    free(stream);
}

bs_device *bs_stream_device(const bs_stream *stream)
{
    return stream->device;
}

void *bs_stream_native(const bs_stream *stream)
{
    const bs_backend *backend = stream->device->backend;
    return backend->stream_native ? backend->stream_native(stream) : NULL;
}

bs_status bs_stream_sync(bs_stream *stream)
{
    return stream->device->backend->stream_sync(stream);
}

bs_status bs_stream_check(bs_stream *stream)
{
    BS_TRY(bs_stream_sync(stream));
    return bs_stream_fault(stream);
}

bs_status bs_stream_fault(bs_stream *stream)
{
    BS_TRY(stream->device->backend->stream_fault(stream));
    bs_numeric_fault fault = stream->fault;
    if (!fault.seen) return BS_STATUS_OK;
    memset(&stream->fault, 0, sizeof stream->fault);
    if (fault.slot == BS_FAULT_LOGIT)
        return bs_fail(BS_STATUS_NUMERIC, "logit of token %d is not a number", fault.token);
    if (fault.slot == BS_FAULT_NO_CANDIDATE)
        return bs_fail(BS_STATUS_NUMERIC, "no candidate to draw from at position %d", fault.token);
    return bs_fail(BS_STATUS_NUMERIC,
                   "%s holds NaN or infinity: layer %d, KV head %d, slot %d, token %d of its page",
                   fault.is_v ? "V" : "K", fault.layer, fault.kv_head, fault.slot, fault.token);
}

size_t bs_device_memory_left(const bs_device *device)
{
    size_t left = device->backend->memory_available(device), cap = device->info.memory_cap;
    size_t under = cap > device->allocated_bytes ? cap - device->allocated_bytes : 0;
    return cap != 0 && under < left ? under : left;
}

/* "quantized pool: 11.2 GiB are needed, of --device-mem 8.00 GiB 1.50 GiB are left" */
static bs_status fail_over_cap(const bs_device *device, size_t bytes, const char *what)
{
    char needed[32], cap[32], left[32];
    bs_format_bytes(bytes, needed, sizeof needed);
    bs_format_bytes(device->info.memory_cap, cap, sizeof cap);
    bs_format_bytes(device->info.memory_cap - device->allocated_bytes, left, sizeof left);
    return bs_fail(BS_STATUS_NOMEM, "%s: %s are needed, of --device-mem %s %s are left", what, needed, cap,
                   left);
}

bs_status bs_buffer_alloc(bs_device *device, size_t bytes, const char *what, bs_buffer **out)
{
    if (device->info.memory_cap != 0 && bytes > device->info.memory_cap - device->allocated_bytes)
        return fail_over_cap(device, bytes, what);
    bs_buffer *buffer = calloc(1, sizeof *buffer);
    if (!buffer) return bs_fail(BS_STATUS_NOMEM, "%s: no memory for its handle", what);
    size_t rounded = (bytes + 4095) / 4096 * 4096;
    if (rounded < bytes) rounded = bytes; /* absurd: let the allocator refuse it */
    buffer->memory = device->backend->memory_alloc(device, rounded ? rounded : 4096);
    if (!buffer->memory) {
        free(buffer);
        char needed[32];
        bs_format_bytes(bytes, needed, sizeof needed);
        return bs_fail(BS_STATUS_NOMEM, "%s: %s could not be had from %s", what, needed, device->info.name);
    }
    buffer->device = device;
    buffer->bytes = bytes;
    device->allocated_bytes += bytes;
    device->allocation_count++;
    *out = buffer;
    return BS_STATUS_OK;
}

void bs_buffer_free(bs_buffer *buffer)
{
    if (!buffer) return;
    buffer->device->allocated_bytes -= buffer->bytes;
    buffer->device->backend->memory_free(buffer->device, buffer->memory);
    free(buffer);
}

bs_status bs_host_alloc(bs_device *device, size_t bytes, const char *what, void **out)
{
    void *memory = device->backend->host_alloc(device, bytes ? bytes : 1);
    if (!memory) return bs_fail(BS_STATUS_NOMEM, "%s: no memory for %zu bytes of the host", what, bytes);
    *out = memory;
    return BS_STATUS_OK;
}

void bs_host_free(bs_device *device, void *memory)
{
    if (memory) device->backend->host_free(device, memory);
}

size_t bs_buffer_bytes(const bs_buffer *buffer)
{
    return buffer->bytes;
}

void *bs_buffer_at(const bs_buffer *buffer, size_t offset)
{
    return (char *)buffer->memory + offset;
}

size_t bs_device_allocated_bytes(const bs_device *device)
{
    return device->allocated_bytes;
}

uint64_t bs_device_allocation_count(const bs_device *device)
{
    return device->allocation_count;
}

static bs_status copy(bs_stream *stream, void *dst, const void *src, size_t bytes, int direction)
{
    return bytes == 0 ? BS_STATUS_OK : stream->device->backend->copy(stream, dst, src, bytes, direction);
}

bs_status bs_copy_to_device(bs_stream *stream, void *device_dst, const void *host_src, size_t bytes)
{
    return copy(stream, device_dst, host_src, bytes, BS_COPY_TO_DEVICE);
}

bs_status bs_copy_to_host(bs_stream *stream, void *host_dst, const void *device_src, size_t bytes)
{
    return copy(stream, host_dst, device_src, bytes, BS_COPY_TO_HOST);
}

bs_status bs_copy_on_device(bs_stream *stream, void *device_dst, const void *device_src, size_t bytes)
{
    return copy(stream, device_dst, device_src, bytes, BS_COPY_ON_DEVICE);
}

bs_status bs_fill_zero(bs_stream *stream, void *device_dst, size_t bytes)
{
    return bytes == 0 ? BS_STATUS_OK : stream->device->backend->fill_zero(stream, device_dst, bytes);
}
