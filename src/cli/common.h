/* common.h: what several subcommands do the same way: open what the options name, read text, write to stdout.
 *
 * Nothing here is collective but where it says so; callers agree. Errors name the option.
 */
#ifndef BS_CLI_COMMON_H
#define BS_CLI_COMMON_H

#include "src/base/options.h"
#include "src/engine/engine.h"
#include "src/model/tokenizer.h"

#include <jansson.h>

/* --model, which must be there. */
bs_status bs_cli_open_model(const bs_options *options, bs_model **out);
/* --device, --threads, --isa, --device-mem. With several GPUs a rank takes the one of its number on the machine; comm NULL:
 * the first. */
bs_status bs_cli_open_device(const bs_options *options, const bs_comm *comm, bs_device **out);
/* --transport, for work on this device: collective, callers agree. Close the device with bs_cli_close_device then. */
bs_status bs_cli_use_transport(const bs_options *options, bs_comm *comm, bs_device *device);
void bs_cli_close_device(bs_comm *comm, bs_device *device);
/* --grid, for the ranks of comm and this model. */
bs_status bs_cli_choose_grid(const bs_options *options, const bs_comm *comm, const bs_model *model,
                             bs_grid *out);
/* --kv with --v-encoder where the subcommand takes that, --merge. */
bs_status bs_cli_read_kv(const bs_options *options, bs_kv_format *out);
bs_type bs_cli_read_dtype(const bs_options *options); /* F32: auto */
bs_status bs_cli_read_merge(const bs_options *options, bs_merge_method *out);
/* One format of --kv; and with --v-encoder. */
bs_status bs_cli_parse_format(const char *text, bs_kv_format *out);
bs_status bs_cli_parse_kv(const bs_options *options, const char *text, bs_kv_format *out);
const char *bs_isa_name(bs_isa isa);
/* --temperature, --top-k, --top-p, --min-p, --repeat-penalty, --seed. */
bs_sampling bs_cli_read_sampling(const bs_options *options);

/* --prompt, --prompt-file, or standard input when it is not a terminal; byte for byte, with a 0 behind. The
 * caller frees *text. */
bs_status bs_cli_read_text(const bs_options *options, char **text, size_t *bytes);
/* A whole file, or standard input for "-", the same way; `option` names it in an error. */
bs_status bs_cli_read_file(const char *option, const char *path, char **text, size_t *bytes);

/* Appends ids of text, parted by spaces, commas or newlines; `option` names the source in an error (RANGE). */
bs_status bs_cli_read_ids(const char *option, const char *text, int n_vocab, bs_tokens *out);

/* To standard output and out of its buffer: a full disk or a reader that left is BS_STATUS_IO. */
bs_status bs_cli_write(const void *data, size_t bytes);
__attribute__((format(printf, 1, 2))) bs_status bs_cli_print(const char *format, ...);
/* The same to standard output or standard error, whichever a table goes to. */
__attribute__((format(printf, 2, 3))) bs_status bs_cli_print_table(FILE *table, const char *format, ...);
/* One line of JSON; takes the reference, also on failure; NULL (jansson found no memory) is NOMEM. */
bs_status bs_cli_print_json(json_t *value);

/* A row of a CSV file: the values of a JSON object in their order, behind a line of its keys if `head`; null is
 * empty. `path` as --csv had it, for the error line; flushed, so that a run that is cut off keeps what it has. */
bs_status bs_cli_write_csv(FILE *file, const char *path, json_t *row, bool head);

/* What must be the same on all ranks for the collectives of their engines to match. It has no padding: a subcommand puts
 * it into what it sends of its own and compares as bytes. Of config it takes act, merge and stripe_pages. */
typedef struct bs_cli_ground {
    int64_t heads, seq, merge, act, stripe_pages;
    uint64_t file_bytes;
    char transport[8]; /* as asked for */
} bs_cli_ground;
bs_cli_ground bs_cli_ground_of(const bs_options *options, const bs_model *model, const bs_grid *grid,
                               const bs_engine_config *config);
/* Two structs of `bytes` that begin with a bs_cli_ground, this rank's and rank 0's. MISMATCH, with the first option that is
 * not rank 0's and both values, or with `others`, which names the options of the rest. Callers agree. */
bs_status bs_cli_compare_ground(const void *mine, const void *rank0, size_t bytes, const char *others);

/* Every rank's bytes to rank 0, which gets memory for them and frees *all; NULL on the others. `what` begins the line
 * when there is none. Collective. */
bs_status bs_cli_gather(bs_comm *comm, const void *mine, size_t bytes, const char *what, void **all);

/* Ends the job from within a step, when the other ranks may wait in a collective; on one rank it returns the status. */
bs_status bs_cli_end_job(bs_comm *comm, bs_status status);

/* The table of --dry-run, from every rank's plan. */
bs_status bs_cli_print_memory(const bs_engine_memory *memory, int n_ranks);

#endif
