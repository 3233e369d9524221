"""Hugging Face directories: small models of each architecture written by transformers, whose float32 logits are the
golden data (tests/data/make_hf_golden.py), on 1, 2 and 3 ranks, in steps of many tokens and of one, the same models as
GGUF files, and where there is a GPU, on that. Then one with a tokenizer through the commands, and with its data at an odd
address.

The f16 cache rounds K and V. So there are two comparisons: with logits of transformers whose attention rounds them as
well, which leaves the order of sums, and with its logits as they are.
"""
import array
import json
import math
import os
import sys

sys.path.insert(0, os.path.dirname(__file__))
import common as c
import hf_dir

DATA = os.path.join(c.SRC, "tests", "data", "hf")
MIDDLE = c.tolerance("TOL_HF_LOGITS_MIDDLE")
WORST = c.tolerance("TOL_HF_LOGITS_WORST")
EXACT = c.tolerance("TOL_HF_LOGITS_EXACT")
ON_GPU = c.tolerance("TOL_GPU_LOGITS")
HAS_GPU = c.run(0, [c.MODEL_RUN, "gpus"]).returncode == 0


def floats(path):
    values = array.array("f")
    with open(path, "rb") as file:
        values.frombytes(file.read())
    return values


def distances(got, want, n_vocab):
    """Relative L2 of each row, in order of size; NaN counts as infinite."""
    rows = []
    for at in range(0, len(want), n_vocab):
        error = math.sqrt(sum((g - w) ** 2 for g, w in zip(got[at:at + n_vocab], want[at:at + n_vocab])))
        norm = math.sqrt(sum(w * w for w in want[at:at + n_vocab]))
        rows.append(error / norm if error <= 1e30 else math.inf)
    return sorted(rows)


def check_model(name):
    path = os.path.join(DATA, name)
    with open(os.path.join(path, "golden.json")) as file:
        golden = json.load(file)
    exact, rounded = (floats(os.path.join(path, f)) for f in ("logits.f32", "logits16.f32"))
    n_vocab = len(exact) // len(golden["rows"])
    ids, out = (os.path.join(c.WORK, "hf" + end) for end in (".i32", ".f32"))
    with open(ids, "wb") as file:
        array.array("i", golden["tokens"]).tofile(file)

    def logits(model, ranks, step, **options):
        c.model_run(ranks, model=model, tokens=ids, kv="f16", step=step, stripe_pages=1, out=out, **options)
        every, got = floats(out), array.array("f")
        for row in golden["rows"]:
            got.extend(every[row * n_vocab:(row + 1) * n_vocab])
        return got

    gguf = os.path.join(c.WORK, f"hf.{name}.gguf")
    runs = [(path, 1, 256), (path, 2, 256), (path, 3, 1)] + ([(gguf, 1, 1)] if hf_dir.to_gguf(path, gguf) else [])
    for model, ranks, step in runs:
        got = logits(model, ranks, step, **({"grid": "1x3"} if ranks == 3 else {}))
        rows, far = distances(got, rounded, n_vocab), distances(got, exact, n_vocab)[-1]
        middle, worst = rows[len(rows) // 2], rows[-1]
        what = f"{name}{' as GGUF' if model == gguf else ''}, {ranks} ranks, {step} tokens a step"
        c.check(middle <= MIDDLE and worst <= WORST, f"{what}: middle row {middle:.1e} <= {MIDDLE}, worst {worst:.1e} <= "
                f"{WORST} of transformers with an fp16 cache")
        c.check(far <= EXACT, f"{what}: worst row {far:.1e} <= {EXACT} of transformers")
    for step in (256, 1) if HAS_GPU else ():
        far = distances(logits(path, 0, step, device="cuda", act="f16"), exact, len(exact))[0]
        c.check(far <= ON_GPU, f"{name} on a GPU, {step} tokens a step: all rows {far:.1e} <= {ON_GPU} of transformers")


def check_odd(path):
    """The file's data begins at an odd byte: the same logits, bit for bit."""
    ids, outs = os.path.join(c.WORK, "hf.i32"), [os.path.join(c.WORK, f"hf.{i}.f32") for i in range(2)]
    c.model_run(1, model=path, tokens=ids, kv="f16", step=1, out=outs[0])
    tensors = hf_dir.read_tensors(path)
    name = os.path.join(path, "model.safetensors")
    pad = next(n for n in range(7, 200) if not try_pad(name, tensors, n))
    c.model_run(1, model=path, tokens=ids, kv="f16", step=1, out=outs[1])
    c.check(floats(outs[0]) == floats(outs[1]), f"data at an odd address (header padded to {pad}): the same logits")


def check_head(path):
    """A tied model's file may hold a copy of the table as its head, and an index beside a single file is not read."""
    ids, outs = os.path.join(c.WORK, "hf.i32"), [os.path.join(c.WORK, f"hf.{i}.f32") for i in range(2)]
    c.model_run(1, model=path, tokens=ids, kv="f16", step=1, out=outs[0])
    tensors = hf_dir.read_tensors(path)
    hf_dir.write_file(os.path.join(path, "model.safetensors"), {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]})
    hf_dir.write_json(path, "model.safetensors.index.json", {"weight_map": {}})
    c.model_run(1, model=path, tokens=ids, kv="f16", step=1, out=outs[1])
    c.check(floats(outs[0]) == floats(outs[1]), "with a copy of the embedding table as its head: the same logits")


def try_pad(name, tensors, n):
    hf_dir.write_file(name, tensors, n)
    with open(name, "rb") as file:
        return int.from_bytes(file.read(8), "little") % 2 == 0


def check_keys(name, changes, why):
    """Keys of config.json that are left out (None) or say the same in another way: the same logits, bit for bit."""
    path, ids = os.path.join(c.WORK, "hf-keys"), os.path.join(c.WORK, "hf.i32")
    outs = [os.path.join(c.WORK, f"hf.{i}.f32") for i in range(2)]
    with open(ids, "wb") as file:
        array.array("i", [i * 37 % 97 for i in range(120)]).tofile(file)
    for out, change in zip(outs, changes):
        hf_dir.make_whole(os.path.join(DATA, name), path)
        with open(os.path.join(path, "config.json")) as file:
            config = {**json.load(file), **change}
        hf_dir.write_json(path, "config.json", {key: value for key, value in config.items() if value is not None})
        c.model_run(1, model=path, tokens=ids, kv="f16", step=64, out=out)
    c.check(floats(outs[0]) == floats(outs[1]), f"{name}: {why}")


def check_commands(path):
    """tokenize, info, generate, chat on a whole directory."""
    def output(*words, ranks=0):
        done = c.run(ranks, [c.BITSHARD, *words])
        c.check(done.returncode == 0, f"{words[0]}: exit {done.returncode} {done.stderr[-300:] if done.returncode else ''}")
        return done.stdout

    ids = json.loads(output("tokenize", "--model", path, "--json", "-p", "abc <|im_end|>"))["tokens"]
    c.check(ids[0] == 259 and len(ids) == 13, f"tokenize: {ids}")
    ids = json.loads(output("tokenize", "--model", path, "--json", "--parse-special", "-p", "abc<|im_end|>"))["tokens"]
    c.check(ids[0] == 259 and ids[-1] == 2 and len(ids) == 3, f"tokenize --parse-special: {ids}")
    info = output("info", "--model", path)
    for part in ("llama", "2 layers, hidden 48", "BF16", "halves", "temperature 0.6, top-p 0.9"):
        c.check(part in info, f"info has {part!r}")
    for words in (["-p", "abc"], ["--chat", "-p", "hi"], ["-p", "abc", "--kv", "f16"]):
        greedy = [output("generate", "--model", path, "-n", "8", "--ignore-eos", "--temperature", "0", "--json", *words, ranks=r)
                  for r in (0, 2)]
        answers = [json.loads(text) for text in greedy]
        c.check(len(answers[0]["tokens"]) == 8, f"generate {words}: {answers[0]['tokens']}")
        if "f16" in words:
            c.check(answers[0]["tokens"] == answers[1]["tokens"], "generate: the same on two ranks")


def check_without_tokenizer(path):
    done = c.run(2, [c.BITSHARD, "generate", "--model", path, "--prompt-ids", "5 6 7", "-n", "4", "--json"])
    c.check(done.returncode == 0 and len(json.loads(done.stdout)["tokens"]) == 4, f"--prompt-ids without a tokenizer: {done.stderr[-200:]}")
    done = c.run(0, [c.BITSHARD, "generate", "--model", path, "-p", "x"])
    c.check(done.returncode == 1 and "tokenizer.json: No such file" in done.stderr, f"a text without a tokenizer: {done.stderr}")


names = sorted(os.listdir(DATA))
c.check(len(names) >= 10, f"{len(names)} models")
for name in names:
    check_model(name)
whole = hf_dir.make_whole(os.path.join(DATA, "smollm2"), os.path.join(c.WORK, "hf-whole"))
check_commands(whole)
check_odd(whole)
check_head(whole)
check_keys("qwen2", ({}, {"layer_types": None}), "max_window_layers says what layer_types does")
check_keys("smollm3", ({}, {"no_rope_layers": None, "layer_types": None, "tie_word_embeddings": None}), "no_rope_layer_interval, and tied by default")
yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
check_keys("qwen25-yarn-old", ({"rope_scaling": {**yarn, "mscale": 2.0, "mscale_all_dim": 0.5}},
                               {"rope_scaling": {**yarn, "attention_factor": (0.2 * math.log(4) + 1) / (0.05 * math.log(4) + 1)}}), "mscale and attention_factor")
check_without_tokenizer(os.path.join(DATA, "qwen3"))
c.finish()
