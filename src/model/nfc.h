/* nfc.h: Unicode's canonical composition (NFC, UAX #15), which some tokenizers ask for. */
#ifndef BS_NFC_H
#define BS_NFC_H

#include "src/base/status.h"

#include <stddef.h>

/* Whether text may change: false is certain. */
bool bs_nfc_may_change(const char *text, size_t bytes);
/* The text composed, in a heap buffer of *n bytes that the caller frees. Text is well-formed UTF-8. NOMEM. */
bs_status bs_nfc(const char *text, size_t bytes, char **out, size_t *n);

#endif
