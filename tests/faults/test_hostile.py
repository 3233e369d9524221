"""A table of bad inputs: options, environment, files, text, damaged models. Each gives one line on standard error that names
what is wrong, the right exit code and nothing on standard output, on every number of ranks.

make check runs each without a launcher, and every fourth on 2 or 3 ranks; BITSHARD_BIG=1 each on 1, 2 and 3 as well.
"""
import concurrent.futures
import json
import os
import resource
import shutil
import struct
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "e2e"), os.path.join(HERE, "..", "fuzz")]
import common as c
import hf_dir
import make_seeds as g

DIR = os.path.join(c.WORK, "hostile")
MODEL = os.path.join(DIR, "good.gguf")
OUT = os.path.join(DIR, "out.txt")
os.makedirs(DIR, exist_ok=True)
cases = []  # (name, words, code, part, how): how: env, stdin, close, limit, stdout, setup


def case(words, code, part, **how):
    cases.append((words, code, part, how))


def generate(*words, code=2, part="", model=None, **how):
    case(["generate", "--model", MODEL if model is None else model, *([] if "nothing" in how else ["-p", "a"]), "-n", "2", *words], code, part, **how)


def path_of(name, data=None):
    path = os.path.join(DIR, name)
    if data is not None:
        if os.path.exists(path):
            os.unlink(path)
        with open(path, "wb") as file:
            file.write(data)
    return path


def options():
    """As a user mistypes them."""
    for words, part in (
            (["--foo"], "--foo: not an option"), (["--foo=1"], "--foo"), (["-z"], "-z: not an option"), (["--model"], "--model: needs a value"),
            (["--chat=1"], "--chat: takes no value"), (["--no-kv"], "--no-kv"), (["x"], "unexpected operand 'x'"), (["--", "--chat"], "operand"),
            (["-n", "-1"], "-n -1"), (["-n", "1.5"], "-n 1.5"), (["-n", ""], "-n "), (["-n", "9" * 30], "-n 999"), (["-n", "8G"], "-n 8G"),
            (["--max-tokens", "1Q"], "--max-tokens 1Q"), (["--temperature", "inf"], "--temperature inf"), (["--temperature", "nan"], "nan"),
            (["--temperature", "0x1"], "--temperature 0x1"), (["--temperature", "-1"], "--temperature -1"), (["--temperature", "1e999"], "1e999"),
            (["--top-p", "0"], "--top-p 0"), (["--top-p", "1,5"], "--top-p 1,5"), (["--min-p", "2"], "--min-p 2"), (["--top-k", "3000000000"], "--top-k"),
            (["--repeat-penalty", "0"], "--repeat-penalty 0"), (["--seed", "-1"], "--seed -1"), (["--threads", "0"], "--threads 0"),
            (["--context", "0"], "--context 0"), (["--context", "2"], "--context 2: a prompt of"), (["--stripe-pages", "0"], "--stripe-pages 0"),
            (["--chunk-tokens", "100"], "--chunk-tokens 100"), (["--chunk-tokens", "129"], "multiple of 128"), (["--step-ms", "0"], "--step-ms 0"),
            (["--watchdog-s", "-1"], "--watchdog-s -1"), (["--merge", ""], "--merge"), (["--isa", "sse"], "--isa sse"), (["--v-encoder", "x"], "--v-encoder x"),
            (["--device", "tpu"], "--device tpu"), (["--device", "gpu:"], "--device gpu:"), (["--stop", ""], "--stop: must not be empty"),
            (["--stop-token", "nowhere"], "--stop-token nowhere"), (["--stop-token", "99999999"], "--stop-token 99999999"),
            (["--system", "x"], "--system: only with --chat"), (["--prompt-file", "y"], "--prompt and --prompt-file"),
            (["--dry-run", "--json"], "--dry-run"), (["--quiet", "--verbose"], "--quiet"), (["--snapshot", ""], "--snapshot: must not be empty"),
            (["--snapshot-every", "5"], "--snapshot-every: only with --snapshot"), (["--resume", "auto"], "--resume: only with --snapshot"),
            (["--snapshot", "d", "--snapshot-every", "5q"], "--snapshot-every 5q"), (["--snapshot", "d", "--resume", "maybe"], "--resume maybe"),
            (["--snapshot", "d", "--snapshot-verify", "most"], "--snapshot-verify most"), (["--snapshot", "d", "--snapshot-keep", "1"], "--snapshot-keep 1"),
            (["--snapshot", "d", "--end-time", "yesterday"], "--end-time yesterday"),
            (["--grid", "0x1"], "--grid 0x1"), (["--grid", "axb"], "--grid axb"), (["--grid", "7x7"], "--grid 7x7"), (["--grid", "9" * 20 + "x1"], "--grid 999"),
            (["--kv", ""], "--kv"), (["--kv", "int3"], "int3"), (["--kv", "int4:"], "int4:"), (["--kv", "int4:g7"], "g7"), (["--kv", "int4:kc:kt"], "kt"),
            (["--kv", "f16vint4"], "f16vint4"), (["--kv", "int4:s99999999999"], "s99999999999")):
        generate(*words, part=part)
    for name, value in (("TOP_P", "2"), ("CHAT", "yes"), ("KV", "int5"), ("MAX_TOKENS", "many"), ("GRID", "3"), ("TEMPERATURE", "hot"), ("THREADS", "-2"),
                        ("MERGE", "worst"), ("QUIET", "2")):
        words = [f"BITSHARD_{name}"] if name not in ("KV", "GRID") else [value]
        case(["generate", "--model", MODEL, "-p", "x"], 2, words[0], env={f"BITSHARD_{name}": value})
    case(["generate", "-p", "x"], 2, "--model FILE is needed")
    case(["generat"], 2, "generat: not a command")
    case([], 2, "no command")
    case(["info", "--grid", "5x5", "--model", MODEL], 2, "--grid 5x5")


def files():
    long = "/" + "n" * 300
    loop = path_of("loop")
    if not os.path.islink(loop):
        os.symlink("loop", loop)
    fifo = path_of("fifo")
    if not os.path.exists(fifo):
        os.mkfifo(fifo)
    secret = path_of("secret.gguf", b"GGUF")
    os.chmod(secret, 0)
    for path, part in (("/nowhere.gguf", "/nowhere.gguf: No such file"), ("", "No such file"), (DIR, "config.json: No such file"), (fifo, "not a regular file"),
                       ("/dev/zero", "not a regular file"), (loop, "symbolic links"), (long, "too long"), (MODEL + "/x", "Not a directory"),
                       (path_of("empty", b""), "the file is empty"), (path_of("text", b"once upon a time\n"), "not a GGUF file"),
                       (secret, "version needs" if os.geteuid() == 0 else "Permission denied")):
        generate(code=1, part=part, model=path)
    for words, part in ((["--prompt-file", "/nowhere.txt"], "--prompt-file /nowhere.txt: No such"), (["--prompt-file", DIR], "Is a directory"),
                        (["--prompt-file", "/proc/self/mem"], "Input/output error"), (["--prompt-file", "/dev/zero"], "of text")):
        generate(*words, code=1, part=part, nothing=True)
    generate(part="the prompt is empty", code=2, nothing=True, model=path_of("no-bos.gguf", variant(drop=["tokenizer.ggml.bos_token_id"])), stdin=b"")
    generate(part="standard input: Bad file descriptor", code=1, nothing=True, close=0)
    generate(part="standard output: Bad file descriptor", code=1, close=1)
    generate("--json", part="standard output: No space left", code=1, stdout="/dev/full")
    generate("--dry-run", part="standard output: No space left", code=1, stdout="/dev/full")
    case(["generate", "--help"], 1, "standard output: No space left", stdout="/dev/full")
    case(["--version"], 1, "standard output: Bad file descriptor", close=1)
    case(["make-model", "tiny", OUT], 1, "File too large", limit=1000)
    case(["tokenize", "--model", MODEL, "--decode"], 1, "'x' is not an id", stdin=b"3 x")
    request = '{"custom_id":"a","method":"POST","url":"/v1/completions","body":{"prompt":"x","max_tokens":2}}\n'
    batch = ["generate", "--model", MODEL, "--batch", path_of("in.jsonl", request.encode())]
    for words, code, part, how in (([], 2, "needs --output", {}), (["-o", "/dev/full"], 1, "/dev/full: No space left", {}),
                                   (["-o", DIR], 1, "Is a directory", {}), (["-o", "/nowhere/x"], 1, "/nowhere/x: No such", {}),
                                   (["-o", path_of("small.jsonl", b"")], 1, "File too large", {"limit": 20}),
                                   (["-o", path_of("foreign.jsonl", b"foreign\n")], 1, "line 1 is not an answer", {}),
                                   (["-o", batch[-1]], 2, "is the file of --batch", {})):
        case([*batch, *words], code, part, **how)
    case([*batch[:3], "--batch", "/nowhere.jsonl", "-o", OUT], 1, "--batch /nowhere.jsonl: No such")
    case([*batch[:3], "--batch", path_of("blank.jsonl", b"\n \n"), "-o", OUT], 1, "has no line")


def texts():
    for text, part in ((b"ab\xff", "byte 2 (0xff) is not UTF-8"), (b"\xc0\x80", "byte 0"), (b"a\xed\xa0\x80", "byte 1"), (b"abc\xe2\x82", "byte 3"),
                       (b"\xf5", "0xf5")):
        generate(code=1, part=part, nothing=True, stdin=text)
    generate("--chat", code=1, part="byte 1 (0xfe) of its content is not UTF-8", nothing=True, stdin=b"a\xfe")
    generate("--context", "100", code=2, part="--context 100: a prompt of 200 tokens and --max-tokens 2 need 202", nothing=True, stdin=b"\0" * 200)
    generate("-n", "1G", code=1, part="could not be had")
    case(["tokenize", "--model", MODEL], 1, "is not UTF-8", stdin=b"\x80")


def variant(change=None, drop=(), add=(), tensors=None, **parts):
    """A small whole model with some keys changed: key: (type, value) or (type, value, item type)."""
    pairs, table = g.model_parts(**parts)
    change = dict(change or {})
    pairs = [(key, *change.pop(key)) if key in change else (key, *rest) for key, *rest in pairs if key not in drop]
    assert not change, change
    return g.gguf([*pairs, *add], tensors(table) if tensors else table)


def patched(anchor, offset, data, base=None):
    """The bytes at `offset` behind the end of the first `anchor` replaced."""
    whole = bytearray(base or variant())
    at = (whole.index(anchor) + len(anchor) if anchor else 0) + offset
    whole[at:at + len(data)] = data
    return bytes(whole)


def u32(n):
    return struct.pack("<I", n)


def u64(n):
    return struct.pack("<Q", n)


def models():
    """One damage each; every kind that facts of other readers' failures name."""
    whole = variant()
    arch, tokens = b"general.architecture", b"tokenizer.ggml.tokens"
    header = [("magic", patched(b"", 0, b"GGML"), "not a GGUF file"), ("version", patched(b"", 4, u32(2)), "version is 2"),
              ("endian", patched(b"", 4, b"\0\0\0\3"), "big-endian"), ("tensors", patched(b"", 8, u64(1 << 62)), "number of tensors is 4611"),
              ("keys", patched(b"", 16, u64(1 << 63)), "number of keys is 9223"), ("more-keys", patched(b"", 16, u64(18)), ""),
              ("less-keys", patched(b"", 16, u64(16)), ""), ("key-empty", patched(arch, -28, u64(0)), "is 0 bytes long"),
              ("key-long", patched(arch, -28, u64(1 << 50)), "needs 1125899906842624 bytes"), ("key-bytes", patched(arch, -3, b"\xff"), "not UTF-8"),
              ("value-type", patched(arch, 0, u32(13)), "value type of general.architecture is 13"),
              ("string-long", patched(arch, 4, u64((1 << 64) - 1)), "value of general.architecture needs"),
              ("array-type", patched(tokens, 4, u32(77)), "array item type of tokenizer.ggml.tokens is 77"),
              ("array-nested", patched(tokens, 4, u32(9)), "nested arrays"), ("array-long", patched(tokens, 8, u64(1 << 61)), "array length"),
              ("item-long", patched(tokens, 16, u64(1 << 40)), "array item of tokenizer.ggml.tokens needs"),
              ("name-long", patched(b"token_embd.weight", -25, u64(65)), "65 bytes long"), ("dims", patched(b"token_embd.weight", 0, u32(5)), "is 5"),
              ("dim-zero", patched(b"token_embd.weight", 4, u64(0)), "is 0: must be 1"), ("dim-big", patched(b"token_embd.weight", 4, u64(1 << 63)), "must be 1"),
              ("product", patched(b"token_embd.weight", 4, u64(1 << 62) + u64(1 << 62)), "2^63-1"),
              ("block", patched(b"token_embd.weight", 4, u64(33)), "multiple of Q4_0's block"), ("type", patched(b"token_embd.weight", 20, u32(999)), "no such type"),
              ("type-foreign", patched(b"token_embd.weight", 20, u32(16)), "IQ2_XXS"), ("offset", patched(b"token_embd.weight", 24, u64(7)), "multiple of 32"),
              ("offset-far", patched(b"token_embd.weight", 24, u64(1 << 40)), "end behind"), ("overlap", patched(b"output_norm.weight", 16, u64(0)), "overlaps")]
    header += [(f"cut-{n}", whole[:n], "needs" if n != 3 else "magic needs 4") for n in (3, 7, 20, 500, 900)]
    header += [(f"cut-{n}", whole[:n], "than the file can hold") for n in (24, 60)]
    header += [("cut-data", whole[:-100], "end behind"), ("twice", variant(add=[("llama.block_count", g.U32, 1)]), "llama.block_count comes twice"),
               ("alignment", variant(add=[("general.alignment", g.U32, 24)]), "power of two"), ("alignment-0", variant(add=[("general.alignment", g.U32, 0)]), "is 0"),
               ("alignment-text", variant(add=[("general.alignment", g.STRING, "32")]), "general.alignment")]
    key = "llama."
    shape = [({key + "block_count": (g.U32, 0)}, "llama.block_count is 0"), ({key + "block_count": (g.U32, 1 << 31)}, "llama.block_count"),
             ({key + "block_count": (g.U32, 2)}, "blk.1."), ({key + "block_count": (g.STRING, "1")}, "llama.block_count"),
             ({key + "context_length": (g.I32, -5)}, "llama.context_length"), ({key + "embedding_length": (g.U32, 128)}, "token_embd.weight"),
             ({key + "feed_forward_length": (g.U32, 96)}, "ffn_"), ({key + "attention.head_count": (g.U32, 3)}, "head_count"),
             ({key + "attention.head_count": (g.U32, 2)}, "must be 64 or 128"), ({key + "attention.layer_norm_rms_epsilon": (g.F32, float("nan"))}, "epsilon"),
             ({key + "attention.layer_norm_rms_epsilon": (g.F32, -1.0)}, "epsilon is -1"), ({key + "rope.freq_base": (g.F32, 0.0)}, "freq_base is 0"),
             ({key + "rope.freq_base": (g.F32, float("inf"))}, "freq_base is inf"), ({"general.architecture": (g.STRING, "mamba")}, "mamba"),
             ({"tokenizer.ggml.model": (g.STRING, "llama")}, "tokenizer.ggml.model llama"), ({"tokenizer.ggml.pre": (g.STRING, "mine")}, "pre mine"),
             ({"tokenizer.ggml.tokens": (g.ARRAY, ["a"], g.STRING)}, "token_type has 12 items"), ({"tokenizer.ggml.tokens": (g.U32, 1)}, "tokenizer.ggml.tokens"),
             ({"tokenizer.ggml.token_type": (g.ARRAY, [9] * 12, g.I32)}, "token_type"), ({"tokenizer.ggml.merges": (g.ARRAY, ["no such"], g.STRING)}, "merges"),
             ({"tokenizer.ggml.merges": (g.ARRAY, ["ab"], g.STRING)}, "merges"), ({"tokenizer.ggml.eos_token_id": (g.U32, 999)}, "eos_token_id is 999"),
             ({"tokenizer.ggml.tokens": (g.ARRAY, [b"\xff"] + ["a"] * 11, g.STRING)}, "UTF-8")]
    header += [(f"shape-{i}", variant(change), part) for i, (change, part) in enumerate(shape)]
    more = [("expert_count", g.U32, 8), ("rope.scaling.type", g.STRING, "magic"), ("attention.head_count_kv", g.U32, 5), ("rope.dimension_count", g.U32, 63),
            ("attention.value_length", g.U32, 32)]
    header += [(f"more-{name}", variant(add=[(key + name, kind, item)]), key + name) for name, kind, item in more]
    header += [(f"less-{name}", variant(drop=[name]), name) for name in ("general.architecture", "llama.embedding_length", "tokenizer.ggml.tokens",
                                                                        "llama.attention.layer_norm_rms_epsilon")]
    header += [("tensor-less", variant(tensors=lambda t: t[:-1]), "ffn_down.weight is missing"), ("tensor-more", variant(tensors=lambda t: [*t, ("q.bias", 0, [64])]), "q.bias"),
               ("tensor-twice", variant(tensors=lambda t: [*t, t[1]]), "output_norm.weight comes twice")]
    for name, data, part in header:
        generate(code=1, part=part, model=path_of(f"bad-{name}.gguf", data))
    generate("--chat", code=1, part="chat_template", model=path_of("bad-template.gguf", variant({"tokenizer.chat_template": (g.STRING, "[INST]")})))
    good = open(MODEL, "rb").read()
    norm = good.index(b"blk.0.attn_norm.weight")
    offset = struct.unpack_from("<Q", good, norm + 22 + 4 + 8 + 4)[0]
    data = len(good) - data_bytes(good)
    generate("--kv", "f16", code=1, part="not a number", model=path_of("bad-nan.gguf", good[:data + offset] + b"\0\0\xc0\x7f" * 4 + good[data + offset + 16:]))


GOLDEN = os.path.join(c.SRC, "tests", "data", "hf")


def directory(part, base="smollm2", files=None, **changes):
    """A whole directory with one damage: files: name: bytes, None (gone) or a function of the JSON in it; changes: keys of
    config.json, None to leave one out."""
    path = os.path.join(DIR, f"hf-{len(cases)}")
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    whole = os.path.join(DIR, "hf-whole-" + base)
    if not os.path.exists(whole):
        hf_dir.make_whole(os.path.join(GOLDEN, base), whole)
    files = dict(files or {})
    if changes:
        def change(config):
            config.update(changes)
            return {key: value for key, value in config.items() if value is not None}
        files["config.json"] = change
    for name in os.listdir(whole):
        if name not in files:
            os.symlink(os.path.join(whole, name), os.path.join(path, name))
    for name, data in files.items():
        if callable(data):
            with open(os.path.join(whole, name), encoding="utf-8") as file:
                data = json.dumps(data(json.load(file))).encode()
        if data is not None:
            path_of(os.path.join(os.path.basename(path), name), data)
    generate(code=1, part=part, model=path)


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return u64(len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def directories():
    """config.json, safetensors, the index, tokenizer.json: one damage each."""
    for part, data in (("config.json: line 1", b"{"), ("must be an object", b"[]"), ("config.json: line 1", b'{"a": 1, "a": 2}'), ("the file is empty", b""),
                       ("maximum parsing depth", b"[" * 100000), ("config.json: line 1", b"\xff\xfe"), ("config.json: line 1", b'{"a": 99999999999999999999}'),
                       ("model_type is missing", b"{}"), ("config.json: No such file", None), ("16777218 bytes: more than 16777216", b"{" + b" " * 2**24 + b"}")):
        directory(part, files={"config.json": data})
    for part, changes in (("model_type is mamba", {"model_type": "mamba"}), ("architectures is LlamaForX: must be LlamaForCausalLM", {"architectures": ["LlamaForX"]}),
                          ("hidden_act is gelu", {"hidden_act": "gelu"}), ("attention_bias is true", {"attention_bias": True}), ("mlp_bias is true", {"mlp_bias": True}),
                          ("quant_method is awq", {"quantization_config": {"quant_method": "awq"}}), ("num_hidden_layers is 0", {"num_hidden_layers": 0}),
                          ("model.layers.2.input_layernorm.weight is missing", {"num_hidden_layers": 3}), ("num_hidden_layers is a string", {"num_hidden_layers": "2"}),
                          ("tensor model.layers.1.input_layernorm.weight: not one", {"num_hidden_layers": 1}), ("num_hidden_layers is 1000000000", {"num_hidden_layers": 10**9}),
                          ("head_dim is 80: must be 64 or 128", {"head_dim": 80}), ("head_dim is 16 (hidden_size", {"head_dim": None}),
                          ("num_key_value_heads is 2: must divide", {"num_key_value_heads": 2}), ("num_attention_heads is missing", {"num_attention_heads": None}),
                          ("tensor model.embed_tokens.weight is [260, 48]: config.json asks for [999, 48]", {"vocab_size": 999}), ("vocab_size is 2147483647", {"vocab_size": 2**31 - 1}),
                          ("config.json asks for [260, 96]", {"hidden_size": 96}), ("gate_proj.weight is [64, 48]: config.json asks for [65, 48]", {"intermediate_size": 65}),
                          ("rms_norm_eps is -1", {"rms_norm_eps": -1}), ("rms_norm_eps is missing", {"rms_norm_eps": None}), ("max_position_embeddings", {"max_position_embeddings": None}),
                          ("tensor lm_head.weight is missing", {"tie_word_embeddings": False}), ("tie_word_embeddings is an integer", {"tie_word_embeddings": 1}),
                          ("sliding_window is 5: not a key of a llama", {"sliding_window": 5}), ("rope_parameters.rope_theta is 0", {"rope_parameters": {"rope_theta": 0}}),
                          ("rope_parameters.rope_type is dynamic", {"rope_parameters": {"rope_type": "dynamic", "factor": 2}}), ("rope_parameters is an array", {"rope_parameters": []}),
                          ("rope_parameters.full_attention is an object", {"rope_parameters": {"full_attention": {}}}),
                          ("rope_parameters.factor is missing", {"rope_parameters": {"rope_type": "linear"}}), ("rope_scaling.factor is 0", {"rope_parameters": None, "rope_scaling": {"type": "yarn", "factor": 0}}),
                          ("low_freq_factor is 4: must be below", {"rope_parameters": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}}),
                          ("partial_rotary_factor is 0.3", {"partial_rotary_factor": 0.3}), ("must be an object", {"quantization_config": True})):
        directory(part, **changes)
    directory("no_rope_layers has 1 items", "smollm3", no_rope_layers=[1])
    directory("no_rope_layers[0] is 2", "smollm3", no_rope_layers=[2, 1, 1, 1])
    directory("layer_types[1] is chunked", "qwen2", layer_types=["full_attention", "chunked"])
    name = "model.safetensors"
    for part, data in ((": neither model.safetensors nor", None), ("the file is empty", b""), ("needs 8 bytes, the file has 7", b"1234567"), ("length is 9223372036854775808", u64(1 << 63)),
                       ("length is 100 bytes: the file has 2", safetensors(b"{}", length=100)), ("does not begin with {", safetensors(b"[1]")), ("line 1", safetensors(b'{"a":')),
                       ("nested more than 8 deep", safetensors(b'{"a":' + b"[" * 9)), ("no tensors", safetensors(b"{}")), ("line 1", safetensors(b'{"a":1,"a":2}')),
                       ("tensor a: must be an object of dtype, shape", safetensors({"a": 1})), ("tensor a: must be an object of", safetensors({"a": entry(more=1)})),
                       ("dtype is no string", safetensors({"a": entry(dtype=3)})), ("dtype is F8_E4M3: must be", safetensors({"a": entry(dtype="F8_E4M3")})),
                       ("shape is no array", safetensors({"a": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}})), ("shape[1] is -2", safetensors({"a": entry(shape=[2, -2])})),
                       ("shape[0] is 0", safetensors({"a": entry(shape=[0])})), ("shape[0] is no integer", safetensors({"a": entry(shape=[2.0])})),
                       ("shape has 5 dimensions", safetensors({"a": entry(shape=[1] * 5)})), ("more than 2^63-1", safetensors({"a": entry(shape=[2**62, 2**62])})),
                       ("are not two integers", safetensors({"a": entry(offsets=[0])})), ("data_offsets are [8, 0]", safetensors({"a": entry(offsets=[8, 0])}, b"12345678")),
                       ("the file has 7 bytes of data", safetensors({"a": entry()}, b"1234567")), ("its shape and dtype make 8", safetensors({"a": entry(offsets=[0, 4])}, b"12345678")),
                       ("12 bytes: its shape and dtype make 8", safetensors({"a": entry(offsets=[0, 12])}, b"1" * 12)),
                       ("data_offsets are [-8, 0]", safetensors({"a": entry(offsets=[-8, 0])}, b"12345678")),
                       ("before the one in front of it ends at byte 8", safetensors({"a": entry(), "b": entry(offsets=[4, 12])}, b"1" * 12)),
                       ("leaving a gap behind the one that ends at byte 8", safetensors({"a": entry(), "b": entry(offsets=[12, 20])}, b"1" * 20)),
                       ("1 bytes behind the last tensor", safetensors({"a": entry()}, b"1" * 9)), ("leaving a gap", safetensors({"a": entry(offsets=[1, 9])}, b"1" * 9)),
                       ("control character", safetensors({"a\nb": entry()}, b"1" * 8)), ("0 bytes long", safetensors({"": entry()}, b"1" * 8)),
                       ("__metadata__ is an array", safetensors({"__metadata__": [], "a": entry()}, b"1" * 8)), ("embed_tokens.weight is missing", safetensors({"a": entry()}, b"1" * 8))):
        directory(part, files={name: data})
    good = open(os.path.join(GOLDEN, "smollm2", name), "rb").read()
    n = 8 + struct.unpack("<Q", good[:8])[0]
    directory("bytes of data", files={name: good[:-1]})
    directory("1 bytes behind the last tensor", files={name: good + b"x"})
    directory("not a number", files={name: good[:n] + b"\xc0\x7f" * ((len(good) - n) // 2)})
    tensors = hf_dir.read_tensors(os.path.join(GOLDEN, "smollm2"))
    more = path_of("more.safetensors")
    table = tensors["model.embed_tokens.weight"][2]
    for dtype, shape, head in (("BF16", [260, 48], bytes(260 * 96)), ("F16", [260, 48], table), ("BF16", [259, 48], table[96:]),
                               ("BF16", [260, 48], bytes([table[0] ^ 1]) + table[1:]), ("BF16", [260, 48], table[:-1] + bytes([table[-1] ^ 1]))):
        hf_dir.write_file(more, {**tensors, "lm_head.weight": (dtype, shape, head)})
        directory("tie_word_embeddings is true, and tensor lm_head.weight is not", files={name: open(more, "rb").read()})
    hf_dir.write_file(more, {**tensors, "model.layers.0.self_attn.q_proj.bias": ("BF16", [192], bytes(384))})
    directory("q_proj.bias: not one that this llama model has", files={name: open(more, "rb").read()})
    for base, tensor, part in (("qwen25-yarn-old", "model.layers.1.self_attn.v_proj.bias", "blk.1.attn_v.bias is missing"),
                               ("qwen3", "model.layers.0.self_attn.k_norm.weight", "blk.0.attn_k_norm.weight is missing")):
        some, copy, out = hf_dir.read_tensors(os.path.join(GOLDEN, base)), path_of("less"), path_of(f"less-{base}.gguf")
        shutil.rmtree(copy, ignore_errors=True)
        os.makedirs(copy)
        shutil.copy(os.path.join(GOLDEN, base, "config.json"), copy)
        hf_dir.write_file(os.path.join(copy, name), {key: value for key, value in some.items() if key != tensor})
        c.check(hf_dir.to_gguf(copy, out), f"{base} as GGUF")
        generate(code=1, part=part, model=out)
    index, shard = "model.safetensors.index.json", "model-00001-of-00003.safetensors"
    some = hf_dir.read_file(os.path.join(GOLDEN, "llama31", shard))
    tensor = sorted(some)[0]

    def mapped(where):
        return lambda data: {"weight_map": {**data["weight_map"], tensor: where}}

    for part, change in (("weight_map is missing", lambda data: {}), ("weight_map has 0 tensors", lambda data: {"weight_map": {}}), ("is an integer: must be a file's name", mapped(3)),
                         ('"../x"', mapped("../x")), ('"/etc/passwd"', mapped("/etc/passwd")), ("nowhere.safetensors: No such file", mapped("nowhere.safetensors")),
                         ("weight_map says it is in model-00002", mapped("model-00002-of-00003.safetensors")),
                         ("is not in the index's weight_map", lambda data: {"weight_map": {k: v for k, v in data["weight_map"].items() if k != tensor}}),
                         ("that file has no such tensor", lambda data: {"weight_map": {**data["weight_map"], "ghost": shard}})):
        directory(part, "llama31", files={index: change})
    directory(shard, "llama31", files={shard: open(os.path.join(GOLDEN, "llama31", shard), "rb").read()[:-2]})
    directory(shard + ": No such file", "llama31", files={shard: None})


def tokenizer_files():
    def model(**changes):
        return lambda data: {**data, "model": {**data["model"], **changes}}

    def top(**changes):
        return lambda data: {**data, **changes}

    def vocab(change):
        return lambda data: {**data, "model": {**data["model"], "vocab": {**data["model"]["vocab"], **change}}}

    def added(**change):
        return lambda data: {**data, "added_tokens": [{**data["added_tokens"][0], **change}, *data["added_tokens"][1:]]}

    split = {"type": "Split", "pattern": {"Regex": "a("}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    for part, change in (("No such file", None), ("the file is empty", b""), ("line 1", b"{]"), ("model is missing", b"{}"), ("model.type is Unigram", model(type="Unigram")),
                         ("model.dropout is set", model(dropout=0.1)), ("model.byte_fallback is true", model(byte_fallback=True)), ("model.vocab is an array", model(vocab=[])),
                         ("model.merges is missing", model(merges=None)), ("model.merges[0]: its left part", model(merges=[["zz", "b"]])), ("model.merges[0] is not two tokens", model(merges=["ab"])),
                         ("model.merges[1] is not two strings", model(merges=[["a", "b"], "a b"])), ("model.merges[0] is not two strings", model(merges=[["a", 3]])),
                         ("id that is a string", vocab({"x": "1"})), ("id of token x is -1", vocab({"x": -1})), ("which", vocab({"x": 200})), ("the largest id is 1000000", vocab({"x": 10**6})),
                         ("tokenizer.json's vocabulary has 301 items, model.embed_tokens.weight 260 rows", vocab({"x": 300})), ("added_tokens[0].id is no integer", added(id="0")),
                         ("added_tokens[0].rstrip is true", added(rstrip=True)), ("added_tokens[0].content is missing", added(content=None)),
                         ("normalizer.type is Lowercase", top(normalizer={"type": "Lowercase"})), ("pre_tokenizer.type is Whitespace", top(pre_tokenizer={"type": "Whitespace"})),
                         ("neither a byte-level", top(pre_tokenizer=None)), ("pre_tokenizer. is a string", top(pre_tokenizer="x")), ("pattern 0: PCRE2 error", top(pre_tokenizer={"type": "Sequence", "pretokenizers": [split, byte_level]})),
                         ("must be \"Isolated\"", top(pre_tokenizer={"type": "Sequence", "pretokenizers": [{**split, "behavior": "Removed"}, byte_level]})),
                         ("more than 8 steps", top(pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Digits"}] * 9})),
                         ("comes behind the step", top(pre_tokenizer={"type": "Sequence", "pretokenizers": [byte_level, byte_level]})),
                         ("post_processor.type is BertProcessing", top(post_processor={"type": "BertProcessing"})),
                         ("post_processor's <s> is not a token", top(post_processor={"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}]}))):
        directory(part, files={"tokenizer.json": change})
    config = "tokenizer_config.json"
    for part, change in (("eos_token is <eos>: not a token", top(eos_token="<eos>")), ("eos_token is an integer", top(eos_token=7)), ("chat_template is true", top(chat_template=True)),
                         ("add_bos_token is a string", top(add_bos_token="no"))):
        directory(part, files={config: change})
    for part, change in (("eos_token_id is no integer", top(eos_token_id=["1"])), ("eos_token_id is -5", top(eos_token_id=-5)), ("temperature is -1", top(temperature=-1)), ("top_p is a string", top(top_p="x"))):
        directory(part, files={"generation_config.json": change})


def data_bytes(good):
    """Of the data section: the last tensor's end."""
    last = good.rindex(b".weight") + 7
    n_dims = struct.unpack_from("<I", good, last)[0]
    header = last + 4 + 8 * n_dims + 12
    return len(good) - -(-header // 32) * 32


def run(words, how, ranks):
    env = {**os.environ, **how.get("env", {})}

    def prepare():
        if "close" in how:
            os.close(how["close"])
        if "limit" in how:
            resource.setrlimit(resource.RLIMIT_FSIZE, (how["limit"], how["limit"]))

    line = ([] if ranks == 0 else ["sh", c.LAUNCH, str(ranks)]) + [c.BITSHARD, *words]
    stdin = subprocess.PIPE if "stdin" in how else subprocess.DEVNULL
    stdout = open(how["stdout"], "wb") if "stdout" in how else subprocess.PIPE
    try:
        return subprocess.run(line, stdin=None if "stdin" in how else stdin, input=how.get("stdin"), stdout=stdout, stderr=subprocess.PIPE, env=env,
                              preexec_fn=prepare if how.keys() & {"close", "limit"} else None, timeout=120)
    finally:
        if "stdout" in how:
            stdout.close()


def judge(number, words, code, part, how, ranks):
    try:
        done = run(words, how, ranks)
    except subprocess.TimeoutExpired:
        return f"{ranks} ranks: {words}: hangs"
    lines = [text for text in done.stderr.decode(errors="replace").splitlines() if text.startswith("bitshard")]
    good = done.returncode == code and len(lines) == 1 and part in lines[0] and "error: " in lines[0] and not done.stdout
    return None if good else f"{ranks} ranks: {' '.join(words)[-90:]!r} {how}: exit {done.returncode}, wanted {code} and {part!r}: {lines}, out {done.stdout}"


def closed_stderr():
    """Nobody hears the lines then, but they must not go into a file that got the free descriptor."""
    request = b'{"custom_id":"a","method":"POST","url":"/v1/completions","body":{"prompt":"a","max_tokens":2}}\n'
    out = path_of("closed.jsonl")
    if os.path.exists(out):
        os.unlink(out)
    words = ["generate", "--model", MODEL, "--batch", path_of("closed.in", request), "-o", out]
    done = run(words, {"close": 2}, 0)
    with open(out, "rb") as file:
        text = file.read()
    c.check(done.returncode == 0 and text.count(b"\n") == 1 and text.startswith(b'{"id":"batch_req_1"'), f"closed stderr: exit {done.returncode}, {text!r}")
    done = run(["generate", "--model", MODEL, "--top-p", "3"], {"close": 2}, 0)
    c.check(done.returncode == 2 and not done.stdout, f"closed stderr, a bad option: exit {done.returncode} {done.stdout}")


def main():
    made = c.run(0, [c.BITSHARD, "make-model", "tiny", MODEL, "--layers", "1", "--context-length", "2000000000"])
    assert made.returncode == 0, made.stderr
    options()
    files()
    texts()
    models()
    directories()
    tokenizer_files()
    jobs = []
    for number, (words, code, part, how) in enumerate(cases):
        # The launcher has streams and limits of its own, and these need no ranks.
        alone = how.keys() & {"close", "limit", "stdout"} or words[:1] in (["tokenize"], ["make-model"], ["--version"]) or "/dev/zero" in words
        counts = [0] if alone else [0, 1, 2, 3] if c.BIG else [0, 2 + number // 4 % 2] if number % 4 == 0 else [0]
        jobs += [(number, words, code, part, how, ranks) for ranks in counts]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        wrong = [said for said in pool.map(lambda job: judge(*job), jobs) if said]
    for said in wrong:
        c.check(False, said)
    closed_stderr()
    c.check(len(cases) >= 100, f"{len(cases)} bad inputs, {len(jobs)} runs, {len(wrong)} wrong")


main()
c.finish()
