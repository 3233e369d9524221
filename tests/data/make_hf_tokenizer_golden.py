#!/usr/bin/env python3
"""Writes tests/data/hf-tokenizers/NAME: a small tokenizer of each kind as a Hugging Face directory has it, and what the
`tokenizers` library and jinja2 make of texts and chats with it.

    pip install tokenizers gguf jinja2
    python make_hf_tokenizer_golden.py

Each directory holds tokenizer.json (written by the library, one with merges as "a b"), tokenizer_config.json and
golden.json: ids of the texts of tokenizer.texts.json with special tokens parsed and as plain text, ids with what the
post_processor adds, decodings, chats. nfc.json: texts and their composed form. Vocabularies are trained here on those texts.
"""
import json
import os
import random
import shutil
import unicodedata

import jinja2
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import make_tokenizer_golden as g

OUT = os.path.join(g.HERE, "hf-tokenizers")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
V01 = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}{% endif %}{% endfor %}"
)
V03 = (
    "{%- if messages[0][\"role\"] == \"system\" %}{%- set system_message = messages[0][\"content\"] %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}\n"
    "{{- bos_token }}\n{%- for message in loop_messages %}\n"
    "    {%- if message[\"role\"] == \"user\" %}\n"
    "        {%- if loop.last and system_message is defined %}\n"
    "            {{- \"[INST] \" + system_message + \"\\n\\n\" + message[\"content\"] + \"[/INST]\" }}\n"
    "        {%- else %}\n            {{- \"[INST] \" + message[\"content\"] + \"[/INST]\" }}\n        {%- endif %}\n"
    "    {%- elif message[\"role\"] == \"assistant\" %}\n"
    "        {{- \" \" + message[\"content\"]|trim + eos_token}}\n    {%- endif %}\n{%- endfor %}\n"
)
V02 = V03.replace("loop.last", "loop.first").replace("\"[INST] ", "\" [INST] ").replace("\"[/INST]\"", "\" [/INST]\"").replace(
    "|trim", "")
NEMO = V03.replace("\"[INST] ", "\"[INST]").replace("\" \" + message[\"content\"]|trim", "message[\"content\"]")
MORE = ["<s>", "<s>x</s>", " <s> x </s> ", "<s>[INST] a [/INST] b</s>[INST]c[/INST]", "[INST]", "a[/INST] ", "\u2581", "a\u2581b",
        "\u2581 \u2581a", "<0x41><0x0A>", "<unk>", "\u2581<s>\u2581", "  <s>  ", "e\u0301<s>\u0301e", "<s><tool_call> a"]
MISTRAL_SPECIALS = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]"]


def say(role, content):
    return {"role": role, "content": content}


def mistral_chats(system):
    chats = [
        [say("user", "Hello")],
        [say("user", "Hi"), say("assistant", "Hello! How can I help?"), say("user", "Write  a\npoem.")],
        [say("user", "")],
        [say("user", "  spaces around \n\n")],
        [say("user", "a"), say("assistant", " b "), say("user", "c "), say("assistant", "\td"), say("user", " é😀")],
        [say("user", "<tool_call> in 1234 [INST words"), say("assistant", "fine"), say("user", "日本語で")],
        [say("user", "x"), say("assistant", "")],
        [say("user", "y")],
    ]
    if system:
        chats += [[say("system", "Be brief."), say("user", "What is 2+2?")],
                  [say("system", " Du bist höflich.\n"), say("user", "a"), say("assistant", " b"), say("user", "c ")]]
    return chats


def render(template, messages, bos, eos):
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(messages=messages, bos_token=bos, eos_token=eos,
                                                    add_generation_prompt=True)


def add(tokenizer, specials):
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in specials])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in g.USER_DEFINED])
    return tokenizer


def byte_level(pre_tokenizer, texts, specials, ignore_merges=False, normalizer=None, bos=None):
    tokens, merges = g.train(pre_tokenizer, [t for t in texts if len(t) < 700] * 2, 1200)
    tokens += [t for t in g.UNREACHABLE if t not in tokens]
    vocab = {t: i for i, t in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    add(tokenizer, specials)
    if bos:
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))])])
    return tokenizer


def spaces(texts, specials, normalizer=None, pre_tokenizer=None, bos="<s>"):
    """SentencePiece's kind: trained on words with U+2581 in front, then with byte tokens behind the specials."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trained.train_from_iterator([t for t in texts if len(t) < 700 and "\n" not in t and "\0" not in t] * 2, trainers.BpeTrainer(
        vocab_size=1000, limit_alphabet=300, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    learnt = sorted(model["vocab"], key=model["vocab"].get)
    merges = [tuple(m) for m in model["merges"]]
    for run in ("\u2581\u2581", "\u2581\u2581\u2581\u2581"):  # runs of spaces, as real ones have
        learnt.append(run)
        merges.append((run[:len(run) // 2], run[:len(run) // 2]))
    tokens = specials + [f"<0x{i:02X}>" for i in range(256)] + [t for t in learnt if t not in specials]
    vocab = {t: i for i, t in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    add(tokenizer, specials)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))])
    return tokenizer


def sequences(tokenizer, plain):
    """Ids to decode: of texts, and at random but for byte tokens, of which broken runs differ (see test)."""
    r = random.Random(7)
    ids = [i for i in range(tokenizer.get_vocab_size()) if not tokenizer.id_to_token(i).startswith("<0x")]
    return [[r.choice(ids) for _ in range(r.randint(1, 12))] for _ in range(60)] + [s for s in plain[-60:] if s]


def write(name, tokenizer, texts, templates, bos, eos, chats, config=None, string_merges=False):
    path = os.path.join(OUT, name)
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    tokenizer.save(os.path.join(path, "tokenizer.json"), pretty=False)
    if string_merges:
        with open(os.path.join(path, "tokenizer.json"), encoding="utf-8") as file:
            data = json.load(file)
        data["model"]["merges"] = [" ".join(m) for m in data["model"]["merges"]]
        with open(os.path.join(path, "tokenizer.json"), "w", encoding="utf-8") as file:
            json.dump(data, file, ensure_ascii=False, separators=(",", ":"))
        tokenizer = Tokenizer.from_file(os.path.join(path, "tokenizer.json"))
    with open(os.path.join(path, "tokenizer_config.json"), "w", encoding="utf-8") as file:
        json.dump(dict(config or {}, bos_token=bos, eos_token=eos, chat_template=templates[0]), file, indent=2)
        file.write("\n")
    plain = [g.encode(tokenizer, t, False) for t in texts]
    special = [g.encode(tokenizer, t, True) for t in texts]
    text_of = bos["content"] if isinstance(bos, dict) else bos
    golden = {
        "library": "tokenizers " + tokenizers.__version__,
        "more": MORE,
        "plain": plain,
        "special": {str(i): s for i, (p, s) in enumerate(zip(plain, special)) if p != s},
        "hello": tokenizer.encode("Hello", add_special_tokens=True).ids,
        "decode": [{"ids": s, "text": tokenizer.decode(s, skip_special_tokens=True),
                    "shown": tokenizer.decode(s, skip_special_tokens=False)} for s in sequences(tokenizer, plain)],
        "chat": [{"template": t, "chats": [
            {"messages": m, "ids": g.encode(tokenizer, render(t, m, text_of, eos), True)} for m in chats]} for t in templates],
    }
    with open(os.path.join(path, "golden.json"), "w", encoding="ascii") as file:
        json.dump(golden, file, separators=(",", ":"), sort_keys=True)
        file.write("\n")
    print(name, tokenizer.get_vocab_size(), sum(os.path.getsize(os.path.join(path, f)) for f in os.listdir(path)))


def write_nfc():
    """Texts and their composed form: every code that changes, and random runs of bases and marks."""
    r = random.Random(11)
    codes = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
    normal = lambda text: unicodedata.normalize("NFC", text)
    marks = [chr(c) for c in codes if unicodedata.combining(chr(c))]
    bases = list("aeiouACEN") + [chr(c) for c in codes if unicodedata.decomposition(chr(c)) and not
                                 unicodedata.decomposition(chr(c)).startswith("<")] + ["\u1100", "\u1161", "\u11a8", "\uac00"]
    texts = ["".join(chr(c) for c in codes if normal(chr(c)) != chr(c)),
             normal("".join(map(chr, range(0xC0, 0x250)))), unicodedata.normalize("NFD", "한국어각힣가")]
    texts += ["".join(r.choice(bases if r.random() < 0.4 else marks) for _ in range(r.randint(1, 24))) for _ in range(300)]
    with open(os.path.join(OUT, "nfc.json"), "w", encoding="ascii") as file:
        json.dump({"unicode": unicodedata.unidata_version, "cases": [[t, normal(t)] for t in texts]}, file,
                  separators=(",", ":"))
        file.write("\n")


def main():
    with open(os.path.join(g.HERE, "tokenizer.texts.json"), encoding="ascii") as file:
        texts = json.load(file) + MORE
    os.makedirs(OUT, exist_ok=True)
    write_nfc()
    llama, chatml = g.LLAMA_SPECIALS, g.CHATML_SPECIALS
    write("llama3", byte_level(g.byte_level(g.LLAMA3), texts, llama, True, bos="<|begin_of_text|>"), texts, [g.LLAMA31],
          "<|begin_of_text|>", "<|eot_id|>", g.chats())
    write("gpt2", byte_level(g.byte_level(), texts, chatml), texts, [g.CHATML_BOS_TRIM],
          {"__type": "AddedToken", "content": "<|endoftext|>"}, "<|im_end|>", g.chats(), string_merges=True)
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), g.byte_level()])
    write("smollm", byte_level(digits, texts, chatml), texts, [g.CHATML_DEFAULT], "<|im_start|>", "<|im_end|>", g.chats())
    write("qwen2", byte_level(g.byte_level(g.QWEN2), texts, chatml, normalizer=normalizers.NFC()), texts,
          [g.CHATML_DEFAULT], None, "<|im_end|>", g.chats(), config={"add_bos_token": False})
    write("tekken", byte_level(g.byte_level(TEKKEN), texts, MISTRAL_SPECIALS, bos="<s>"), texts, [NEMO], "<s>", "</s>",
          mistral_chats(True))
    legacy = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    write("llama2", spaces(texts, MISTRAL_SPECIALS[:3], legacy), texts, [V01, V02], "<s>", "</s>", mistral_chats(False),
          config={"add_bos_token": True})
    first = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    write("mistral-v3", spaces(texts, MISTRAL_SPECIALS, None, first), texts, [V03], "<s>", "</s>", mistral_chats(True))
    write("metaspace-split", spaces(texts, MISTRAL_SPECIALS, None, pre_tokenizers.Metaspace()), texts, [V02], "<s>", "</s>",
          mistral_chats(True))


if __name__ == "__main__":
    main()
