"""make_seeds.py [DIR]: the hand-made seeds of the fuzz corpus: small whole inputs of every kind, to mutate from.

Beside them in corpus/, under other names and not made here, are inputs that fuzzing found to reach further, and any that
broke something.
"""
import json
import os
import struct
import sys

TOP = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "corpus")
U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
SCALAR = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}
BLOCK = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 8: (32, 34)}  # GGUF's type: elements, bytes


def string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def value(kind, item):
    return string(item) if kind == STRING else struct.pack("<" + SCALAR[kind], item)


def pack_pair(key, kind, item, of=None):
    head = string(key) + struct.pack("<I", kind)
    if kind != ARRAY:
        return head + value(kind, item)
    return head + struct.pack("<IQ", of, len(item)) + b"".join(value(of, one) for one in item)


def gguf_of(pairs, tensors, alignment=32):
    """pairs: (key, type, value, type of an array's items); tensors: (name, type, dims, data)."""
    table, data = b"", b""
    for name, kind, dims, content in tensors:
        table += string(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", d) for d in dims)
        table += struct.pack("<IQ", kind, len(data))
        data += content.ljust(-(-len(content) // alignment) * alignment, b"\0")
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pack_pair(*one) for one in pairs) + table
    return head.ljust(-(-len(head) // alignment) * alignment, b"\0") + data


def gguf(pairs, tensors, alignment=32):
    """The same of tensors (name, type, dims), whose data is a pattern."""
    filled = []
    for name, kind, dims in tensors:
        elements = 1
        for dim in dims:
            elements *= dim
        block, size = BLOCK[kind]
        filled.append((name, kind, dims, bytes((i * 7) % 61 for i in range(elements // block * size))))
    return gguf_of(pairs, filled, alignment)


def letters_of(data):
    """Bytes in GPT-2's alphabet."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in printable}
    for n, b in enumerate(b for b in range(256) if b not in printable):
        table[b] = chr(256 + n)
    return "".join(table[b] for b in data)


def letters(text):
    return letters_of(text.encode())


def model_parts(tied=True, freqs=False, template="{{'<|im_start|>system\\nBe.<|im_end|>\\n'}}{{bos_token}}", pre="smollm", kind=2):
    tokens = ["<|im_start|>", "<|im_end|>"] + [letters(c) for c in "abTh e12\n"] + [letters("ab")]
    hidden, ffn, vocab = 64, 64, len(tokens)
    pairs = [("general.architecture", STRING, "llama"), ("general.name", STRING, "seed"),
             ("llama.block_count", U32, 1), ("llama.context_length", U32, 64), ("llama.embedding_length", U32, hidden),
             ("llama.feed_forward_length", U32, ffn), ("llama.attention.head_count", U32, 1),
             ("llama.attention.layer_norm_rms_epsilon", F32, 1e-5), ("llama.rope.freq_base", F32, 1e4),
             ("tokenizer.ggml.model", STRING, "gpt2"), ("tokenizer.ggml.pre", STRING, pre),
             ("tokenizer.ggml.tokens", ARRAY, tokens, STRING),
             ("tokenizer.ggml.token_type", ARRAY, [3, 3] + [1] * (vocab - 2), I32),
             ("tokenizer.ggml.merges", ARRAY, ["a b"], STRING), ("tokenizer.ggml.eos_token_id", U32, 1),
             ("tokenizer.ggml.bos_token_id", U32, 0), ("tokenizer.chat_template", STRING, template)]
    tensors = [("token_embd.weight", kind, [hidden, vocab]), ("output_norm.weight", 0, [hidden])]
    if not tied:
        tensors.append(("output.weight", kind, [hidden, vocab]))
    if freqs:
        tensors.append(("rope_freqs.weight", 0, [hidden // 2]))
    tensors += [("blk.0." + name, 0 if "norm" in name else kind, [hidden] if "norm" in name else [hidden, hidden])
                for name in ("attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight",
                             "ffn_norm.weight", "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight")]
    return pairs, tensors


def model(**options):
    return gguf(*model_parts(**options))


def ggufs():
    scalars = [(f"k.{kind}", kind, 1) for kind in SCALAR] + [("k.s", STRING, "text")]
    arrays = [(f"a.{kind}", ARRAY, [1, 0], kind) for kind in SCALAR] + [("a.s", ARRAY, ["x", ""], STRING)]
    yield "empty", gguf([], [])
    yield "scalars", gguf(scalars, [])
    yield "arrays", gguf(arrays, [])
    yield "tensors", gguf([("general.alignment", U32, 8)], [("a", 0, [3, 2]), ("b", 8, [32]), ("c", 1, [1, 1, 1, 5])], 8)
    yield "model", model()
    yield "model-untied", model(tied=False, freqs=True, pre="llama-bpe", kind=3,
                                template="<|start_header_id|><|eot_id|>")
    yield "cut", model()[:700]


def safetensors_of(tensors):
    """name: (dtype, shape); data is a pattern."""
    header, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        n = {"F32": 4}.get(dtype, 2)
        for size in shape:
            n *= size
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + n]}
        at += n
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + bytes((i * 7) % 61 for i in range(at))


def directory_model(kind, dtype="BF16", layers=1, **changes):
    """The smallest model of an architecture: a head of 64, hidden and FFN 8, vocabulary 6."""
    config = {"model_type": kind, "num_hidden_layers": layers, "max_position_embeddings": 64, "hidden_size": 8, "intermediate_size": 8,
              "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 6, "rms_norm_eps": 1e-5,
              "tie_word_embeddings": True, **changes}
    tensors = {"model.embed_tokens.weight": (dtype, [6, 8]), "model.norm.weight": (dtype, [8])}
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = (dtype, [6, 8])
    for layer in range(layers):
        part = {"input_layernorm.weight": [8], "post_attention_layernorm.weight": [8], "self_attn.o_proj.weight": [8, 64]}
        part.update({f"self_attn.{x}_proj.weight": [64, 8] for x in "qkv"})
        part.update({f"mlp.{x}_proj.weight": [8, 8] for x in ("gate", "up", "down")})
        if kind == "qwen2":
            part.update({f"self_attn.{x}_proj.bias": [64] for x in "qkv"})
        if kind == "qwen3":
            part.update({f"self_attn.{x}_norm.weight": [64] for x in "qk"})
        tensors.update({f"model.layers.{layer}.{name}": (dtype, shape) for name, shape in part.items()})
    return json.dumps(config).encode() + b"\0" + safetensors_of(tensors)


def directories():
    yield "llama", directory_model("llama", rope_parameters={"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
                                                            "original_max_position_embeddings": 16}, tie_word_embeddings=False)
    yield "mistral", directory_model("mistral", "F16", sliding_window=16, rope_theta=1e6)
    yield "qwen2", directory_model("qwen2", "F32", use_sliding_window=True, sliding_window=8, layer_types=["sliding_attention"],
                                   rope_scaling={"type": "yarn", "factor": 4, "original_max_position_embeddings": 16})
    yield "qwen3", directory_model("qwen3", rope_scaling={"rope_type": "linear", "factor": 2.5})
    yield "smollm3", directory_model("smollm3", layers=2, no_rope_layers=[1, 0], architectures=["SmolLM3ForCausalLM"])
    yield "file", b"{}\0" + safetensors_of({"a": ("F32", [2, 3]), "b": ("F16", []), "c": ("BF16", [1, 1, 1, 5])})


def pipelines():
    letters_all = {letters_of(bytes([b])): b for b in range(256)}
    spaces = {f"<0x{b:02X}>": b + 3 for b in range(256)}
    spaces.update({t: 259 + i for i, t in enumerate(("\u2581", "a", "b", "\u2581a", "ab"))})

    def one(vocab, merges, added=(), config=None, **more):
        model = {"type": "BPE", "vocab": vocab, "merges": merges, **more.pop("model", {})}
        items = [{"id": i, "content": text, "special": special} for i, text, special in added]
        return json.dumps({"added_tokens": items, "model": model, **more}).encode() + b"\0" + json.dumps(config or {}).encode()

    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}|[^\s\p{N}]+|\s+(?!\S)|\s+"}, "behavior": "Isolated", "invert": False}
    front = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]}
    yield "gpt2", one({**letters_all, "ab": 256}, ["a b"], [(257, "<s>", True)], {"eos_token": "<s>"}, pre_tokenizer={**level, "use_regex": True})
    yield "llama3", one({**letters_all, "ab": 256}, [["a", "b"]], [(257, "<s>", True), (258, "ab", False)], {"bos_token": {"content": "<s>"}},
                        pre_tokenizer={"type": "Sequence", "pretokenizers": [split, level]}, post_processor=front, model={"ignore_merges": True})
    yield "qwen2", one(letters_all, [], [(256, "<|im_start|>", True), (257, "<|im_end|>", True)], {"chat_template": TEMPLATES[0]},
                       normalizer={"type": "NFC"}, pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, level]})
    specials = [(0, "<unk>", True), (1, "<s>", True), (2, "</s>", True)]
    mistral = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ bos_token }}{{ '[INST] ' + m['content'] + ' [/INST]' }}{{ m['content'] + eos_token }}"}
    yield "llama2", one(spaces, ["a b", "\u2581 a"], specials, mistral, model={"byte_fallback": True}, post_processor=front,
                        normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"},
                                                                       {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]})
    yield "metaspace", one(spaces, [["a", "b"]], specials, mistral, model={"byte_fallback": True},
                           pre_tokenizer={"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": True})


TEXTS = ("The 12 ab ab\n\n  it's in the end", "Grüße, 世界! 🎉 ñ", "<|im_start|>user\n<tool> hi<|im_end|>", "a\u2028b\u00a0 \t c", "\0\x01\x7f")


def tokenizers():
    for i, text in enumerate(TEXTS):
        for mode in range(8):
            yield f"text-{i}-{mode}", bytes([mode]) + text.encode()
    yield "broken", b"\x01ab\xff\xc3"
    yield "ids", b"\x14" + bytes(range(0, 120))
    yield "vocabulary", b"\x18" + "3<s>\n4<t>\n1a\n1b\n1ab\n1\u0120a\nma b\nabab<s>x\n".encode()
    yield "vocabulary-empty", b"\x18"


TEMPLATES = ("{% for m in messages %}{{'<|im_start|>' + m.role}}{% endfor %}",
             "{{ '<|im_start|>system\\nYou are.<|im_end|>\\n' }}{{bos_token}} {{ message['content'] | trim }}",
             "<|start_header_id|>x<|eot_id|>{{bos_token}}",
             "<|start_header_id|>\"Cutting Knowledge Date: December 2023\\n\" {% set date_string = \"26 Jul 2024\" %}<|eot_id|>",
             "<|im_start|><|im_sep|>", "")


def chats():
    for i, template in enumerate(TEMPLATES):
        for j, messages in enumerate(((b"\1hi",), (b"\0 Be. ", b"\1 a \xc2\xa0", b"\2b"), (b"\3x",), ())):
            for pad in range(2):
                yield f"chat-{i}-{j}-{pad}", template.encode() + b" " * pad + b"\0" + b"\0".join(messages)


def lines():
    chat = '{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[%s]%s}}'
    text = '{"custom_id":"b","method":"POST","url":"/v1/completions","body":{"model":"m","prompt":%s%s}}'
    user = '{"role":"user","content":"hi"}'
    for i, more in enumerate(("", ',"max_tokens":3,"temperature":0.5,"top_p":0.9,"seed":-7,"stop":["x","yy"],"n":1',
                              ',"max_completion_tokens":9,"stop":"z","top_k":4,"min_p":0.1,"repeat_penalty":1.1,"user":"u"',
                              ',"stream":true', ',"logit_bias":{},"frequency_penalty":0,"response_format":{"type":"text"}',
                              ',"temperature":1e400', ',"unknown":null')):
        yield f"chat-{i}", chat % (user, more)
        yield f"text-{i}", text % ('"The 12"', more)
    for i, prompt in enumerate(('[1,2,3]', '["one"]', '["one","two"]', '[[4,5]]', '[]', '""', '[1e3]', '"\\u0000"', '"\\ud800"', '7')):
        yield f"prompt-{i}", text % (prompt, "")
    yield "parts", chat % ('{"role":"system","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},' + user, "")
    yield "image", chat % ('{"role":"user","content":[{"type":"image_url"}]}', "")
    yield "roles", chat % ('{"role":"developer","content":"d"},{"role":"assistant","content":null},{"role":"tool"}', "")
    yield "answer", ('{"id":"batch_req_3","custom_id":"a","response":{"status_code":200,"request_id":"req_3","body":{}},"error":null}')
    yield "error", ('{"id":"batch_req_4","custom_id":null,"response":null,"error":{"code":"invalid_line","message":"x","line":4}}')
    answer = '{"id":"batch_req_1","custom_id":"a","response":{},"error":null}'
    yield "answers-torn", answer + "\n" + answer[:30]
    yield "answers-whole", answer + "\n" + answer
    for i, line in enumerate(("", "{", "[]", '{"custom_id":1}', '{"custom_id":""}', '{"custom_id":"a","custom_id":"b"}',
                              '{"custom_id":"c","method":"GET"}', '{"custom_id":"d","method":"POST","url":"/v1/embeddings","body":{}}', "null")):
        yield f"bad-{i}", line


def main():
    for name, make in (("gguf", ggufs), ("safetensors", directories), ("tokenizer", tokenizers), ("tokenizer_json", pipelines), ("chat", chats), ("batch", lines)):
        directory = os.path.join(TOP, name)
        os.makedirs(directory, exist_ok=True)
        for seed, data in make():
            with open(os.path.join(directory, "seed-" + seed), "wb") as file:
                file.write(data if isinstance(data, bytes) else data.encode())


if __name__ == "__main__":
    main()
