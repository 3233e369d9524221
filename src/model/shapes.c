/* shapes.c: the table. Numbers are those of the models' published config.json. tiny-… are nobody's: one of each
 * architecture, small enough for tests. */
#include "src/model/shapes.h"

#include <stddef.h>
#include <string.h>

#define L 128 * 1024

/* clang-format off */
static const bs_model_shape shapes[] = {
    /*                              layers hidden  H   K    D    FFN   vocab  context */
    {"tiny-d128",        "llama",     4,   256,   32,  8, 128,   512,    512, L, 1e-5, 5e5, 0, 0, 0, false, false, false},
    {"tiny-d64",         "llama",     3,   192,    6,  2,  64,   256,    600, L, 1e-5, 1e4, 8, 0, 0, true,  false, false},
    {"tiny-mistral",     "mistral",   3,   192,    6,  2,  64,   256,    600, L, 1e-5, 1e4, 0, 512, 0, false, false, false},
    {"tiny-qwen2",       "qwen2",     3,   192,    6,  2,  64,   256,    600, L, 1e-6, 1e6, 0, 0, 0, true,  true,  false},
    {"tiny-qwen3",       "qwen3",     3,   256,    8,  4, 128,   384,    600, L, 1e-6, 1e6, 0, 0, 0, true,  false, true},
    {"tiny-smollm3",     "smollm3",   4,   192,    6,  2,  64,   256,    600, L, 1e-6, 2e6, 0, 0, 4, true,  false, false},
    {"tinyllama-1.1b",   "llama",    22,  2048,   32,  4,  64,  5632,  32000, 2048, 1e-5, 1e4, 0, 0, 0, false, false, false},
    {"llama-2-7b",       "llama",    32,  4096,   32, 32, 128, 11008,  32000, 4096, 1e-5, 1e4, 0, 0, 0, false, false, false},
    {"llama-3-8b",       "llama",    32,  4096,   32,  8, 128, 14336, 128256, 8192, 1e-5, 5e5, 0, 0, 0, false, false, false},
    {"llama-3.1-8b",     "llama",    32,  4096,   32,  8, 128, 14336, 128256, L, 1e-5, 5e5, 8, 0, 0, false, false, false},
    {"llama-3.1-70b",    "llama",    80,  8192,   64,  8, 128, 28672, 128256, L, 1e-5, 5e5, 8, 0, 0, false, false, false},
    {"llama-3.1-405b",   "llama",   126, 16384,  128,  8, 128, 53248, 128256, L, 1e-5, 5e5, 8, 0, 0, false, false, false},
    {"llama-3.2-1b",     "llama",    16,  2048,   32,  8,  64,  8192, 128256, L, 1e-5, 5e5, 32, 0, 0, true, false, false},
    {"llama-3.2-3b",     "llama",    28,  3072,   24,  8, 128,  8192, 128256, L, 1e-5, 5e5, 32, 0, 0, true, false, false},
    {"mistral-7b-v0.1",  "mistral",  32,  4096,   32,  8, 128, 14336,  32000, 32768, 1e-5, 1e4, 0, 4096, 0, false, false, false},
    {"mistral-7b",       "mistral",  32,  4096,   32,  8, 128, 14336,  32768, 32768, 1e-5, 1e6, 0, 0, 0, false, false, false},
    {"mistral-nemo-12b", "mistral",  40,  5120,   32,  8, 128, 14336, 131072, L, 1e-5, 1e6, 0, 0, 0, false, false, false},
    {"qwen2.5-0.5b",     "qwen2",    24,   896,   14,  2,  64,  4864, 151936, 32768, 1e-6, 1e6, 0, 0, 0, true, true, false},
    {"qwen2.5-1.5b",     "qwen2",    28,  1536,   12,  2, 128,  8960, 151936, 32768, 1e-6, 1e6, 0, 0, 0, true, true, false},
    {"qwen2.5-3b",       "qwen2",    36,  2048,   16,  2, 128, 11008, 151936, 32768, 1e-6, 1e6, 0, 0, 0, true, true, false},
    {"qwen2.5-7b",       "qwen2",    28,  3584,   28,  4, 128, 18944, 152064, 32768, 1e-6, 1e6, 0, 0, 0, false, true, false},
    {"qwen2.5-14b",      "qwen2",    48,  5120,   40,  8, 128, 13824, 152064, 32768, 1e-6, 1e6, 0, 0, 0, false, true, false},
    {"qwen2.5-32b",      "qwen2",    64,  5120,   40,  8, 128, 27648, 152064, 32768, 1e-6, 1e6, 0, 0, 0, false, true, false},
    {"qwen2.5-72b",      "qwen2",    80,  8192,   64,  8, 128, 29568, 152064, 32768, 1e-6, 1e6, 0, 0, 0, false, true, false},
    {"qwen3-0.6b",       "qwen3",    28,  1024,   16,  8, 128,  3072, 151936, 40960, 1e-6, 1e6, 0, 0, 0, true, false, true},
    {"qwen3-1.7b",       "qwen3",    28,  2048,   16,  8, 128,  6144, 151936, 40960, 1e-6, 1e6, 0, 0, 0, true, false, true},
    {"qwen3-4b",         "qwen3",    36,  2560,   32,  8, 128,  9728, 151936, 40960, 1e-6, 1e6, 0, 0, 0, true, false, true},
    {"qwen3-8b",         "qwen3",    36,  4096,   32,  8, 128, 12288, 151936, 40960, 1e-6, 1e6, 0, 0, 0, false, false, true},
    {"qwen3-14b",        "qwen3",    40,  5120,   40,  8, 128, 17408, 151936, 40960, 1e-6, 1e6, 0, 0, 0, false, false, true},
    {"qwen3-32b",        "qwen3",    64,  5120,   64,  8, 128, 25600, 151936, 40960, 1e-6, 1e6, 0, 0, 0, false, false, true},
    {"smollm2-135m",     "llama",    30,   576,    9,  3,  64,  1536,  49152, 8192, 1e-5, 1e5, 0, 0, 0, true, false, false},
    {"smollm2-360m",     "llama",    32,   960,   15,  5,  64,  2560,  49152, 8192, 1e-5, 1e5, 0, 0, 0, true, false, false},
    {"smollm2-1.7b",     "llama",    24,  2048,   32, 32,  64,  8192,  49152, 8192, 1e-5, 1.3e5, 0, 0, 0, true, false, false},
    {"smollm3-3b",       "smollm3",  36,  2048,   16,  4, 128, 11008, 128256, 65536, 1e-6, 5e6, 0, 0, 4, true, false, false},
};
/* clang-format on */
enum { N_SHAPES = sizeof shapes / sizeof shapes[0] };

const bs_model_shape *bs_model_shape_at(int i)
{
    return i >= 0 && i < N_SHAPES ? &shapes[i] : NULL;
}

const bs_model_shape *bs_model_shape_find(const char *name)
{
    for (int i = 0; i < N_SHAPES; i++)
        if (strcmp(shapes[i].name, name) == 0) return &shapes[i];
    return NULL;
}
