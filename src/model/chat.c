/* chat.c: the ChatML, Llama-3 and Mistral families, and what is read from the template beside the family.
 *
 * Running Jinja for three shapes of text would be a language to maintain, and one that a file's author writes.
 * Markers tell the family; five things that differ within a family are read from the template's text:
 *
 * - The default system message (ChatML: SmolLM2, Qwen2, Qwen2.5). A template that has one spells the whole
 * turn in one string literal, '<|im_start|>system\n…<|im_end|>\n'. A literal that stops before the content
 * (for the caller's own system message, or for tools) is not one.
 * - bos: written first when the template names bos_token.
 * - Trimmed content: always in Llama-3; in ChatML when the template pipes content through trim.
 * - Llama-3.1 and later put a preamble with dates before the system message, and write it without one too.
 * Today's date is the one the template sets itself ("26 Jul 2024"): a prompt that changes at midnight would
 * make runs impossible to repeat and cached prefixes worthless.
 * - Mistral's versions differ in the spaces around [INST], [/INST] and an answer, in the message that a system message
 * joins (the first or the last), and in whether the markers are special tokens. The literals say the former, the
 * vocabulary the latter.
 *
 * Not read: tools, images, and the reasoning blocks that some templates cut out of earlier answers.
 */
#include "src/model/chat.h"
#include "src/model/tokenizer_private.h"
#include "src/model/utf8.h"

#include <stdlib.h>
#include <string.h>

static int32_t find_special(const bs_tokenizer *tokenizer, const char *text)
{
    int32_t id = bs_tokenizer_find(tokenizer, text, strlen(text));
    return id >= 0 && bs_tokenizer_is_special(tokenizer, id) ? id : -1;
}

bs_chat_family bs_chat_family_of(const bs_tokenizer *tokenizer)
{
    const char *template = bs_tokenizer_chat_template(tokenizer);
    if (strstr(template, "<|start_header_id|>") && strstr(template, "<|eot_id|>") &&
        find_special(tokenizer, "<|start_header_id|>") >= 0 &&
        find_special(tokenizer, "<|end_header_id|>") >= 0 && find_special(tokenizer, "<|eot_id|>") >= 0)
        return BS_CHAT_LLAMA3;
    /* <|im_sep|> is another family's that borrows ChatML's markers; SmolLM3 writes a system turn with the date. */
    if (strstr(template, "<|im_start|>") && !strstr(template, "<|im_sep|>") &&
        !strstr(template, "## Metadata") && find_special(tokenizer, "<|im_start|>") >= 0 &&
        find_special(tokenizer, "<|im_end|>") >= 0)
        return BS_CHAT_CHATML;
    /* <<SYS>> is Llama-2's, [SYSTEM_PROMPT] a later Mistral's. */
    if (strstr(template, "[INST]") && strstr(template, "[/INST]") && strstr(template, "eos_token") &&
        !strstr(template, "<<SYS>>") && !strstr(template, "[SYSTEM_PROMPT]") &&
        bs_tokenizer_eos(tokenizer) >= 0)
        return BS_CHAT_MISTRAL;
    return BS_CHAT_NONE;
}

const char *bs_chat_family_name(bs_chat_family family)
{
    static const char *const names[] = {"none", "chatml", "llama3", "mistral"};
    return names[family];
}

/* The prompt so far: ids, and plain text that is tokenized when a special token or the end comes. */
typedef struct prompt {
    const bs_tokenizer *tokenizer;
    bs_tokens *out;
    size_t begin; /* of this prompt in out */
    char *text;
    size_t bytes, capacity;
} prompt;

static bs_status add_text(prompt *prompt, const char *text, size_t bytes)
{
    if (prompt->bytes + bytes > prompt->capacity || !prompt->text) {
        size_t capacity = 2 * prompt->capacity + bytes + 64;
        char *longer = realloc(prompt->text, capacity);
        if (!longer) return bs_fail(BS_STATUS_NOMEM, "chat: out of memory for %zu bytes", capacity);
        prompt->text = longer;
        prompt->capacity = capacity;
    }
    if (bytes) memcpy(prompt->text + prompt->bytes, text, bytes);
    prompt->bytes += bytes;
    return BS_STATUS_OK;
}

static bs_status add_string(prompt *prompt, const char *text)
{
    return add_text(prompt, text, strlen(text));
}

static bs_status flush_text(prompt *prompt)
{
    if (prompt->bytes == 0) return BS_STATUS_OK;
    BS_TRY(bs_tokenize_part(prompt->tokenizer, prompt->text, prompt->bytes, false,
                            prompt->out->n == prompt->begin, prompt->out));
    prompt->bytes = 0;
    return BS_STATUS_OK;
}

static bs_status add_special(prompt *prompt, const char *name)
{
    BS_TRY(flush_text(prompt));
    return bs_tokens_push(prompt->out, find_special(prompt->tokenizer, name));
}

/* White space as Python's str.strip() sees it, which is what Jinja's trim does: Unicode's, and the four
 * separators from U+001C on. */
static bool is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
           c == 0x3000;
}

/* Content is well-formed UTF-8. */
static void trim(const char **text, size_t *bytes)
{
    const char *begin = *text, *end = *text + *bytes;
    size_t length;
    uint32_t c = 0;
    while (begin < end) {
        bs_utf8_next(begin, (size_t)(end - begin), &length, &c);
        if (!is_space(c)) break;
        begin += length;
    }
    while (begin < end) {
        const char *last = end - 1;
        while (((unsigned char)*last & 0xc0) == 0x80) last--;
        bs_utf8_next(last, (size_t)(end - last), &length, &c);
        if (!is_space(c)) break;
        end = last;
    }
    *text = begin;
    *bytes = (size_t)(end - begin);
}

/* The quote that opens the first string literal beginning with these characters, NULL if there is none. */
static const char *find_literal(const char *template, const char *beginning)
{
    const char *found = strstr(template, beginning);
    while (found && (found == template || (found[-1] != '\'' && found[-1] != '"')))
        found = strstr(found + 1, beginning);
    return found ? found - 1 : NULL;
}

/* The value of the literal that `quote` opens, escapes resolved, 0-terminated; the caller frees it. */
static bs_status read_literal(const char *quote, char **out)
{
    char *value = malloc(strlen(quote) + 1), *end = value;
    if (!value) return bs_fail(BS_STATUS_NOMEM, "chat: out of memory");
    for (const char *from = quote + 1; *from && *from != *quote; from++) {
        char c = *from;
        if (c == '\\' && from[1]) {
            c = *++from;
            c = c == 'n' ? '\n' : c == 't' ? '\t' : c == 'r' ? '\r' : c;
        }
        *end++ = c;
    }
    *end = 0;
    *out = value;
    return BS_STATUS_OK;
}

/* ChatML's default system message: what stands between the markers of a literal that is a whole system turn.
 * *out is NULL when the template has none. */
static bs_status read_default_system(const char *template, char **out)
{
    static const char turn[] = "<|im_start|>system";
    *out = NULL;
    for (const char *quote = template; (quote = find_literal(quote, turn)); quote += sizeof turn) {
        char *value;
        BS_TRY(read_literal(quote, &value));
        char *content = value + sizeof turn, *end = strstr(value, "<|im_end|>");
        if (end && value[sizeof turn - 1] == '\n' && end > content) {
            size_t bytes = (size_t)(end - content);
            memmove(value, content, bytes);
            value[bytes] = 0;
            *out = value;
            return BS_STATUS_OK;
        }
        free(value);
    }
    return BS_STATUS_OK;
}

/* Whether message content goes through trim, spaces aside. */
static bool pipes_through_trim(const char *template)
{
    for (const char *bar = template; (bar = strchr(bar, '|')); bar++) {
        const char *before = bar, *after = bar + 1;
        while (before > template && before[-1] == ' ') before--;
        while (*after == ' ') after++;
        if (before - template >= 2 && (before[-1] == ']' || before[-1] == ')')) before--;
        if (before - template >= 2 && (before[-1] == '\'' || before[-1] == '"')) before--;
        if (before - template >= 7 && strncmp(before - 7, "content", 7) == 0 &&
            strncmp(after, "trim", 4) == 0)
            return true;
    }
    return false;
}

/* Llama-3.1's lines before the system message. */
static bool has_preamble(const char *template)
{
    return find_literal(template, "Cutting Knowledge Date: ") != NULL;
}

static bs_status add_preamble(prompt *prompt, const char *template)
{
    const char *quote = find_literal(template, "Cutting Knowledge Date: "), *date = template;
    char *value;
    BS_TRY(read_literal(quote, &value));
    bs_status status = add_string(prompt, value);
    free(value);
    BS_TRY(status);
    while ((date = strstr(date, "date_string = ")) && *(date += 14) != '"' && *date != '\'') continue;
    if (!date)
        return bs_fail(BS_STATUS_UNSUPPORTED, "tokenizer.chat_template: asks for a date and sets none");
    BS_TRY(read_literal(date, &value));
    status = add_string(prompt, "Today Date: ");
    if (status == BS_STATUS_OK) status = add_string(prompt, value);
    free(value);
    BS_TRY(status);
    return add_string(prompt, "\n\n");
}

static bs_status add_llama3(prompt *prompt, const char *template, const bs_chat_message *messages,
                            int n_messages)
{
    bool preamble = has_preamble(template), system_first = strcmp(messages[0].role, "system") == 0;
    for (int i = preamble && !system_first ? -1 : 0; i < n_messages; i++) {
        bs_chat_message message = i < 0 ? (bs_chat_message){"system", "", 0} : messages[i];
        trim(&message.content, &message.content_bytes);
        BS_TRY(add_special(prompt, "<|start_header_id|>"));
        BS_TRY(add_string(prompt, message.role));
        BS_TRY(add_special(prompt, "<|end_header_id|>"));
        BS_TRY(add_string(prompt, "\n\n"));
        if (preamble && i <= 0 && (i < 0 || system_first)) BS_TRY(add_preamble(prompt, template));
        BS_TRY(add_text(prompt, message.content, message.content_bytes));
        BS_TRY(add_special(prompt, "<|eot_id|>"));
    }
    BS_TRY(add_special(prompt, "<|start_header_id|>"));
    BS_TRY(add_string(prompt, "assistant"));
    BS_TRY(add_special(prompt, "<|end_header_id|>"));
    return add_string(prompt, "\n\n");
}

static bs_status add_chatml_turn(prompt *prompt, const char *role, const char *content, size_t bytes)
{
    BS_TRY(add_special(prompt, "<|im_start|>"));
    BS_TRY(add_string(prompt, role));
    BS_TRY(add_string(prompt, "\n"));
    BS_TRY(add_text(prompt, content, bytes));
    BS_TRY(add_special(prompt, "<|im_end|>"));
    return add_string(prompt, "\n");
}

static bs_status add_chatml(prompt *prompt, const char *template, const bs_chat_message *messages,
                            int n_messages)
{
    bool trims = pipes_through_trim(template);
    if (strcmp(messages[0].role, "system") != 0) {
        char *content;
        BS_TRY(read_default_system(template, &content));
        bs_status status = content ? add_chatml_turn(prompt, "system", content, strlen(content))
                                   : BS_STATUS_OK;
        free(content);
        BS_TRY(status);
    }
    for (int i = 0; i < n_messages; i++) {
        bs_chat_message message = messages[i];
        if (trims) trim(&message.content, &message.content_bytes);
        BS_TRY(add_chatml_turn(prompt, message.role, message.content, message.content_bytes));
    }
    BS_TRY(add_special(prompt, "<|im_start|>"));
    return add_string(prompt, "assistant\n");
}

/* What a Mistral template says. */
typedef struct mistral {
    char *open, *close;                     /* "[INST] ", " [/INST]" with their spaces; heap */
    bool space_before, space_behind, trims; /* an answer: before it, behind its end token */
    bool has_system, system_last;
} mistral;

/* The last literal that holds the marker, at most a space in front of it. */
static bs_status read_marker(const char *template, const char *marker, char **out)
{
    const char *quote = NULL;
    for (const char *at = template; (at = strstr(at, marker)); at++) {
        const char *before = at > template && at[-1] == ' ' ? at - 1 : at;
        if (before > template && (before[-1] == '\'' || before[-1] == '"')) quote = before - 1;
    }
    if (!quote)
        return bs_fail(BS_STATUS_UNSUPPORTED, "tokenizer.chat_template: %s stands in no literal of its own",
                       marker);
    return read_literal(quote, out);
}

/* The expression that writes an answer: between {{ and }}, with content and eos_token. */
static void read_answer(const char *template, mistral *m)
{
    for (const char *eos = template; (eos = strstr(eos, "eos_token")); eos++) {
        const char *begin = eos, *end = strstr(eos, "}}"), *content = NULL;
        while (begin > template && strncmp(begin, "{{", 2) != 0) begin--;
        for (const char *at = begin; at < eos; at++)
            if (strncmp(at, "content", 7) == 0) content = at;
        if (!content || !end) continue;
        for (const char *at = begin; at < content; at++)
            m->space_before |= strncmp(at, "' '", 3) == 0 || strncmp(at, "\" \"", 3) == 0;
        for (const char *at = content; at < eos; at++) m->trims |= strncmp(at, "trim", 4) == 0;
        for (const char *at = eos; at < end; at++)
            m->space_behind |= strncmp(at, "' '", 3) == 0 || strncmp(at, "\" \"", 3) == 0;
        return;
    }
}

/* A marker with its spaces: a special token where the vocabulary has one. */
static bs_status add_marker(prompt *prompt, const char *literal, const char *marker)
{
    const char *at = strstr(literal, marker);
    if (find_special(prompt->tokenizer, marker) < 0) return add_string(prompt, literal);
    BS_TRY(add_text(prompt, literal, (size_t)(at - literal)));
    BS_TRY(add_special(prompt, marker));
    return add_string(prompt, at + strlen(marker));
}

static bs_status add_mistral_answer(prompt *prompt, const mistral *m, bs_chat_message message)
{
    if (m->trims) trim(&message.content, &message.content_bytes);
    if (m->space_before) BS_TRY(add_string(prompt, " "));
    BS_TRY(add_text(prompt, message.content, message.content_bytes));
    BS_TRY(flush_text(prompt));
    BS_TRY(bs_tokens_push(prompt->out, bs_tokenizer_eos(prompt->tokenizer)));
    return m->space_behind ? add_string(prompt, " ") : BS_STATUS_OK;
}

static bs_status add_mistral_turns(prompt *prompt, const mistral *m, const bs_chat_message *messages,
                                   int n_messages)
{
    int first = strcmp(messages[0].role, "system") == 0;
    if (first && !m->has_system)
        return bs_fail(BS_STATUS_UNSUPPORTED, "message 0: the template has no place for a system message");
    for (int i = first; i < n_messages; i++) {
        bool user = (i - first) % 2 == 0;
        if (strcmp(messages[i].role, user ? "user" : "assistant") != 0)
            return bs_fail(BS_STATUS_RANGE,
                           "message %d: role \"%s\": user and assistant must take turns, user first", i,
                           messages[i].role);
        if (!user) {
            BS_TRY(add_mistral_answer(prompt, m, messages[i]));
            continue;
        }
        BS_TRY(add_marker(prompt, m->open, "[INST]"));
        if (first && i == (m->system_last ? n_messages - 1 : first)) {
            BS_TRY(add_text(prompt, messages[0].content, messages[0].content_bytes));
            BS_TRY(add_string(prompt, "\n\n"));
        }
        BS_TRY(add_text(prompt, messages[i].content, messages[i].content_bytes));
        BS_TRY(add_marker(prompt, m->close, "[/INST]"));
    }
    return BS_STATUS_OK;
}

static bs_status add_mistral(prompt *prompt, const char *template, const bs_chat_message *messages,
                             int n_messages)
{
    mistral m = {.has_system = strstr(template, "system_message") != NULL,
                 .system_last = strstr(template, "loop.last and system_message") != NULL};
    bs_status status = read_marker(template, "[INST]", &m.open);
    if (status == BS_STATUS_OK) status = read_marker(template, "[/INST]", &m.close);
    read_answer(template, &m);
    if (status == BS_STATUS_OK) status = add_mistral_turns(prompt, &m, messages, n_messages);
    free(m.open);
    free(m.close);
    return status;
}

static bs_status check_messages(const bs_chat_message *messages, int n_messages)
{
    if (n_messages < 1) return bs_fail(BS_STATUS_RANGE, "chat: %d messages: must be at least 1", n_messages);
    for (int i = 0; i < n_messages; i++) {
        const bs_chat_message *message = &messages[i];
        if (strcmp(message->role, "system") != 0 && strcmp(message->role, "user") != 0 &&
            strcmp(message->role, "assistant") != 0)
            return bs_fail(BS_STATUS_RANGE, "message %d: role \"%.32s\": must be system, user or assistant",
                           i, message->role);
        size_t valid = bs_utf8_valid_bytes(message->content, message->content_bytes);
        if (valid < message->content_bytes)
            return bs_fail(BS_STATUS_FORMAT, "message %d: byte %zu (0x%02x) of its content is not UTF-8", i,
                           valid, (unsigned char)message->content[valid]);
    }
    return BS_STATUS_OK;
}

typedef bs_status add_messages(prompt *prompt, const char *template, const bs_chat_message *messages,
                               int n_messages);

bs_status bs_chat_tokenize(const bs_tokenizer *tokenizer, const bs_chat_message *messages, int n_messages,
                           bs_tokens *out)
{
    bs_status status = BS_STATUS_OK;
    bs_chat_family family = bs_chat_family_of(tokenizer);
    const char *template = bs_tokenizer_chat_template(tokenizer);
    prompt prompt = {.tokenizer = tokenizer, .out = out, .begin = out->n};
    if (family == BS_CHAT_NONE)
        return bs_fail(BS_STATUS_UNSUPPORTED, "tokenizer.chat_template: %s",
                       *template ? "of a family that is not ChatML, Llama-3 or Mistral"
                                 : "the file has none");
    BS_TRY(check_messages(messages, n_messages));
    if (strstr(template, "bos_token") && bs_tokenizer_bos(tokenizer) >= 0)
        status = bs_tokens_push(out, bs_tokenizer_bos(tokenizer));
    static add_messages *const families[] = {NULL, add_chatml, add_llama3, add_mistral};
    if (status == BS_STATUS_OK) status = families[family](&prompt, template, messages, n_messages);
    if (status == BS_STATUS_OK) status = flush_text(&prompt);
    if (status != BS_STATUS_OK) out->n = prompt.begin;
    free(prompt.text);
    return status;
}
