"""hf_dir.py: for tests: reading safetensors, a GGUF file of a Hugging Face directory, and a directory that is whole.

Written out here with nothing but the standard library, after the formats' descriptions, so that what the program reads is
checked against other eyes than its own.
"""
import json
import math
import os
import shutil
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "fuzz"))
import make_seeds as g

TYPES = {"F32": (0, 4), "F16": (1, 2), "BF16": (30, 2)}  # GGUF's number, bytes


def read_file(path):
    """name: (dtype, shape, bytes)"""
    with open(path, "rb") as file:
        data = file.read()
    n = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + n])
    header.pop("__metadata__", None)
    return {name: (e["dtype"], e["shape"], data[8 + n + e["data_offsets"][0]:8 + n + e["data_offsets"][1]])
            for name, e in header.items()}


def read_tensors(path):
    tensors = {}
    for name in sorted(os.listdir(path)):
        if name.endswith(".safetensors"):
            tensors.update(read_file(os.path.join(path, name)))
    return tensors


def write_file(path, tensors, pad=8):
    """tensors: name: (dtype, shape, bytes); the header's length is a multiple of pad."""
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // pad) * pad, b" ")
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


NAMES = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
         "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}


def gguf_name(name):
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}
    if name in fixed:
        return fixed[name]
    _, _, layer, rest = name.split(".", 3)
    stem, end = rest.rsplit(".", 1)
    return f"blk.{layer}.{NAMES[stem]}.{end}"


def interleave(data, shape, head_dim):
    """Rows of each head from halves (i, i + D/2) to neighbours (2i, 2i + 1)."""
    size = len(data) // shape[0]
    rows = [data[r * size:(r + 1) * size] for r in range(shape[0])]
    half = head_dim // 2
    return b"".join(rows[h + j * half + i] for h in range(0, shape[0], head_dim) for i in range(half) for j in range(2))


def llama3_factors(rope, head_dim):
    for i in range(head_dim // 2):
        freq = rope["rope_theta"] ** (-2 * i / head_dim)
        turns = rope["original_max_position_embeddings"] * freq / (2 * math.pi)
        low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
        kept = min(max((turns - low) / (high - low), 0), 1)
        yield 1 / (kept + (1 - kept) / factor)


def to_gguf(path, out):
    """As llama.cpp's converter lays such a model out. False: GGUF has no place for something of it."""
    with open(os.path.join(path, "config.json")) as file:
        config = json.load(file)
    kind = config["model_type"]
    arch = "llama" if kind == "mistral" else kind
    rope = config.get("rope_parameters") or dict(config.get("rope_scaling") or {}, rope_theta=config["rope_theta"])
    scaling = rope.get("rope_type", rope.get("type", "default"))
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    if "sliding_attention" in config.get("layer_types", []):
        return False
    pairs = [("general.architecture", g.STRING, arch)]
    for key, value in (("block_count", "num_hidden_layers"), ("context_length", "max_position_embeddings"),
                       ("embedding_length", "hidden_size"), ("feed_forward_length", "intermediate_size"),
                       ("attention.head_count", "num_attention_heads"), ("attention.head_count_kv", "num_key_value_heads")):
        pairs.append((f"{arch}.{key}", g.U32, config[value]))
    pairs += [(f"{arch}.attention.key_length", g.U32, head_dim), (f"{arch}.attention.value_length", g.U32, head_dim),
              (f"{arch}.attention.layer_norm_rms_epsilon", g.F32, config["rms_norm_eps"]),
              (f"{arch}.rope.freq_base", g.F32, rope["rope_theta"]), (f"{arch}.rope.dimension_count", g.U32, head_dim)]
    if kind == "mistral":
        pairs.append((f"{arch}.attention.sliding_window", g.U32, config["sliding_window"]))
    if scaling in ("linear", "yarn"):
        pairs += [(f"{arch}.rope.scaling.type", g.STRING, scaling), (f"{arch}.rope.scaling.factor", g.F32, rope["factor"])]
    if scaling == "yarn":
        pairs.append((f"{arch}.rope.scaling.original_context_length", g.U32, rope["original_max_position_embeddings"]))
    tensors = []
    for name, (dtype, shape, data) in read_tensors(path).items():
        if arch in ("llama", "smollm3") and ("q_proj" in name or "k_proj" in name):
            data = interleave(data, shape, head_dim)
        tensors.append((gguf_name(name), TYPES[dtype][0], shape[::-1], data))
    if scaling == "llama3":
        factors = b"".join(struct.pack("<f", f) for f in llama3_factors(rope, head_dim))
        tensors.append(("rope_freqs.weight", 0, [head_dim // 2], factors))
    with open(out, "wb") as file:
        file.write(g.gguf_of(pairs, tensors))
    return True


def tokenizer_json():
    """260 ids: three specials, GPT-2's 256 letters, one merge."""
    letters = [g.letters_of(bytes([b])) for b in range(256)]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, letters[ord("a")] + letters[ord("b")]]
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [{"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True} for i in range(3)],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None, "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
                  "fuse_unk": False, "byte_fallback": False, "vocab": {t: i for i, t in enumerate(tokens) if i > 2},
                  "merges": [["a", "b"]]}}


TEMPLATE = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def write_json(path, name, data):
    with open(os.path.join(path, name), "w", encoding="utf-8") as file:
        json.dump(data, file)


def make_whole(model, path):
    """A copy of a golden model with a tokenizer of 260 ids."""
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(model, path)
    write_json(path, "tokenizer.json", tokenizer_json())
    write_json(path, "tokenizer_config.json", {"bos_token": None, "eos_token": "<|im_end|>", "chat_template": TEMPLATE})
    return path
