/* fuzz_safetensors.c: the input is a config.json, a NUL, and a safetensors file: the file is opened and every tensor
 * looked at; then both are a model, which is described, cut into shards and placed. */
#include "src/model/json_file.h"
#include "src/model/model_private.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>

static void touch_tensors(const bs_safetensors *all, const uint8_t *bytes, size_t size)
{
    const uint8_t *end = bytes + size;
    uint64_t sum = 0;
    for (int64_t i = 0; i < bs_safetensors_n_tensors(all); i++) {
        const bs_tensor *t = bs_safetensors_tensor_at(all, i);
        const uint8_t *data = t->data;
        FUZZ_CHECK(data > bytes && t->bytes > 0 && t->bytes <= (uint64_t)(end - data));
        FUZZ_CHECK(bs_safetensors_find(all, t->name.text) == t);
        (void)*(const volatile uint8_t *)data;
        (void)*(const volatile uint8_t *)(data + t->bytes - 1);
        sum += t->bytes;
    }
    FUZZ_CHECK(sum < size);
}

static bs_status open_model(const char *config, size_t config_bytes, const uint8_t *bytes, size_t size,
                            bs_model *model)
{
    json_t *root;
    BS_TRY(bs_safetensors_open_bytes("input", bytes, size, &model->safetensors));
    touch_tensors(model->safetensors, bytes, size);
    BS_TRY(bs_json_parse("config.json", config, config_bytes, &root));
    bs_status status = bs_model_describe_hf(model, "config.json", root);
    json_decref(root);
    return status;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *end = size ? memchr(data, 0, size) : NULL;
    bs_model *model;
    if (!end) return 0;
    size_t config_bytes = (size_t)(end - data);
    FUZZ_CHECK(bs_model_create("input", &model) == BS_STATUS_OK);
    bs_status status = open_model((const char *)data, config_bytes, end + 1, size - config_bytes - 1, model);
    if (status == BS_STATUS_OK) fuzz_cut(model);
    else fuzz_expect_line(status);
    bs_model_close(model);
    return 0;
}
