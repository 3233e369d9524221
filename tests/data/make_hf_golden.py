#!/usr/bin/env python3
"""Writes tests/data/hf/NAME: small random models of each supported architecture, saved by transformers itself, and the
logits that it computes with them.

    pip install torch transformers
    python make_hf_golden.py [NAME ...]

Each directory is what save_pretrained() leaves (config.json, generation_config.json, safetensors, one of them in shards)
and, in "old" ones, config.json rewritten to the keys of transformers 4 (rope_theta, rope_scaling). Beside that:

    golden.json    the library's version, the token ids, and the positions whose logits are kept
    logits.f32     [positions, vocabulary] float32: transformers in float32, its own attention
    logits16.f32   the same with K (after RoPE) and V rounded to fp16 and back, as this project's f16 cache does

Weights are drawn so that attention is peaked and everything matters: the script itself checks that a model without its
window, scaling, biases, norms or with RoPE everywhere gives other logits.
"""
import json
import os
import shutil
import sys

import torch
import transformers
from transformers import AttentionInterface, AutoModelForCausalLM, GenerationConfig
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, SmolLM3Config
from transformers.models.llama.modeling_llama import eager_attention_forward

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "hf")
N = 150  # more than a page of 128
ROWS = [0, 1, 2, 31, 63, 64, 65, 100, 126, 127, 128, 129, 130] + list(range(140, N))

LLAMA3 = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
YARN = dict(rope_type="yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=32)


def plain(theta):
    return dict(rope_type="default", rope_theta=theta)


def shape(hidden, heads, kv, ffn, vocab, layers=2, **more):
    return dict(hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=kv, intermediate_size=ffn,
                vocab_size=vocab, num_hidden_layers=layers, max_position_embeddings=512, bos_token_id=0, eos_token_id=1,
                pad_token_id=None, **more)


# name: (config, dtype, old keys, shards, what must matter: config changes that must give other logits)
MODELS = {
    "llama2": (LlamaConfig(**shape(32, 2, 2, 48, 256, head_dim=64), rms_norm_eps=1e-5, rope_parameters=plain(1e4)),
               "float32", False, False, []),
    "llama31": (LlamaConfig(**shape(48, 4, 2, 48, 260, head_dim=64), rms_norm_eps=1e-5, rope_parameters=LLAMA3),
                "bfloat16", False, True, [dict(rope_parameters=plain(5e5))]),
    "llama32-old": (LlamaConfig(**shape(64, 2, 1, 64, 300), head_dim=64, tie_word_embeddings=True, rms_norm_eps=1e-5,
                                rope_parameters=dict(LLAMA3, factor=32.0)),
                    "bfloat16", True, False, [dict(rope_parameters=plain(5e5))]),
    "linear-old": (LlamaConfig(**shape(64, 2, 1, 64, 300), head_dim=64,
                               rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=4.0)),
                   "float16", True, False, [dict(rope_parameters=plain(1e4))]),
    "smollm2": (LlamaConfig(**shape(48, 3, 3, 64, 260), head_dim=64, tie_word_embeddings=True, rms_norm_eps=1e-5,
                            rope_parameters=plain(1e5)),
                "bfloat16", False, False, []),
    "mistral": (MistralConfig(**shape(64, 2, 1, 80, 260), head_dim=64, sliding_window=48, rms_norm_eps=1e-5,
                              rope_parameters=plain(1e4)),
                "bfloat16", False, False, [dict(sliding_window=None)]),
    "qwen2": (Qwen2Config(**shape(128, 2, 1, 32, 140), tie_word_embeddings=True, use_sliding_window=True,
                          sliding_window=40, max_window_layers=1, rope_parameters=plain(1e6)),
              "bfloat16", False, False, [dict(use_sliding_window=False, layer_types=None)]),
    "qwen25-yarn-old": (Qwen2Config(**shape(64, 2, 1, 64, 300), head_dim=64, rope_parameters=YARN),
                        "bfloat16", True, False, [dict(rope_parameters=plain(1e6))]),
    "qwen3": (Qwen3Config(**shape(48, 2, 1, 64, 260), head_dim=128, rope_parameters=plain(1e6)),
              "bfloat16", False, False, []),
    "smollm3": (SmolLM3Config(**shape(32, 2, 1, 32, 260, layers=4), head_dim=64, tie_word_embeddings=True,
                              rope_parameters=plain(2e6)),
                "bfloat16", False, False, [dict(no_rope_layers=[1, 1, 1, 1])]),
}


def fp16_cache(module, query, key, value, attention_mask, scaling, **kwargs):
    return eager_attention_forward(module, query, key.half().to(key.dtype), value.half().to(value.dtype), attention_mask,
                                   scaling, **kwargs)


AttentionInterface.register("fp16_cache", fp16_cache)
from transformers.masking_utils import AttentionMaskInterface, eager_mask  # noqa: E402

AttentionMaskInterface.register("fp16_cache", eager_mask)


@torch.no_grad()
def draw(model, seed):
    """Weights by fan-in, attention scores with a deviation of about 2, norms and biases that are not 1 and 0."""
    random = torch.Generator().manual_seed(seed)
    for name, p in sorted(model.named_parameters()):
        noise = torch.randn(p.shape, generator=random)
        if name.endswith("norm.weight") or "layernorm" in name:
            p.copy_(1 + 0.2 * noise)
        elif name.endswith("bias"):
            p.copy_(0.7 * noise)
        elif "embed_tokens" in name or "lm_head" in name:
            p.copy_(0.3 * noise)
        else:
            gain = 1.4 if "q_proj" in name or "k_proj" in name else 1.0
            p.copy_(gain * noise / p.shape[1] ** 0.5)


@torch.no_grad()
def logits(path, tokens, attention="eager", **changes):
    config = transformers.AutoConfig.from_pretrained(path)
    for key, value in changes.items():
        setattr(config, key, value)
    if changes:  # what the constructor derives from the changed keys
        config = type(config)(**{k: v for k, v in config.to_dict().items() if k not in ("model_type", "transformers_version")})
    model = AutoModelForCausalLM.from_pretrained(path, config=config, dtype=torch.float32, attn_implementation=attention)
    return model(torch.tensor([tokens]), use_cache=False).logits[0]


def distance(a, b):
    return float((a - b).norm() / b.norm())


def to_old_keys(path):
    """As transformers 4 wrote it."""
    with open(path) as file:
        config = json.load(file)
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    if config["model_type"] == "qwen2":
        rope["type"] = rope.pop("rope_type")
        config.pop("layer_types", None)
    config["rope_scaling"] = rope
    config["torch_dtype"] = config.pop("dtype")
    with open(path, "w") as file:
        json.dump(config, file, indent=2, sort_keys=True)
        file.write("\n")


def make(name):
    config, dtype, old, shards, changes = MODELS[name]
    path = os.path.join(HERE, name)
    shutil.rmtree(path, ignore_errors=True)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    draw(model, sum(name.encode()))
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9, bos_token_id=0,
                                               eos_token_id=[1, 2])
    model.to(getattr(torch, dtype)).save_pretrained(path, max_shard_size="100KB" if shards else "1GB")
    tokens = torch.randint(0, config.vocab_size, (N,), generator=torch.Generator().manual_seed(7)).tolist()
    exact, rounded = logits(path, tokens), logits(path, tokens, "fp16_cache")
    if old:
        to_old_keys(os.path.join(path, "config.json"))
        assert distance(logits(path, tokens), exact) == 0
    for change in changes:
        other = distance(logits(path, tokens, **change)[ROWS], exact[ROWS])
        print(f"  {name}: {change} changes logits by {other:.3f}")
        assert other > 0.05
    for file, values in (("logits.f32", exact), ("logits16.f32", rounded)):
        values[ROWS].contiguous().numpy().astype("<f4").tofile(os.path.join(path, file))
    with open(os.path.join(path, "golden.json"), "w") as file:
        json.dump({"library": "transformers " + transformers.__version__, "tokens": tokens, "rows": ROWS}, file)
        file.write("\n")
    size = sum(os.path.getsize(os.path.join(path, f)) for f in os.listdir(path))
    print(f"{name}: {size} bytes, fp16 cache moves logits by {distance(rounded, exact):.1e}, "
          f"deviation {float(exact.std()):.2f}")


def main():
    for name in sys.argv[1:] or MODELS:
        make(name)


if __name__ == "__main__":
    main()
