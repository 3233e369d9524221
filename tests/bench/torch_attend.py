#!/usr/bin/env python3
"""PyTorch's f16 attention on the shapes of `bitshard bench kernel attend`, as CSV in the same columns.

    torch_attend.py [--read-gb-s X] [--csv FILE] [BxHQ/HKVxS[xD] ...]

SDPA's flash (FA2, split over the keys) and cuDNN backends, enable_gqa, one query token a sequence; K and V stored by
head and stored by token, of which the faster one counts. As bitshard does it: a CUDA graph of calls that go round over
caches of 240 MB or more, 25 replays in turns, the median of a replay over its calls. One head of one sequence is
checked against fp64. --read-gb-s: the streaming read that bitshard printed in the same session, for the % column.
Shapes without a query mask only: no ragged batches. Needs PyTorch with CUDA.
"""
import argparse
import csv
import math
import sys

SHAPES = ["1x32/8x8K", "1x32/8x32K", "1x32/8x128K", "1x32/8x1M", "8x32/8x32K", "8x32/8x128K", "20x32/8x16K", "1x32/32x128K",
          "1x64/8x1M", "1x32/8x1Mx64"]
COLUMNS = ("op,shape,kv,mode,check,device,number,batch,heads,kv_heads,head_dim,context,tokens,window,layers,bytes,us,us_p10,us_p90,"
           "gb_s,percent,read_gb_s,error_o,error_lse").split(",")
ROTATE_BYTES = 240e6
MIN_CALLS, N_REPLAYS, TOLERANCE = 8, 25, 5e-3  # f16 output and f16 P: 1e-3 is usual


def parse_shape(text):
    batch, heads, context, *dim = text.split("x")
    hq, hkv = heads.split("/")
    units = {"K": 1 << 10, "M": 1 << 20}
    tokens = int(context[:-1]) * units[context[-1]] if context[-1] in units else int(context)
    return int(batch), int(hq), int(hkv), tokens, int(dim[0]) if dim else 128


def make_caches(torch, shape, by_token):
    """Query and as many (K, V) as a rotation takes, [B, Hkv, S, D] whatever the order in memory."""
    batch, hq, hkv, tokens, dim = shape
    bytes_of_call = batch * hkv * tokens * dim * 4
    n = math.ceil(ROTATE_BYTES / bytes_of_call)
    generator = torch.Generator("cuda").manual_seed(1)

    def cache():
        order = (batch, tokens, hkv, dim) if by_token else (batch, hkv, tokens, dim)
        x = torch.randn(order, dtype=torch.float16, device="cuda", generator=generator)
        return x.transpose(1, 2) if by_token else x

    q = torch.randn((batch, hq, 1, dim), dtype=torch.float16, device="cuda", generator=generator)
    return q, [(cache(), cache()) for _ in range(n)], bytes_of_call


def error_of(torch, out, q, k, v):
    """Relative L2 of the last head of the last sequence against fp64."""
    kv_head = k.shape[1] - 1
    scores = (k[-1, kv_head].double() @ q[-1, -1, 0].double()) / math.sqrt(k.shape[3])
    expected = torch.softmax(scores, 0) @ v[-1, kv_head].double()
    return float((out[-1, -1, 0].double() - expected).norm() / expected.norm())


def record(torch, call, caches):
    """A graph of a whole number of rotations."""
    n_calls = math.ceil(MIN_CALLS / len(caches)) * len(caches)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for i in range(3):
            call(*caches[i % len(caches)])
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(n_calls):
            call(*caches[i % len(caches)])
    return graph, n_calls


def time_graph(torch, graph, n_calls):
    """Sorted microseconds of a call."""
    for _ in range(5):
        graph.replay()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(N_REPLAYS)]
    for start, stop in events:
        start.record()
        graph.replay()
        stop.record()
    torch.cuda.synchronize()
    return sorted(start.elapsed_time(stop) * 1e3 / n_calls for start, stop in events)


def measure(torch, shape, backend, by_token):
    from torch.nn.attention import sdpa_kernel
    q, caches, bytes_of_call = make_caches(torch, shape, by_token)

    def call(k, v):
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    error = error_of(torch, call(*caches[0]), q, *caches[0])
    if not error <= TOLERANCE:
        raise RuntimeError(f"O is off by {error:.2e}")
    graph, n_calls = record(torch, call, caches)
    times = time_graph(torch, graph, n_calls)
    del graph
    return times, error, bytes_of_call


def best_of(torch, shape, backend):
    """The faster of both orders in memory; an error only where both fail."""
    results, why = [], ""
    for by_token in (False, True):
        try:
            results.append(measure(torch, shape, backend, by_token))
        except (RuntimeError, ValueError) as error:
            why = str(error).splitlines()[0]
        torch.cuda.empty_cache()
    return (min(results, key=lambda r: r[0][N_REPLAYS // 2]), None) if results else (None, why)


def make_row(text, shape, mode, device, result, why, read_gb_s):
    batch, hq, hkv, tokens, dim = shape
    row = dict.fromkeys(COLUMNS, "")
    row.update(op="attend", shape="x".join(text.split("x")[:3]) + (f" D{dim}" if dim != 128 else ""), kv="f16", mode=mode,
               check=why or "passed", device=device, number=0, batch=batch, heads=hq, kv_heads=hkv, head_dim=dim, context=tokens,
               tokens=1, window=0, read_gb_s=read_gb_s or "")
    if result:
        times, error, bytes_of_call = result
        us = times[N_REPLAYS // 2]
        gb_s = bytes_of_call / us * 1e-3
        row.update(bytes=bytes_of_call, us=us, us_p10=times[N_REPLAYS // 10], us_p90=times[-1 - N_REPLAYS // 10], gb_s=gb_s,
                   percent=100 * gb_s / read_gb_s if read_gb_s else "", error_o=error)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--read-gb-s", type=float, default=0)
    parser.add_argument("--csv")
    parser.add_argument("shapes", nargs="*", default=SHAPES)
    options = parser.parse_args()
    shapes = [(text, parse_shape(text)) for text in options.shapes]
    try:
        import torch
        from torch.nn.attention import SDPBackend
    except ImportError as error:
        sys.exit(f"torch_attend.py: {error}")
    if not torch.cuda.is_available():
        sys.exit("torch_attend.py: PyTorch sees no GPU")
    device = f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}"
    with open(options.csv, "w", newline="", encoding="utf-8") if options.csv else sys.stdout as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for text, shape in shapes:
            for mode, backend in (("torch-flash", SDPBackend.FLASH_ATTENTION), ("torch-cudnn", SDPBackend.CUDNN_ATTENTION)):
                result, why = best_of(torch, shape, backend)
                writer.writerow(make_row(text, shape, mode, device, result, why, options.read_gb_s))
                file.flush()


main()
