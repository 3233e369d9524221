/* batch.h: OpenAI's batch files: a request a line in, an answer a line out, and the file of answers that a job killed
 * at any moment leaves whole.
 *
 * The input line is {"custom_id", "method", "url", "body"}; the output line {"id", "custom_id", "response": {"status_code",
 * "request_id", "body"}, "error"}. A line that cannot be answered gets an output line with an error: "response" has status
 * 400 and the error as its body, "error" has {"code", "message", "line"}, the number of the input line, which alone
 * tells lines without a usable custom_id apart.
 *
 * Source: the OpenAI API reference, "Batch".
 */
#ifndef BS_BATCH_H
#define BS_BATCH_H

#include "src/serve/openai.h"

/* ---- lines ------------------------------------------------------------------------------------------------ */

typedef struct bs_batch_line {
    const char *custom_id; /* in root */
    json_t *root;
} bs_batch_line;

enum { BS_BATCH_MAX_ID_BYTES = 512 };

/* An object with a custom_id of 1 … BS_BATCH_MAX_ID_BYTES bytes. FORMAT otherwise. Free with bs_batch_line_close. */
bs_status bs_batch_line_open(const char *text, size_t bytes, bs_batch_line *out);
void bs_batch_line_close(bs_batch_line *line);
/* Its method, url and body as a request; the line must outlive it. RANGE or FORMAT names the field. */
bs_status bs_batch_line_read(const bs_batch_line *line, const bs_tokenizer *tokenizer,
                             const bs_openai_request *defaults, bs_openai_request *out);

/* Output lines, ended by a newline, from the heap; NULL: no memory. `number` is the input line's, from 1. */
char *bs_batch_answer_text(int64_t number, const char *custom_id, bs_openai_api api, const char *model,
                           const bs_request_stats *stats);
/* custom_id may be NULL; code: BS_BATCH_… below. */
char *bs_batch_error_text(int64_t number, const char *custom_id, const char *code, const char *message);
#define BS_BATCH_INVALID_LINE    "invalid_line"            /* no JSON object, no custom_id */
#define BS_BATCH_DUPLICATE_ID    "duplicate_custom_id"     /* an earlier line has it */
#define BS_BATCH_INVALID_REQUEST "invalid_request"         /* method, url or body */
#define BS_BATCH_TOO_LONG        "context_length_exceeded" /* prompt and max_tokens need more */

/* ---- the file of answers ---------------------------------------------------------------------------------- */

typedef struct bs_batch_answers bs_batch_answers;

/* Opens or creates the file, locks it (a job killed a moment ago may still have it: waits up to wait_s), reads which
 * lines are answered, and cuts off a last line that a kill has torn. BS_STATUS_IO, MISMATCH (another job writes it),
 * FORMAT (a line that is none of ours: nothing is changed). */
bs_status bs_batch_answers_open(const char *path, double wait_s, bs_batch_answers **out);
void bs_batch_answers_close(bs_batch_answers *answers);
/* Whether the custom_id is answered; whether the line without a custom_id of its own, by number, is. */
bool bs_batch_answers_has(const bs_batch_answers *answers, const char *custom_id);
bool bs_batch_answers_has_line(const bs_batch_answers *answers, int64_t number);
/* Appends whole lines and waits until they are on the disk. When it fails what was written of them is cut off again. */
bs_status bs_batch_answers_append(bs_batch_answers *answers, const char *text);
/* Whether both paths are one file. */
bool bs_batch_answers_same_file(const char *path, const char *other);

#endif
