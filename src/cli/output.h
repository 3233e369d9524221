/* output.h: where an answer goes: standard output, or the file of -o, which a resume cuts back and continues.
 *
 * What a snapshot says of the file is a length that is on the disk: a thread syncs it now and then, so that the steps do
 * not wait. The text behind it is not lost: it follows from the ids that the snapshot holds. Rank 0.
 */
#ifndef BS_CLI_OUTPUT_H
#define BS_CLI_OUTPUT_H

#include "src/base/status.h"

#include <stddef.h>
#include <stdint.h>

typedef struct bs_output bs_output;

/* path NULL: standard output. A file is made where there is none, and is otherwise as it was until begin or resume. */
bs_status bs_output_open(const char *path, bs_output **out);
/* Closes it as it is; a file that was made and never begun goes again. NULL is fine. */
void bs_output_close(bs_output *output);
/* There was no such file. */
bool bs_output_is_new(const bs_output *output);
/* From the beginning: a file that was there becomes empty. Nothing on standard output. */
bs_status bs_output_begin(bs_output *output);
/* Goes on behind `text` (n bytes), which an earlier run has written: a file must have the first n_kept of it, is cut there
 * and gets the rest; one that was only made now gets all of it. Standard output has what it had. n_kept −1: the earlier run
 * wrote elsewhere, and a file is begun. MISMATCH when the file has something else: nothing is changed then. */
bs_status bs_output_resume(bs_output *output, const char *text, size_t n, int64_t n_kept);
bs_status bs_output_write(bs_output *output, const void *data, size_t bytes);
/* Begins to bring what was written so far to the disk, if that is not on its way already. */
void bs_output_start_sync(bs_output *output);
/* How much is there for sure; −1 for standard output. */
int64_t bs_output_synced(bs_output *output);
/* Waits until all is. IO. */
bs_status bs_output_sync(bs_output *output);

#endif
