#!/usr/bin/env python3
"""PyTorch's f16 attention of a chunk of query tokens behind a long cache, as CSV in the columns of `bitshard bench kernel attend`.

    torch_prefill.py [--csv FILE] [TxS ...]

32 query heads, 8 KV heads of 128; T query tokens behind S cached ones. SDPA's flash (FA2) and cuDNN backends with enable_gqa,
causal with the mask's corner at the lower right ("causal"), and without a mask over all S + T tokens ("full": more work, counted,
and no mask to slow it down). Calls go round over two caches and follow each other without a stop, as bitshard's do, 25 times;
the median counts. One row of one head is checked against fp64. The rate of a bf16 product of 8192³ is measured before each row
(and printed in the column of bitshard's). Needs PyTorch with CUDA.
"""
import argparse
import csv
import math
import sys

SHAPES = ["2048x0", "2048x8K", "2048x32K", "2048x128K", "2048x512K", "512x128K", "64x128K", "17x128K"]
HEADS, KV_HEADS, DIM = 32, 8, 128
COLUMNS = "op,shape,kv,mode,check,device,context,tokens,us,us_p10,us_p90,error_o,tflop_s,percent_gemm,gemm_tflop_s".split(",")
N_TIMES, TOLERANCE = 25, 5e-3  # f16 output and f16 P: 1e-3 is usual


def parse_shape(text):
    tokens, cached = text.split("x")
    units = {"K": 1 << 10, "M": 1 << 20}
    return int(tokens), int(cached[:-1]) * units[cached[-1]] if cached[-1] in units else int(cached)


def measure(torch, call, n=N_TIMES):
    """Sorted microseconds of calls that follow each other."""
    for i in range(3):
        call(i)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(n + 1)]
    events[0].record()
    for i in range(n):
        call(i)
        events[i + 1].record()
    torch.cuda.synchronize()
    return sorted(a.elapsed_time(b) * 1e3 for a, b in zip(events, events[1:]))


def gemm_rate(torch):
    a, b = (torch.randn((8192, 8192), dtype=torch.bfloat16, device="cuda") for _ in range(2))
    times = measure(torch, lambda i: a @ b, 200)
    return 2 * 8192**3 / times[len(times) // 2] * 1e-6


def error_of(torch, out, q, k, v, causal):
    """Relative L2 of the first query token of the last head against fp64."""
    seen = k.shape[2] - (q.shape[2] - 1 if causal else 0)
    scores = (k[0, -1, :seen].double() @ q[0, -1, 0].double()) / math.sqrt(DIM)
    expected = torch.softmax(scores, 0) @ v[0, -1, :seen].double()
    return float((out[0, -1, 0].double() - expected).norm() / expected.norm())


def run(torch, tokens, cached, backend, causal):
    from torch.nn.attention import sdpa_kernel
    from torch.nn.attention.bias import causal_lower_right
    generator = torch.Generator("cuda").manual_seed(1)

    def draw(heads, n):
        return torch.randn((1, heads, n, DIM), dtype=torch.float16, device="cuda", generator=generator)

    q, caches = draw(HEADS, tokens), [(draw(KV_HEADS, cached + tokens), draw(KV_HEADS, cached + tokens)) for _ in range(2)]
    mask = causal_lower_right(tokens, cached + tokens) if causal else None

    def call(i):
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(q, *caches[i % 2], attn_mask=mask, enable_gqa=True)

    error = error_of(torch, call(0), q, *caches[0], causal)
    if not error <= TOLERANCE:
        raise RuntimeError(f"O is off by {error:.2e}")
    return measure(torch, call), error


def make_row(text, shape, mode, causal, device, result, why, gemm):
    tokens, cached = shape
    row = dict.fromkeys(COLUMNS, "")
    row.update(op="attend", shape=text, kv="f16", mode=f"{mode}-{'causal' if causal else 'full'}", check=why or "passed", device=device,
               context=cached + tokens, tokens=tokens, gemm_tflop_s=gemm)
    if result:
        times, error = result
        pairs = tokens * (cached + (tokens + 1) / 2) if causal else tokens * (cached + tokens)
        us = times[N_TIMES // 2]
        rate = 4 * DIM * HEADS * pairs / us * 1e-6
        row.update(us=us, us_p10=times[N_TIMES // 10], us_p90=times[-1 - N_TIMES // 10], error_o=error, tflop_s=rate,
                   percent_gemm=100 * rate / gemm)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv")
    parser.add_argument("shapes", nargs="*", default=SHAPES)
    options = parser.parse_args()
    shapes = [(text, parse_shape(text)) for text in options.shapes]
    try:
        import torch
        from torch.nn.attention import SDPBackend
    except ImportError as error:
        sys.exit(f"torch_prefill.py: {error}")
    if not torch.cuda.is_available():
        sys.exit("torch_prefill.py: PyTorch sees no GPU")
    device = f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}"
    with open(options.csv, "w", newline="", encoding="utf-8") if options.csv else sys.stdout as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for text, shape in shapes:
            for mode, backend in (("torch-flash", SDPBackend.FLASH_ATTENTION), ("torch-cudnn", SDPBackend.CUDNN_ATTENTION)):
                for causal in (True, False):
                    gemm, result, why = gemm_rate(torch), None, ""
                    try:
                        result = run(torch, *shape, backend, causal)
                    except (RuntimeError, ValueError) as error:
                        why = str(error).splitlines()[0]
                    torch.cuda.empty_cache()
                    writer.writerow(make_row(text, shape, mode, causal, device, result, why, gemm))
                    file.flush()


main()
