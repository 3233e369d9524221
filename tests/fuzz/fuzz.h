/* fuzz.h: what the fuzz targets share.
 *
 * A target is a libFuzzer entry, LLVMFuzzerTestOneInput. Built with ../configure --enable-fuzzers (clang) it is driven
 * by libFuzzer; otherwise fuzz_main.c replays the committed corpus, which is what make check does.
 */
#ifndef BS_FUZZ_H
#define BS_FUZZ_H

#include "src/model/tokenizer_private.h"

#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A property of the program that an input has broken. */
#define FUZZ_CHECK(condition)                                                                                \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: %s does not hold; error line: %s\n", __FILE__, __LINE__, #condition,     \
                    bs_error_message());                                                                     \
            abort();                                                                                         \
        }                                                                                                    \
    } while (0)

/* An error must have its line; forgets it. */
void fuzz_expect_line(bs_status status);

/* The shards of a model on 1 … 5 ranks, and the weights of three placed: whatever was opened can be cut. */
void fuzz_cut(const bs_model *model);

/* The tokenizer of family 0 … 3 (gpt-2, smollm, llama-bpe, qwen2) over one small vocabulary: all 256 bytes, some merges,
 * control tokens of both chat families and a user-defined one. Made at the first call, never closed. */
enum { FUZZ_FAMILIES = 4 };
bs_tokenizer *fuzz_tokenizer(int family);

#endif
