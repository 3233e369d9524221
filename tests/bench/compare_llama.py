#!/usr/bin/env python3
"""bitshard against llama.cpp on one machine: the same file, prompt tokens, threads and KV bits, in turns.

    compare_llama.py [--bitshard PROGRAM] [--prompt TEXT-FILE] [--tokens 512,6000] [--threads 1,2] [--kv f16,int4] [--isa NAME]
                     [--rounds 3] [--answer 32] [--ranks] [--states DIR] MODEL.gguf

Needs llama-cpp-python; the Python that runs this script brings its own build of llama.cpp. Its KV cache is f16, or q4_0
for K and V where bitshard's is int4; flash attention always, its fastest way. bitshard runs one rank of N threads, or with
--ranks N ranks of one thread under mpirun. Each measurement is a process of its own, and the two programs take turns; the
table has medians of tokens/s and bitshard's over llama.cpp's. The first answer token is part of the prefill in both.
llama.cpp runs one token before, untimed, so that its weights are in memory; bitshard does not.

With --states, llama.cpp prefills each case once, its cache is kept in DIR, and later rounds, and later runs with the same
DIR, load it and only decode: behind 6,000 tokens in q4_0 one prefill takes minutes.
"""
import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time


def run_llama(model, ids, threads, kv, state, answer):
    """Prefill and decode seconds in this process: C calls only, logits of the last token as in bitshard. A state that is
    there takes the prefill's place, with the seconds that it took."""
    import llama_cpp as ll

    quiet = ll.llama_log_callback(lambda level, text, data: None)
    ll.llama_log_set(quiet, ctypes.c_void_p(0))
    ll.llama_backend_init()
    loaded = ll.llama_model_load_from_file(model.encode(), ll.llama_model_default_params())
    params = ll.llama_context_default_params()
    params.n_ctx = len(ids) + answer + 8
    params.n_threads = params.n_threads_batch = threads
    params.flash_attn_type = 1
    params.type_k = params.type_v = ll.GGML_TYPE_Q4_0 if kv == "int4" else ll.GGML_TYPE_F16
    context = ll.llama_init_from_model(loaded, params)
    n_vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(loaded))
    tokens = (ll.llama_token * (len(ids) + 1))(*ids)

    def step(first, n):
        batch = ll.llama_batch_get_one(ctypes.cast(ctypes.byref(tokens, 4 * first), ctypes.POINTER(ll.llama_token)), n)
        if ll.llama_decode(context, batch) != 0:
            sys.exit("llama_decode failed")

    def best():
        import numpy as np
        return int(np.argmax(np.ctypeslib.as_array(ll.llama_get_logits(context), shape=(n_vocab,))))

    step(0, 1)
    ll.llama_memory_clear(ll.llama_get_memory(context), True)
    if state and os.path.exists(state + ".json"):
        n = ctypes.c_size_t()
        if not ll.llama_state_seq_load_file(context, state.encode(), 0, tokens, len(tokens), ctypes.byref(n)):
            sys.exit(f"{state}: llama_state_seq_load_file failed")
        with open(state + ".json") as file:
            kept, prefill = json.load(file)
        if n.value != len(ids) + 1 or kept != ids:
            sys.exit(f"{state}: the cache of another prompt")
    else:
        begin = time.perf_counter()
        for first in range(0, len(ids), params.n_batch):
            step(first, min(params.n_batch, len(ids) - first))
        tokens[len(ids)] = best()
        prefill = time.perf_counter() - begin
        if state:
            ll.llama_state_seq_save_file(context, state.encode(), 0, tokens, len(tokens))
            with open(state + ".json", "w") as file:
                json.dump([ids, prefill], file)
    begin = time.perf_counter()
    for _ in range(answer - 1):
        step(len(ids), 1)
        tokens[len(ids)] = best()
    return prefill, time.perf_counter() - begin


def run_bitshard(args, prompt, threads, kv):
    command = [args.bitshard, "generate", "--model", args.model, "--prompt-file", prompt, "--kv", kv, "-n", str(args.answer),
               "--ignore-eos", "--json", "--isa", args.isa]
    if args.ranks:
        command = ["mpirun", "--oversubscribe", "-np", str(threads), *command]
    else:
        command += ["--threads", str(threads)]
    timings = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["timings"]
    return timings["prefill_ms"] / 1e3, timings["decode_ms"] / 1e3


def cut_prompt(args, n, directory):
    """A file whose text is n tokens: pieces of the prompt joined until the count fits."""
    def tokenize(text):
        done = subprocess.run([args.bitshard, "tokenize", "--model", args.model, "--json"], input=text, check=True,
                              capture_output=True)
        return json.loads(done.stdout)["tokens"]

    with open(args.prompt, "rb") as file:
        text = file.read()
    low, high = 0, len(text)
    while low < high:
        middle = (low + high) // 2
        if len(tokenize(text[:middle])) < n:
            low = middle + 1
        else:
            high = middle
    path = os.path.join(directory, f"{n}.txt")
    with open(path, "wb") as file:
        file.write(text[:low])
    return path, tokenize(text[:low])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--bitshard", default="build/bitshard")
    parser.add_argument("--prompt", default="docs/examples/the-long-survey.txt")
    parser.add_argument("--tokens", default="512,6000")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--kv", default="f16,int4")
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--answer", type=int, default=32)
    parser.add_argument("--ranks", action="store_true")
    parser.add_argument("--states")
    parser.add_argument("--llama", help=argparse.SUPPRESS)  # ids, threads, kv, state: this process measures llama.cpp once
    args = parser.parse_args()
    if args.llama:
        print(json.dumps(run_llama(args.model, *json.loads(args.llama), args.answer)))
        return
    print(f"{'tokens':>6} {'threads':>7} {'kv':5}  {'prefill':>8} {'llama.cpp':>9} {'ratio':>5}  {'decode':>8} {'llama.cpp':>9} {'ratio':>5}")
    with tempfile.TemporaryDirectory() as directory:
        for n in map(int, args.tokens.split(",")):
            path, ids = cut_prompt(args, n, directory)
            for threads in map(int, args.threads.split(",")):
                for kv in args.kv.split(","):
                    ours, theirs = [], []
                    state = args.states and os.path.join(args.states, f"{len(ids)}-{threads}-{kv}")
                    for _ in range(args.rounds):
                        ours.append(run_bitshard(args, path, threads, kv))
                        done = subprocess.run([sys.executable, __file__, "--llama", json.dumps([ids, threads, kv, state]),
                                               "--answer", str(args.answer), args.model], check=True, capture_output=True)
                        theirs.append(json.loads(done.stdout.splitlines()[-1]))
                    rates = [statistics.median(count / run[part] for run in runs)
                             for part, count in ((0, len(ids)), (1, args.answer - 1)) for runs in (ours, theirs)]
                    print(f"{len(ids):6} {threads:7} {kv:5}  {rates[0]:8.1f} {rates[1]:9.1f} {rates[0] / rates[1]:5.2f}  "
                          f"{rates[2]:8.1f} {rates[3]:9.1f} {rates[2] / rates[3]:5.2f}", flush=True)


main()
