"""A float32 reference of the `llama` architecture in numpy, from the same dequantized weights.

Independent of the program: the file is read and its blocks are dequantized by the `gguf` package, and the forward pass
is the plain one over a whole text with an exact cache. RoPE angles are formed in float64, as docs/kv-format.md says.

    reference.py MODEL TOKENS OUT [N]     f32 logits [N, vocab] for i32 token ids
"""
import sys

import gguf
import numpy as np


class Model:
    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        get = lambda key, default=None: reader.fields[key].contents() if key in reader.fields else default
        self.weights = {t.name: np.asarray(gguf.dequantize(t.data, t.tensor_type), np.float32).reshape(
            [int(n) for n in reversed(t.shape)]) for t in reader.tensors}
        arch = get("general.architecture")
        assert arch == "llama", arch
        self.n_layers = get(f"{arch}.block_count")
        self.n_heads = get(f"{arch}.attention.head_count")
        self.n_kv = get(f"{arch}.attention.head_count_kv", self.n_heads)
        self.eps = get(f"{arch}.attention.layer_norm_rms_epsilon")
        hidden = get(f"{arch}.embedding_length")
        self.dim = get(f"{arch}.attention.key_length", hidden // self.n_heads)
        rot = get(f"{arch}.rope.dimension_count", self.dim)
        theta = get(f"{arch}.rope.freq_base", 10000.0)
        self.inv_freq = float(theta) ** (-np.arange(0, rot, 2, dtype=np.float64) / rot)
        if "rope_freqs.weight" in self.weights:
            self.inv_freq /= self.weights["rope_freqs.weight"].astype(np.float64)
        self.output = self.weights.get("output.weight", self.weights["token_embd.weight"])

    def norm(self, x, gain):
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32) + np.float32(self.eps)) * gain

    def rope(self, x):
        """x [T, heads, D]: pairs (2i, 2i + 1) turned by position · inv_freq[i]."""
        angle = np.arange(len(x), dtype=np.float64)[:, None] * self.inv_freq
        cos, sin = np.cos(angle).astype(np.float32)[:, None], np.sin(angle).astype(np.float32)[:, None]
        n = 2 * len(self.inv_freq)
        even, odd, out = x[..., 0:n:2], x[..., 1:n:2], x.copy()
        out[..., 0:n:2] = even * cos - odd * sin
        out[..., 1:n:2] = even * sin + odd * cos
        return out

    def attention(self, q, k, v):
        """Causal; q [T, H, D], k and v [T, K, D]; blocks of 512 queries so that scores stay small."""
        out, group = np.empty_like(q), self.n_heads // self.n_kv
        scale = np.float32(1 / np.sqrt(self.dim))
        for first in range(0, len(q), 512):
            last = min(first + 512, len(q))
            hidden = np.arange(last)[None, :] > np.arange(first, last)[:, None]
            for h in range(self.n_heads):
                s = q[first:last, h] @ k[:last, h // group].T * scale
                s[hidden] = -np.inf
                s = np.exp(s - s.max(axis=1, keepdims=True))
                out[first:last, h] = s @ v[:last, h // group] / s.sum(axis=1, keepdims=True)
        return out

    def hidden_states(self, tokens):
        w, t = self.weights, len(tokens)
        x = w["token_embd.weight"][tokens]
        for i in range(self.n_layers):
            get = lambda name: w[f"blk.{i}.{name}.weight"]
            h = self.norm(x, get("attn_norm"))
            q = self.rope((h @ get("attn_q").T).reshape(t, self.n_heads, self.dim))
            k = self.rope((h @ get("attn_k").T).reshape(t, self.n_kv, self.dim))
            v = (h @ get("attn_v").T).reshape(t, self.n_kv, self.dim)
            x = x + self.attention(q, k, v).reshape(t, -1) @ get("attn_output").T
            h = self.norm(x, get("ffn_norm"))
            gate = h @ get("ffn_gate").T
            x = x + (gate / (1 + np.exp(-gate)) * (h @ get("ffn_up").T)) @ get("ffn_down").T
        return self.norm(x, w["output_norm.weight"])

    def logits(self, tokens, first=0):
        return self.hidden_states(tokens)[first:] @ self.output.T


def main():
    model, tokens, out = sys.argv[1:4]
    ids = np.fromfile(tokens, np.int32)
    if len(sys.argv) > 4:
        ids = ids[: int(sys.argv[4])]
    reference = Model(model)
    states = reference.hidden_states(ids)
    with open(out, "wb") as file:
        for first in range(0, len(ids), 256):
            (states[first:first + 256] @ reference.output.T).astype("<f4").tofile(file)


if __name__ == "__main__":
    np.seterr(over="ignore")
    main()
