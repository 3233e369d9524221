/* table.c: every subcommand and every option, once.
 *
 * A row reads: name, letter, kind, scaled, value, default, min, max, choices, group, help, subcommands. */
#include "src/cli/table.h"

#include <stddef.h>

#define GENERATE   (1u << BS_CLI_GENERATE)
#define TOKENIZE   (1u << BS_CLI_TOKENIZE)
#define MAKE_MODEL (1u << BS_CLI_MAKE_MODEL)
#define INFO       (1u << BS_CLI_INFO)
#define BENCH      (1u << BS_CLI_BENCH)
#define EVAL       (1u << BS_CLI_EVAL)
#define SNAPSHOT   (1u << BS_CLI_SNAPSHOT)
#define ALL        (GENERATE | TOKENIZE | MAKE_MODEL | INFO | BENCH | EVAL | SNAPSHOT)

const bs_command bs_cli_commands[BS_CLI_N_COMMANDS] = {
    [BS_CLI_GENERATE] =
        {"generate", "", 0, 0, "Answers a prompt",
         "The answer goes to standard output as it is drawn, and ends with a newline. The prompt comes "
         "from --prompt, from --prompt-file, or from standard input when that is not a terminal, and is "
         "taken byte for byte. Sampling is greedy unless --temperature is given; then a seed and a grid "
         "give the same text every time.\n\n"
         "Under mpirun all ranks work on the one answer: the KV heads and the cache's pages are divided "
         "over them (--grid). --dry-run prints each rank's memory and stops.\n\n"
         "With --batch FILE and -o FILE it answers a file of requests instead, --batch-size of them at a time; when one "
         "is done the next takes its place. An answer is a whole line on the disk or is not there, so a job that was "
         "killed is started again with the same command and goes on. What a request leaves out is as the options say.\n\n"
         "With --snapshot DIR the cache and the ids are written there while it answers, every --snapshot-every tokens or "
         "minutes, verified, and the same command goes on from the last one, on any number of ranks: nothing of it is "
         "computed again. SIGUSR1 takes one now. SIGTERM, SIGUSR2, SIGINT and the approach of --end-time end the run after "
         "the step that runs, with a last one, and exit code 85: start it again. With another prompt what both begin with "
         "is kept.\n\n"
         "Without --snapshot SIGINT and SIGTERM end the answer after the step that runs."},
    [BS_CLI_TOKENIZE] =
        {"tokenize", "", 0, 0, "Turns text into a model's token ids, or back",
         "Text comes from --prompt, --prompt-file or standard input; ids go to standard output, on one "
         "line. With --decode it is ids that come, parted by spaces, commas or newlines, and their text "
         "that goes out."},
    [BS_CLI_MAKE_MODEL] =
        {"make-model", "tiny|smol OUT.gguf", 2, 2,
         "Writes a small model of random weights, for tests and benches",
         "tiny has 4 layers of 32 heads on 8 KV heads of 128; smol has SmolLM2-135M's shape. The "
         "options change one number each of the shape. The same options give the same bytes."},
    [BS_CLI_INFO] =
        {"info", "", 0, 0, "Describes the build, the devices and, with --model, a model",
         "With --model it prints the shape, the types of the tensors, the size of a token in the cache, and "
         "for the ranks of this job the grid and the part of the model that each holds."},
    [BS_CLI_BENCH] =
        {"bench", "kernel [WHICH] | decode | prefill | comm | snapshot DIR", 1, 2,
         "Times kernels, a token or a prompt of a model, collectives, or snapshots",
         "bench kernel times attend, quantize, gemv or read, or without a word all of them. Each case is checked "
         "first (attend: a few rows against fp64 over the dequantized cache; quantize: bit "
         "for bit against a CPU; gemv: rows against fp64), then timed, then a row of the table: bytes of a call, microseconds (median, "
         "10th and 90th percentile), GB/s, and the share of the bandwidth that a streaming read reached in the "
         "same run; on a GPU, attend of 17 query tokens and more in TFLOP/s too, beside a bf16 product measured "
         "just before. Calls go round over more memory than the caches hold; on a GPU they are one CUDA graph, "
         "plain and with kernels that overlap. Without --case these are the cases of the project's speed "
         "targets (a CPU has smaller ones); a case that fails does not end the run, but the run fails.\n\n"
         "The shape options time attend on a shape of your own instead.\n\n"
         "bench decode runs on all ranks of the job: milliseconds a token of --model (random:NAME needs no file) behind "
         "each of --contexts cached tokens of noise, for each format of --kv and each of --batches; with the floor, "
         "which is weights and cache read once at the bandwidth of a streaming read, and where the time goes. A row "
         "that does not fit the device's memory says so.\n\n"
         "bench prefill runs on all ranks of the job: it reads a random prompt, cut as generate cuts it, as long as the longest "
         "of --contexts, and times each chunk: milliseconds, tokens/s, TFLOP/s, and the share of the rate of a large GEMM "
         "measured in the same run; the first chunk and the last of each length also op by op. A shorter prompt is the "
         "beginning of a longer one. --samples times chunks at places of the prompt behind noise instead, and --seconds ends "
         "the reading: what was not timed then follows a line through what was, and the row says so.\n\n"
         "bench comm runs on all ranks of the job: the all-reduce and each merge of a decode step for a model of 4096 "
         "channels and 32 heads of 128, 1, 4 and 16 tokens, over the transport that the ranks have or that --transport "
         "names; ten calls in a row, one by one and, where it can be, as a CUDA graph. Times are those of the slowest "
         "rank: median, 10th, 90th and 99th percentile; bus bandwidth is nccl-tests'.\n\n"
         "bench snapshot DIR runs on all ranks of the job: a cache of --context tokens of --model's shape (without it "
         "random:llama-3.1-8b) is written to DIR and restored, for each format of --kv; beside it plain files of as many "
         "bytes, written with one fsync, and read cold and warm."},
    [BS_CLI_EVAL] =
        {"eval", "", 0, 0, "Measures what KV formats cost in quality, against f16, over a text",
         "All formats of --kv read the text in one run, side by side with an f16 cache, and each position sees "
         "its cache as decode would. For each format: perplexity; mean and 99th percentile of the KL divergence "
         "from f16's distribution to its own, in nats; the share of positions with f16's best token; bits of a "
         "cached element, parameters counted, at the model's head size and at 128.\n\n"
         "The text is one sequence, or with --context windows that overlap: each token is counted once.\n\n"
         "SIGINT and SIGTERM end the run after the step that runs."},
    [BS_CLI_SNAPSHOT] =
        {"snapshot", "ls|show|verify|export|gc DIR [FILE.h5]", 2, 3, "Lists, checks and exports snapshots of a directory",
         "ls has a line for each snapshot: how many tokens it has cached, its size, its KV format, and whether its manifest, "
         "headers, checksum tables and token ids are right. show prints all that the manifest says of one. verify reads every "
         "byte of one and checks it. export writes one as a single HDF5 file (docs/snapshot-format.md), checked on the way. gc "
         "removes what the newest --snapshot-keep snapshots do not need, and what jobs that were killed left behind.\n\n"
         "verify, show and export take the newest snapshot that is whole, or --number. None of these needs a model or ranks; "
         "all but gc may be run while a job writes to the directory."},
};

const bs_cli_entry bs_cli_entries[BS_CLI_N_COMMANDS] = {
    [BS_CLI_GENERATE] = {bs_cli_generate, true},
    [BS_CLI_TOKENIZE] = {bs_cli_tokenize, false},
    [BS_CLI_MAKE_MODEL] = {bs_cli_make_model, false},
    [BS_CLI_INFO] = {bs_cli_info, true},
    [BS_CLI_BENCH] = {bs_cli_bench, true},
    [BS_CLI_EVAL] = {bs_cli_eval, true},
    [BS_CLI_SNAPSHOT] = {bs_cli_snapshot, false},
};

#define FLAG(name, group, help, commands)                                                                    \
    {                                                                                                        \
        name, 0, BS_OPTION_FLAG, false, NULL, NULL, 0, 0, NULL, group, help, commands                        \
    }
#define INT(name, letter, value, fallback, min, max, group, help, commands)                                  \
    {                                                                                                        \
        name, letter, BS_OPTION_INT, false, value, fallback, min, max, NULL, group, help, commands           \
    }
#define SCALED(name, letter, value, fallback, min, max, group, help, commands)                               \
    {                                                                                                        \
        name, letter, BS_OPTION_INT, true, value, fallback, min, max, NULL, group, help, commands            \
    }
#define FLOAT(name, value, fallback, min, max, group, help, commands)                                        \
    {                                                                                                        \
        name, 0, BS_OPTION_FLOAT, false, value, fallback, min, max, NULL, group, help, commands              \
    }
#define STRING(name, letter, value, fallback, group, help, commands)                                         \
    {                                                                                                        \
        name, letter, BS_OPTION_STRING, false, value, fallback, 0, 0, NULL, group, help, commands            \
    }
#define CHOICE(name, value, fallback, choices, group, help, commands)                                        \
    {                                                                                                        \
        name, 0, BS_OPTION_CHOICE, false, value, fallback, 0, 0, choices, group, help, commands              \
    }
#define LIST(name, value, group, help, commands)                                                             \
    {                                                                                                        \
        name, 0, BS_OPTION_LIST, false, value, NULL, 0, 0, NULL, group, help, commands                       \
    }

#define MOST 0x1p63 /* no upper bound but the type's */

/* clang-format off */
const bs_option bs_cli_options[] = {
    STRING("model", 'm', "MODEL", NULL, "Model", "GGUF file, Hugging Face directory, or random:NAME (docs/cli.md)", GENERATE | TOKENIZE | INFO | BENCH | EVAL),

    STRING("prompt", 'p', "TEXT", NULL, "Prompt", "the text", GENERATE | TOKENIZE),
    STRING("prompt-file", 0, "FILE", NULL, "Prompt", "read the text from this file; - is standard input", GENERATE | TOKENIZE),
    STRING("prompt-ids", 0, "IDS", NULL, "Prompt", "token ids, parted by spaces or commas, in the place of a text", GENERATE),
    FLAG("chat", "Prompt", "the prompt is a user's message: wrap it in the model's chat template", GENERATE),
    STRING("system", 0, "TEXT", NULL, "Prompt", "system message for --chat; without it the template's own, if it has one", GENERATE),
    FLAG("parse-special", "Prompt", "special tokens written out in the text become their ids", GENERATE | TOKENIZE),
    FLAG("bos", "Prompt", "put the model's begin token first", TOKENIZE),
    FLAG("decode", "Prompt", "the input is ids; print their text", TOKENIZE),

    STRING("text", 0, "FILE", NULL, "Text", "the text, taken byte for byte; - is standard input", EVAL),
    SCALED("context", 'c', "N", NULL, 2, INT32_MAX - 65536, "Text", "tokens of a window; without it one pass", EVAL),
    SCALED("overlap", 0, "N", NULL, 0, INT32_MAX - 65536, "Text", "tokens shared with the window before; without it half of it", EVAL),

    SCALED("max-tokens", 'n', "N", "256", 0, 1 << 30, "Answer", "most tokens of the answer", GENERATE),
    LIST("stop", "TEXT", "Answer", "end the answer before this text; may be given several times", GENERATE),
    LIST("stop-token", "ID|TEXT", "Answer", "end the answer at this token, too; may be given several times", GENERATE),
    FLAG("ignore-eos", "Answer", "do not end at the model's end tokens", GENERATE),
    FLAG("show-special", "Answer", "print special tokens as their names", GENERATE | TOKENIZE),

    FLOAT("temperature", "X", "0", 0, 1000, "Sampling", "0 takes the best token; higher is more random", GENERATE),
    INT("top-k", 0, "N", "0", 0, INT32_MAX, "Sampling", "draw from the N best tokens only; 0: from all", GENERATE),
    FLOAT("top-p", "X", "1", 1e-6, 1, "Sampling", "draw from the best tokens that have this probability together", GENERATE),
    FLOAT("min-p", "X", "0", 0, 1, "Sampling", "drop tokens with less than this share of the best one's probability", GENERATE),
    FLOAT("repeat-penalty", "X", "1", 1e-3, 1000, "Sampling", "above 1: tokens of prompt and answer become less likely", GENERATE),

    STRING("batch", 0, "FILE", NULL, "Batch", "answer the requests of this file, OpenAI batch lines (docs/cli.md); - is standard input", GENERATE),
    STRING("output", 'o', "FILE", NULL, "Output", "write the answer to this file; with --batch append the answers that it has not yet", GENERATE),
    INT("batch-size", 0, "N", "8", 1, 1024, "Batch", "requests decoded together", GENERATE),

    STRING("snapshot", 0, "DIR", NULL, "Snapshots", "keep cache and answer in this directory (--batch: one a line below it), and go on from there", GENERATE),
    STRING("snapshot-every", 0, "N|TIME", "4096", "Snapshots", "tokens or time between two: 4096, 64K, 1G, 90s, 10m, 2h", GENERATE),
    CHOICE("snapshot-verify", "HOW", "full", "full|sample|none", "Snapshots", "read back what was written", GENERATE),
    INT("snapshot-keep", 0, "N", "2", 2, 1000, "Snapshots", "keep the last N, with what they need", GENERATE),
    CHOICE("resume", "HOW", "auto", "auto|never|require", "Snapshots", "go on from the snapshot if there is one, never (removes it), or fail", GENERATE),
    STRING("end-time", 0, "TIME", NULL, "Snapshots", "stop before this: unix seconds or 2026-11-29T12:34:56; else SLURM_JOB_END_TIME", GENERATE),

    STRING("kv", 0, "FORMAT", "int4", "Cache", "KV format: f16, int8, int4, k4v2, int2, or one with fields, as int4:g64 (docs/kv-format.md)", GENERATE | INFO),
    STRING("kv", 0, "FORMATS", "f16,int8,int4,k4v2,int2", "Cache", "KV formats, parted by commas (docs/kv-format.md)", EVAL),
    CHOICE("v-encoder", "NAME", "best", "best|plain", "Cache", "range of a 2-bit group of V: drawn in, or from min to max", GENERATE | EVAL),
    SCALED("context", 'c', "N", NULL, 1, INT32_MAX - 65536, "Cache", "tokens of the sequence; without it as many as prompt and answer need", GENERATE),

    SCALED("kv-fill", 0, "N", "0", 0, INT32_MAX - 65536, "Cache", "begin behind N cached tokens of noise", GENERATE | BENCH),

    STRING("grid", 'g', "HxS", NULL, "Ranks", "head shards x sequence shards; without it the most head shards that fit", GENERATE | INFO | BENCH | EVAL),
    CHOICE("merge", "NAME", "allreduce", "allreduce|allgather|fold", "Ranks", "how sequence shards merge attention", GENERATE | INFO | BENCH | EVAL),
    CHOICE("transport", "NAME", "auto", "auto|mpi|nccl", "Ranks", "of GPUs; auto: NCCL where each rank has its own, else MPI", GENERATE | BENCH | EVAL),
    INT("stripe-pages", 0, "N", "8", 1, 1 << 20, "Ranks", "pages of 128 tokens dealt to a sequence shard at a time", GENERATE | BENCH | EVAL),
    SCALED("chunk-tokens", 0, "N", "2048", 128, 65536, "Ranks", "prompt tokens of a step at most; a multiple of 128", GENERATE | BENCH),
    FLOAT("step-ms", "MS", "500", 1, 1e6, "Ranks", "cut prompts so that a step is predicted to take no longer", GENERATE | BENCH),
    FLOAT("watchdog-s", "S", "7", 0, 86400, "Ranks", "end the job when a rank makes no progress this long; 0: never", GENERATE | BENCH | EVAL),

    STRING("case", 0, "WHICH", NULL, "Cases", "only these, parted by commas: a number, a range as 3-9, or part of a name; --dry-run lists them", BENCH),
    FLAG("dry-run", "Cases", "list the cases, and stop", BENCH),

    STRING("contexts", 0, "LIST", NULL, "Decode and prefill", "cached tokens, or lengths of prompts, parted by commas (docs/cli.md has the defaults)", BENCH),
    STRING("batches", 0, "LIST", "1", "Decode and prefill", "decode: sequences decoded together, parted by commas", BENCH),
    INT("steps", 0, "N", "32", 8, 1000, "Decode and prefill", "decode: steps of a row that are timed", BENCH),

    INT("samples", 0, "N", "0", 0, 4096, "Decode and prefill", "prefill: time N chunks spread over the prompt, each behind noise; 0: all of it", BENCH),
    FLOAT("seconds", "S", "0", 0, 1e6, "Decode and prefill", "prefill: end the reading of a format after this long; 0: never", BENCH),

    INT("batch", 0, "N", "1", 1, 4096, "Shape of attend", "sequences", BENCH),
    STRING("heads", 0, "HQ/HKV", "32/8", "Shape of attend", "query heads/KV heads", BENCH),
    SCALED("context", 'c', "N", NULL, 1, INT32_MAX - 65536, "Shape of attend", "tokens of each sequence; without it 128K, on a CPU 8K", BENCH),
    INT("tokens", 0, "N", "1", 1, 4096, "Shape of attend", "query tokens of each sequence, the last of its context", BENCH),
    CHOICE("head-dim", "D", "128", "64|128", "Shape of attend", "channels of a head", BENCH),
    SCALED("window", 0, "N", "0", 0, INT32_MAX, "Shape of attend", "a query sees this many tokens; 0: all", BENCH),
    STRING("kv", 0, "FORMATS", "int4", "Shape of attend", "KV formats, of decode and prefill too, parted by commas (docs/kv-format.md)", BENCH),

    STRING("device", 0, "NAME", "auto", "Device", "cpu, cuda (the GPU of the rank's number on the machine), gpu:N, or auto", GENERATE | INFO | BENCH | EVAL),
    SCALED("device-mem", 0, "BYTES", "0", 0, MOST, "Device", "most memory of a rank's device, as 80G; 0: what there is", GENERATE | INFO | BENCH | EVAL),
    CHOICE("dtype", "NAME", "auto", "auto|bf16|f16", "Device", "type on a GPU; auto: bf16 for a model in bf16, else f16", GENERATE | BENCH | EVAL),
    INT("threads", 't', "N", "1", 1, 1024, "Device", "CPU threads of each rank", GENERATE | INFO | BENCH | EVAL),
    CHOICE("isa", "NAME", "auto", "auto|scalar|avx2|avx512", "Device", "CPU instructions; the best there are, or these", GENERATE | INFO | BENCH | EVAL),

    INT("layers", 0, "N", NULL, 1, 1000, "Shape", "number of layers", MAKE_MODEL),
    INT("hidden", 0, "N", NULL, 32, 65536, "Shape", "width of the residual stream", MAKE_MODEL),
    INT("heads", 0, "N", NULL, 1, 1024, "Shape", "query heads", MAKE_MODEL),
    INT("kv-heads", 0, "N", NULL, 1, 1024, "Shape", "KV heads", MAKE_MODEL),
    INT("head-dim", 0, "N", NULL, 32, 256, "Shape", "channels of a head", MAKE_MODEL),
    INT("ffn", 0, "N", NULL, 32, 1 << 20, "Shape", "width of the FFN", MAKE_MODEL),
    INT("vocab", 0, "N", NULL, 259, 475513, "Shape", "tokens of the vocabulary", MAKE_MODEL),
    SCALED("context-length", 0, "N", NULL, 1, INT32_MAX, "Shape", "context written into the file", MAKE_MODEL),
    CHOICE("weight-type", "TYPE", NULL, "F32|F16|BF16|Q8_0|Q5_0|Q5_1|Q4_0|Q4_1|MXFP4|Q2_K|Q3_K|Q4_K|Q5_K|Q6_K", "Shape", "type of the matrices", MAKE_MODEL),
    FLAG("tied-output", "Shape", "the output head is the embedding table", MAKE_MODEL),
    FLAG("rope-freqs", "Shape", "write rope_freqs.weight, as Llama 3.1 has it", MAKE_MODEL),
    FLOAT("rope-theta", "X", NULL, 1, 1e12, "Shape", "base of RoPE's frequencies", MAKE_MODEL),

    SCALED("number", 0, "N", NULL, 1, MOST, "Snapshots", "this snapshot; without it the newest that is whole", SNAPSHOT),
    INT("snapshot-keep", 0, "N", "2", 1, 1000, "Snapshots", "newest snapshots that stay", SNAPSHOT),
    CHOICE("snapshot-verify", "HOW", "full", "full|sample|none", "Snapshots", "what is read back before a snapshot counts", BENCH),
    FLAG("dry-run", "Snapshots", "gc: say what would go, and remove nothing", SNAPSHOT),

    INT("seed", 's', "N", "1", 0, MOST, "Random numbers", "the same seed gives the same answer, the same model", GENERATE | MAKE_MODEL),

    FLAG("json", "Output", "print one line of JSON (docs/cli.md)", GENERATE | TOKENIZE | BENCH | EVAL | SNAPSHOT),
    STRING("csv", 0, "FILE", NULL, "Output", "write the rows to this file, too; - is standard output", BENCH | EVAL),
    SCALED("every", 0, "N", NULL, 1, MOST, "Output", "rows of --csv also for the first N, 2N, 3N … tokens of the text", EVAL),
    FLAG("dry-run", "Output", "print the memory that each rank would take, and stop", GENERATE),
    {"quiet", 'q', BS_OPTION_FLAG, false, NULL, NULL, 0, 0, NULL, "Output", "warnings and errors only on standard error", ALL},
    {"verbose", 'v', BS_OPTION_FLAG, false, NULL, NULL, 0, 0, NULL, "Output", "more on standard error", ALL},
};
/* clang-format on */
const int bs_cli_n_options = sizeof bs_cli_options / sizeof bs_cli_options[0];
