/* chat.h: chat messages to prompt ids: ChatML, Llama-3 and Mistral, recognised from the file's template.
 *
 * The template's Jinja is not run; its family is told by its markers, and each family is written out here. Content is
 * tokenized as plain text, so a user cannot write a special token.
 */
#ifndef BS_CHAT_H
#define BS_CHAT_H

#include "src/model/tokenizer.h"

typedef enum bs_chat_family { BS_CHAT_NONE, BS_CHAT_CHATML, BS_CHAT_LLAMA3, BS_CHAT_MISTRAL } bs_chat_family;
/* Family of the tokenizer's template; BS_CHAT_NONE when it has none or an unknown one. */
bs_chat_family bs_chat_family_of(const bs_tokenizer *tokenizer);
const char *bs_chat_family_name(bs_chat_family family);

typedef struct bs_chat_message {
    const char *role; /* "system", "user", "assistant" */
    const char *content;
    size_t content_bytes;
} bs_chat_message;

/* Appends the prompt's ids, ending where the assistant's answer begins. With no system message the template's own
 * default is used where it has one. UNSUPPORTED without a family, or where
 * the template has no place for a system message; RANGE for an unknown role or, with Mistral, turns that do not
 * alternate. */
bs_status bs_chat_tokenize(const bs_tokenizer *tokenizer, const bs_chat_message *messages, int n_messages,
                           bs_tokens *out);

#endif
