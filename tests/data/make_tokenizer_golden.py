#!/usr/bin/env python3
"""Writes tokenizer.*.json: texts and the ids that the `tokenizers` library gives for them.

    pip install tokenizers gguf jinja2
    python make_tokenizer_golden.py SmolLM2-135M-Instruct.gguf

tokenizer.texts.json holds the texts (the same for all), tokenizer.{gpt2,llama-bpe,qwen2,smollm}.json for each
pre-tokenizer the lengths of its pieces, the ids with special tokens parsed and as plain text, decodings of id sequences
that are mostly broken UTF-8, and chats rendered by jinja2. The first three have small vocabularies trained here; smollm has that of the GGUF
given, which is read from there again by the test. Texts are seeded; trained vocabularies may change with the library's
version, which each file names.
"""
import json
import os
import random
import sys
import unicodedata

import gguf
import jinja2
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")

CHATML_DEFAULT = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}"
    "{{- '<|im_start|>system\\nYou\\'re a \"test\" assistant.\\nBe brief.<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role != 'system' or not loop.first %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
CHATML_BOS_TRIM = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA30 = (
    "{% for message in messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim"
    " + '<|eot_id|>' %}"
    "{% if loop.first %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA31 = (
    "{{- bos_token }}\n"
    "{%- if not date_string is defined %}\n    {%- set date_string = \"26 Jul 2024\" %}\n{%- endif %}\n"
    "{%- set system_message = \"\" %}{%- set rest = messages %}"
    "{%- if messages[0]['role'] == 'system' %}"
    "{%- set system_message = messages[0]['content'] | trim %}{%- set rest = messages[1:] %}{%- endif %}\n"
    "{{- \"<|start_header_id|>system<|end_header_id|>\\n\\n\" }}\n"
    "{{- \"Cutting Knowledge Date: December 2023\\n\" }}\n"
    "{{- \"Today Date: \" + date_string + \"\\n\\n\" }}\n"
    "{{- system_message }}\n{{- \"<|eot_id|>\" }}\n"
    "{%- for message in rest %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim"
    " + '<|eot_id|>' }}{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}\n"
)

CHATML_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA_SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
                  "<|eot|>"]
USER_DEFINED = ["<tool_call>", "</tool_call>", "<tool", "    ", "\t\t", "日本"]
# In the vocabulary and out of the merges' reach: only ignore_merges finds them.
UNREACHABLE = ["Ġunreachably", "unmergeable", "Ġ====", "Ã©Ã©Ã©"]

PROSE = [
    "The cache of each sequence is cut over the ranks, and every rank keeps its pages in four bits.",
    "When the answer is ready, it'll be written to standard output; we've measured 12.5 tokens per second.",
    "She said: \"I can't, I won't, they're not here, and you'd better go.\"",
    "for (int i = 0; i < n; i++) { sum += x[i] * y[i]; }  // dot product\n",
    "def main(argv):\n    if len(argv) > 1:\n        print(f\"{argv[1]!r}\")\n    return 0\n",
    "#include <stdio.h>\n\nint main(void)\n{\n\tputs(\"hello, world\");\n\treturn 0;\n}\n",
    "Die Größe der Datei beträgt über 3,5 GB; größer geht es nicht. Straßenbahn, Öl, Äpfel.",
    "L'été dernier, j'ai vu un œuf à côté de la forêt. Ça va ? Très bien !",
    "Быстрая коричневая лиса прыгает через ленивую собаку. Ещё раз!",
    "敏捷的棕色狐狸跳过了懒狗。日本語のテキストもあります。カタカナ、ひらがな、漢字。",
    "빠른 갈색 여우가 게으른 개를 뛰어넘습니다.",
    "الثعلب البني السريع يقفز فوق الكلب الكسول ١٢٣٤",
    "नमस्ते दुनिया, यह एक परीक्षण है। १२३",
    "Ταχεία καφέ αλεπού ΕΛΛΗΝΙΚΑ και ελληνικά",
]

FIXED = PROSE + [
    "", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\r\n\r\n", "\t", "\t\t", " \t \n ", "a", "A", "é", "日", "😀", "0",
    "Hello", " Hello", "  Hello", "Hello ", "Hello  ", "Hello, world!", "hello\nworld", "hello \n world",
    "hello\n\n\n  world", "x\r\ny\r\n", "a\u00a0b", "a\u00a0\u00a0b", "\u3000全角\u3000空白\u3000", "a\u2003\u2003b",
    "a\u180eb \u180e c", "a\u200bb", "a\u0085b\u0085", "a\u2028b\u2029c", "\ufeffBOM", "a\x0bb\x0cc", "\x00", "a\x00b",
    "\x00\x01\x02\x03", "\x1b[31mred\x1b[0m", "\x7f\x80\x9f", "\x1c\x1d\x1e\x1f", "\ufffd", "\U0010ffff", "\ue000",
    "I'm you're he's we've they'll I'd don't", "I'M YOU'RE HE'S WE'VE THEY'LL I'D DON'T", "'s't're've'm'll'd",
    "'S'T'Re'vE'M'lL'D", "it\u2019s", "'\u017f 'ſt x'ſy", "''s ' s 'x", "'", "''''", "can't'll've", "'sa'tb",
    "x\n  y", "x\r\n  y\r z", "a\rb\r c\r\rd", "if x\n  then y\n\tz\n\t  w\n \n  end", "a\n1\n 2\n  3", "a \r\n \r\n b",
    "1", "12", "123", "1234", "12345", "1234567890" * 3, "1 2  3   4", "3.14159", "1,000,000", "0x1F", "v1.2.3-rc4",
    "a1b22c333d4444", "²³¹", "½ ¼ ⅓", "Ⅷ Ⅻ", "①②③", "١٢٣٤٥", "१२३", "１２３４", "𝟘𝟙𝟚", "x²+y²=z²", " 7", "  7", "a 7", "\n7",
    "7 ", "7\n\n8", "$100", "100%", "-1", "+-*/=", "!!!", "...", " ...", "?!?!", "-----", "=====", " ====", " ====\n\n",
    "a==b", "!=\r\n", "?\n\n\nx", "::", "->", "//", "/* c */", "\\n", "\"quoted\"", "`code`", "{}[]()<>", "@#$%^&*",
    "e\u0301", "e\u0301e\u0301 a\u0308", "n\u0303o", "\u0301", " \u0301", "a\u0301\u0302\u0303\u0304", "क्षि", "ก็",
    "Z\u0351\u036b\u0343a\u0329l\u0354g\u0306o", "👨‍👩‍👧‍👦", "👩🏽‍💻 👍🏿", "🏳️‍🌈", "🇩🇪🇫🇷", "❤️", "😀😃😄", " 😀", "a😀b", "☃︎ ☃️", "🧑‍🚀🚀",
    "𠀀𠀁", "𝒜𝓑", "𐍈", "ﬀ ﬁ ﬆ", "İ i̇ ı I", "ß ẞ", "Ω Ω", "ａｂｃ", "ㄱㄴㄷ", "가각", "ﾊﾝｶｸ", "あいうえお", "你好，世界！", "《书》", "混ぜ書きmixed123テスト",
    "unreachably unreachably", "unmergeable", "ééé", "éééé", "bitshard", "BitShard_KV-cache", "camelCaseWords", "snake_case_words",
    "https://example.org/a?b=c&d=%20#e", "user@example.org", "C:\\dir\\file.txt", "/usr/local/bin", "#!/bin/sh\nset -e\n",
    "<html><body>text</body></html>", "<|", "|>", "<||>", "<|im_start|", "<|im_start|>", "<|im_end|>", "<|endoftext|>",
    "<|im_start|>user\nhi<|im_end|>\n", "a<|im_end|>b", "a <|im_end|> b", "<|im_end|><|im_end|>", "<|<|im_end|>|>",
    "<|im_end|", "<|im_end|> \n", "<|eot_id|>", "x<|eot|>y<|eot_id|>z", "<|begin_of_text|>hi", "<|start_header_id|>user<|end_header_id|>\n\nhi",
    "<tool_call>{\"a\": 1}</tool_call>", "<tool", "<tool>", "<tool_cal", "<tool_call", "<tool_call>", "<tool<tool_call>", "</tool_call",
    "        eight", "    four", "     five", "a    b", "a        b", "\t\t\tthree", "a\t\tb", "日本", "日本語", "東日本", "日 本",
    "<repo_name>x<file_sep>y", "<filename>", "<jupyter_start>",
    " a" * 400, "a" * 1500, "A" * 700, "ab" * 900, "abc " * 300, " " * 1500, " " * 1499 + "x", "\n" * 800, "\r\n" * 300,
    "\t" * 501, "0" * 800, "9 " * 300, "-" * 900, "=" * 640 + "\n", "é" * 400, "日" * 300, "日本" * 120, "😀" * 150, "\u0301" * 200,
    " \n" * 300, "'s" * 300, "x" + " " * 700 + "\n" + " " * 700 + "y", "word" * 350, "\x00" * 100, "<" * 500, "<|" * 250,
    "e\u0301" * 200, "\u3000" * 200, "\u00a0" * 201, "a\u200d" * 100, "the of and " * 150,
]

POOL = [
    lambda r: r.choice(" \n\t") * r.randint(1, 4),
    lambda r: r.choice([" ", " ", " ", "  ", "\n", "\r\n", "\u00a0", "\u3000", "\u2009", "\u2028", "\x0b", "\x85", "\u180e"]),
    lambda r: r.choice(r.choice(PROSE).split(" ")),
    lambda r: " " + r.choice(r.choice(PROSE).split(" ")),
    lambda r: "".join(r.choice("etaoinshrdlucmfw") for _ in range(r.randint(1, 12))),
    lambda r: " " + "".join(r.choice("etaoinshrdlETAOIN") for _ in range(r.randint(1, 9))),
    lambda r: r.choice(["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'Re", "'LL", "'ſ", "\u2019s", "'"]),
    lambda r: "".join(r.choice("0123456789") for _ in range(r.randint(1, 9))),
    lambda r: "".join(r.choice("٠١٢३४५²½Ⅳ①７𝟗") for _ in range(r.randint(1, 4))),
    lambda r: "".join(r.choice("!\"#$%&()*+,-./:;<=>?@[\\]^_`{|}~") for _ in range(r.randint(1, 5))),
    lambda r: "".join(chr(r.randint(0x4e00, 0x9fa5)) for _ in range(r.randint(1, 6))),
    lambda r: "".join(chr(r.randint(0x3041, 0x3096)) for _ in range(r.randint(1, 6))),
    lambda r: "".join(chr(r.randint(0xac00, 0xd7a3)) for _ in range(r.randint(1, 4))),
    lambda r: "".join(chr(r.randint(0x430, 0x44f)) for _ in range(r.randint(1, 8))),
    lambda r: "".join(chr(r.randint(0xc0, 0x17f)) for _ in range(r.randint(1, 5))),
    lambda r: chr(r.choice([0x61, 0x4f, 0x915, 0xe01])) + "".join(chr(r.randint(0x300, 0x36f)) for _ in range(r.randint(1, 3))),
    lambda r: r.choice(["😀", "👨‍👩‍👧", "👍🏽", "🏴‍☠️", "🇯🇵", "✂️", "⌛", "🤷‍♀️", "💯💯"]),
    lambda r: chr(r.choice(list(range(32)) + [127, 128, 0x9f, 0xad, 0x200b, 0x200d, 0x200e, 0x2060, 0xfeff, 0xfffd, 0xe001, 0xf0000])),
    lambda r: r.choice(CHATML_SPECIALS + LLAMA_SPECIALS + USER_DEFINED + ["<|", "|>", "<file_sep>", "<reponame>"]),
    lambda r: r.choice(["if (x) {\n", "    return y;\n", "\t}\n", "def f(a, b=2):\n", "#define N 10\n", "<div class=\"x\">", "$x->y", "&&", "||"]),
]


def make_texts():
    r = random.Random(20240601)
    texts = list(FIXED)
    for i in range(420):
        texts.append("".join(r.choice(POOL)(r) for _ in range(r.randint(2, 12))))
    for _ in range(12):  # all of a plane's blocks in one text
        texts.append("".join(chr(c) for c in (r.randint(0x20, 0x1ffff) for _ in range(60)) if assigned(c)))
    return texts


def assigned(c):
    """Not a surrogate, and in Unicode 3.2 already: what is a letter must not depend on the library's or PCRE2's age."""
    return not 0xd800 <= c <= 0xdfff and unicodedata.ucd_3_2_0.category(chr(c)) != "Cn"


def byte_level(pattern=None):
    if pattern is None:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def train(pre_tokenizer, texts, vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return tokens, [tuple(m) for m in model["merges"]]


def build(pre_tokenizer, tokens, types, merges, ignore_merges):
    """The reference: plain tokens in the model, the others added under the ids they have in the list."""
    vocab = {t: i for i, t in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True)
                                  for t, kind in zip(tokens, types) if kind == 3])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False)
                          for t, kind in zip(tokens, types) if kind == 4])
    for t, kind in zip(tokens, types):
        assert tokenizer.token_to_id(t) == vocab[t], t
    return tokenizer


def chats():
    say = lambda role, content: {"role": role, "content": content}
    return [
        [say("user", "Hello")],
        [say("system", "Be brief."), say("user", "What is 2+2?")],
        [say("user", "Hi"), say("assistant", "Hello! How can I help?"), say("user", "Write  a\npoem.")],
        [say("user", "")],
        [say("system", ""), say("user", "x")],
        [say("user", "  spaces around \n\n")],
        [say("user", "\u3000\u00a0\x1fodd\x1c\u2003"), say("assistant", "\t\n"), say("user", "日本語で 😀")],
        [say("system", "  Du bist höflich.\n"), say("user", "a"), say("assistant", " b"), say("user", "c ")],
        [say("user", "one"), say("system", "late"), say("user", "two")],
        [say("assistant", "I begin."), say("user", "<tool_call> in 1234 words")],
    ]


def render(template, messages, bos):
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(messages=messages, bos_token=bos, add_generation_prompt=True)


def encode(tokenizer, text, special):
    tokenizer.encode_special_tokens = not special
    return tokenizer.encode(text, add_special_tokens=False).ids


def golden(name, tokenizer, texts, templates, bos, n_vocab):
    plain = [encode(tokenizer, t, False) for t in texts]
    special = [encode(tokenizer, t, True) for t in texts]
    r = random.Random(7)
    sequences = [[r.randrange(n_vocab) for _ in range(r.randint(1, 12))] for _ in range(60)]
    sequences += [[r.randrange(min(300, n_vocab)) for _ in range(r.randint(1, 16))] for _ in range(90)]
    sequences += [ids[1:] for ids in plain[-60:]]
    return {
        "library": "tokenizers " + tokenizers.__version__,
        "pre": name,
        "pieces": [[len(piece) for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(t)] for t in texts],
        "plain": plain,
        "special": {str(i): s for i, (p, s) in enumerate(zip(plain, special)) if p != s},
        "decode": [{"ids": s, "text": tokenizer.decode(s, skip_special_tokens=True),
                    "shown": tokenizer.decode(s, skip_special_tokens=False)} for s in sequences],
        "chat": [{"template": t, "chats": [
            {"messages": m, "ids": encode(tokenizer, render(t, m, bos), True)} for m in chats()]} for t in templates],
    }


def write(name, data):
    path = os.path.join(HERE, f"tokenizer.{name}.json")
    with open(path, "w", encoding="ascii") as file:
        json.dump(data, file, separators=(",", ":"), sort_keys=True)
        file.write("\n")
    print(path, os.path.getsize(path))


def small(file, pre, pattern, specials, templates, bos, texts):
    tokens, merges = train(byte_level(pattern), [t for t in texts if len(t) < 700] * 2, 1500)
    tokens += [t for t in UNREACHABLE if t not in tokens]
    types = [1] * len(tokens) + [3] * len(specials) + [4] * len(USER_DEFINED)
    tokens += specials + USER_DEFINED
    tokenizer = build(byte_level(pattern), tokens, types, merges, pre == "llama-bpe")
    data = golden(pre, tokenizer, texts, templates, bos, len(tokens))
    data.update(tokens=tokens, types=types, merges=[" ".join(m) for m in merges],
                bos=tokens.index(bos), eos=tokens.index(specials[-1]))
    write(file, data)


def smollm(path, texts):
    fields = gguf.GGUFReader(path).fields
    get = lambda key: fields[key].contents()
    tokens, types = get("tokenizer.ggml.tokens"), get("tokenizer.ggml.token_type")
    merges = [tuple(m.split(" ")) for m in get("tokenizer.ggml.merges")]
    pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level()])
    tokenizer = build(pre_tokenizer, tokens, types, merges, False)
    template = get("tokenizer.chat_template")
    write("smollm", golden("smollm", tokenizer, texts, [template], "<|im_start|>", len(tokens)))


def main():
    texts = make_texts()
    write("texts", texts)
    small("gpt2", "gpt-2", None, CHATML_SPECIALS, [CHATML_BOS_TRIM], "<|endoftext|>", texts)
    small("llama-bpe", "llama-bpe", LLAMA3, LLAMA_SPECIALS, [LLAMA30, LLAMA31], "<|begin_of_text|>", texts)
    small("qwen2", "qwen2", QWEN2, CHATML_SPECIALS, [CHATML_DEFAULT], "<|endoftext|>", texts)
    smollm(sys.argv[1], texts)


if __name__ == "__main__":
    main()
