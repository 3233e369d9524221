"""torch_decode.py: PyTorch's decode step of the same shape, in one CUDA graph, under the columns of `bench decode`.

What a careful engineer gets without kernels of their own: random bf16 weights, q, k, v and gate, up fused, SDPA over a bf16
cache of fixed length (cuDNN's kernel first, else flash), one graph of the whole step with the greedy draw in it. Run it
beside `bitshard bench decode --csv` on the same card:

    python3 tests/bench/torch_decode.py --contexts 1024,32768,131072 --csv torch.csv

The time of a token is a replay's, by CUDA events: median, 10th and 90th percentile of --steps. A length that does not fit is
a row that says so.
"""
import argparse
import csv
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

SHAPES = {  # layers, hidden, query heads, KV heads, head size, FFN, vocabulary, RoPE's base
    "llama-3.1-8b": (32, 4096, 32, 8, 128, 14336, 128256, 5e5),
    "llama-3.2-1b": (16, 2048, 32, 8, 64, 8192, 128256, 5e5),
    "qwen2.5-7b": (28, 3584, 28, 4, 128, 18944, 152064, 1e6),
    "mistral-7b": (32, 4096, 32, 8, 128, 14336, 32768, 1e6),
}
COLUMNS = ["op", "model", "kv", "grid", "device", "ranks", "batch", "context", "check", "steps", "ms", "ms_p10", "ms_p90", "tokens_s"]


def norm(x, gain):
    return F.rms_norm(x, (x.shape[-1],), gain, 1e-5)


class Model:
    """Weights once; a cache of `context` tokens and one more for each length."""

    def __init__(self, shape, batch):
        self.n_layers, self.hidden, self.heads, self.kv_heads, self.dim, self.ffn, self.vocab, self.theta = shape
        self.batch = batch
        q, kv = self.heads * self.dim, self.kv_heads * self.dim
        self.embedding = self.draw(self.vocab, self.hidden, 1)
        self.output = self.draw(self.vocab, self.hidden)
        self.gain = torch.ones(self.hidden, device="cuda", dtype=torch.bfloat16)
        self.layers = [(self.draw(q + 2 * kv, self.hidden), self.draw(self.hidden, q), self.draw(2 * self.ffn, self.hidden),
                        self.draw(self.hidden, self.ffn)) for _ in range(self.n_layers)]

    @staticmethod
    def draw(rows, cols, std=None):
        return torch.empty(rows, cols, device="cuda", dtype=torch.bfloat16).normal_(0, std or cols ** -0.5)

    def open_cache(self, context):
        self.k, self.v = (torch.empty(self.n_layers, self.batch, self.kv_heads, context + 1, self.dim, device="cuda",
                                      dtype=torch.bfloat16).normal_() for _ in range(2))
        angle = context * self.theta ** (-torch.arange(0, self.dim, 2, dtype=torch.float64) / self.dim)
        self.cos, self.sin = (f(angle).repeat(2).to("cuda", torch.bfloat16) for f in (torch.cos, torch.sin))
        self.token = torch.ones(self.batch, device="cuda", dtype=torch.int64)

    def rotate(self, x):
        a, b = x.chunk(2, -1)
        return x * self.cos + torch.cat((-b, a), -1) * self.sin

    def step(self):
        q_width, kv_width = self.heads * self.dim, self.kv_heads * self.dim
        x = F.embedding(self.token, self.embedding)
        for number, (qkv, o, gate_up, down) in enumerate(self.layers):
            q, k, v = F.linear(norm(x, self.gain), qkv).split((q_width, kv_width, kv_width), -1)
            q = self.rotate(q.view(self.batch, self.heads, 1, self.dim))
            self.k[number, :, :, -1:] = self.rotate(k.view(self.batch, self.kv_heads, 1, self.dim))
            self.v[number, :, :, -1:] = v.view(self.batch, self.kv_heads, 1, self.dim)
            attended = F.scaled_dot_product_attention(q, self.k[number], self.v[number], enable_gqa=True)
            x = x + F.linear(attended.reshape(self.batch, q_width), o)
            gate, up = F.linear(norm(x, self.gain), gate_up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, down)
        self.token.copy_(F.linear(norm(x, self.gain), self.output).argmax(-1))


def time_steps(model, steps):
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            model.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model.step()
    for _ in range(5):
        graph.replay()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    marks[0].record()
    for mark in marks[1:]:
        graph.replay()
        mark.record()
    torch.cuda.synchronize()
    ms = sorted(a.elapsed_time(b) for a, b in zip(marks, marks[1:]))
    return ms[steps // 2], ms[steps // 10], ms[steps - 1 - steps // 10]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="llama-3.1-8b", choices=SHAPES)
    parser.add_argument("--contexts", default="1024,32768,131072")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--csv", help="write the rows to this file; without it to standard output")
    args = parser.parse_args()
    file = open(args.csv, "w", newline="", encoding="utf-8") if args.csv else sys.stdout
    rows = csv.DictWriter(file, COLUMNS)
    rows.writeheader()
    with torch.inference_mode(), sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH], set_priority=True):
        model = Model(SHAPES[args.model], args.batch)
        for context in map(int, args.contexts.split(",")):
            row = {"op": "decode", "model": f"PyTorch {torch.__version__}, {args.model}", "kv": "bf16", "grid": "1x1",
                   "device": torch.cuda.get_device_name(), "ranks": 1, "batch": args.batch, "context": context, "check": "passed",
                   "steps": args.steps}
            try:
                model.k = model.v = None
                torch.cuda.empty_cache()
                model.open_cache(context)
                ms, p10, p90 = time_steps(model, args.steps)
                row.update(ms=ms, ms_p10=p10, ms_p90=p90, tokens_s=1e3 * args.batch / ms)
                print(f"PyTorch, {args.model}, batch {args.batch}, {context} cached: {ms:.3f} ms ({p10:.3f}-{p90:.3f})", file=sys.stderr)
            except torch.OutOfMemoryError:
                row.update(check="skipped: does not fit", steps=0)
            rows.writerow(row)
            file.flush()


main()
