"""The commands: their options, what `--help` says of them, and examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moe_eval.cli import overview
from moe_eval.cli.options.command_line import Command
from moe_eval.cli.options.option import Value

if TYPE_CHECKING:
    from moe_eval.cli.options.compare import CompareOptions
    from moe_eval.cli.options.exchange import ExportOptions, ImportOptions, LogOptions
    from moe_eval.cli.options.kernels import KernelsOptions
    from moe_eval.cli.options.machine import CompletionOptions, DoctorOptions
    from moe_eval.cli.options.measuring import PerfOptions, PplOptions, RunOptions
    from moe_eval.cli.options.sensitivity import SensitivityOptions

# of `moe-eval run` where nothing says what to measure: some minutes on a CPU, without a network
DEMO: Mapping[str, Value] = {
    "emulate": True,
    "dataset": "moe_sample",
    "input_len": 128,
    "num_chunks": 24,
    "batch_size": (1, 4),
    "output_len": 16,
    "num_iterations": 5,
    "loads": 2,
}
RUN: Command[RunOptions] = Command(
    "run",
    "execute",
    "measuring:RunOptions",
    "Run every evaluator on every arm and compare the arms with the first. Each arm runs in a process of its own that "
    "loads it once. The plan is shown first. Records are written to --output_dir as they come. A run that was stopped "
    "goes on with the same command and --resume. Without an option of what to measure it is a demo: the shipped model, "
    "emulated, with its own text and small shapes.",
    overview.EXAMPLES,
    DEMO,
)
PERF: Command[PerfOptions] = Command(
    "perf",
    "perf",
    "measuring:PerfOptions",
    "Time the same prompts on every arm, each in a process of its own, and write one JSON record for each "
    "(perf_ARM_smXY.json, or _cpu). Each arm is loaded --loads times: loads differ by more than iterations do. Arms "
    "that fit on the GPU together take turns. At the end a table compares them with the first.",
    (
        (
            "three batch sizes of two checkpoints",
            "moe-eval perf --model_path M --fp8_model_path M8 --batch_size 1,8,32",
        ),
        (
            "the first arm against itself, on made-up prompts",
            "moe-eval perf --model_path M --precisions bf16 --aa --dataset random",
        ),
    ),
)
PPL: Command[PplOptions] = Command(
    "ppl",
    "execute",
    "measuring:PplOptions",
    "Score the same windows with every arm, each in a process of its own, and write one JSON record for each "
    "(ppl_ARM_smXY.json, or _cpu). The first arm is scored at a second batch size too: that is the noise floor. At the "
    "end a table compares the arms with the first.",
    (
        ("the shipped model and its text, on any machine", "moe-eval ppl --emulate --dataset moe_sample"),
        ("all of WikiText-2 on TensorRT-LLM", "moe-eval ppl --model_path M --nvfp4_model_path M4 --num_chunks 0"),
    ),
)
SENSITIVITY: Command[SensitivityOptions] = Command(
    "sensitivity",
    "sensitivity",
    "sensitivity:SensitivityOptions",
    "Round the experts of one layer at a time on the Transformers engine, and rank the layers by the KLD from the "
    "unquantised model, with intervals over documents. Then find the most of the least sensitive layers that keep "
    "--max_kld together, measured with all of them rounded. Write a record (sensitivity_PRECISION_smXY.json, or _cpu) "
    "and a recipe for llm-compressor that quantises these layers alone. What lies before a layer is computed once.",
    (
        ("the shipped model and its text, on any machine", "moe-eval sensitivity --dataset moe_sample --max_kld 0.05"),
        (
            "a checkpoint in FP8, with the four busiest experts of every layer",
            "moe-eval sensitivity --model_path M --precision fp8 --experts 4",
        ),
    ),
)
COMPARE: Command[CompareOptions] = Command(
    "compare",
    "compare",
    "compare:CompareOptions",
    "Compare two or more recorded arms with the first. Sources are output folders of moe-eval run, perf, ppl and "
    "import, files of moe-eval export, ids of runs in MLflow, or an experiment there, of which the newest run counts. "
    "Arms that cannot be compared are named with the reason.",
    (
        ("one run again, with a gate", 'moe-eval compare moe_eval_run --gate "speed>=1.2,ln_ppl<=0.01"'),
        ("this week's folder against last week's", "moe-eval compare last_week this_week --output_dir changes"),
    ),
)
KERNELS: Command[KernelsOptions] = Command(
    "kernels",
    "kernels",
    "kernels:KernelsOptions",
    "Break a trace down by phase and category. It is an Nsight Systems export (.sqlite), a report (.nsys-rep, where "
    "nsys is installed), a CSV of `nsys stats`, or a Chrome trace of torch's profiler (.json, .json.gz). Two traces "
    "are compared as well, and the first is the reference. `classify` reads kernel names from standard input, one a "
    "line. It writes category, fused_with, rule and name, separated by tabs.",
    (
        ("two traces", "moe-eval kernels bf16.sqlite fp8.sqlite --precisions bf16,fp8"),
        ("names of kernels", "moe-eval kernels classify < names.txt"),
    ),
)
LOG: Command[LogOptions] = Command(
    "log",
    "log",
    "exchange:LogOptions",
    "Log the runs recorded in folders to MLflow, unless they are there. The store is that of MLFLOW_TRACKING_URI, or "
    "mlflow.db in the working directory. The experiment is that of MLFLOW_EXPERIMENT_NAME, or moe_eval.",
    (
        ("one run", "moe-eval log moe_eval_run"),
        ("several, to a server", "MLFLOW_TRACKING_URI=http://host:5000 moe-eval log runs/*"),
    ),
)
EXPORT: Command[ExportOptions] = Command(
    "export",
    "export",
    "exchange:ExportOptions",
    "Write a run into one .zip for others: its records, the report and its traces. Host and user names, paths, process "
    "ids and GPU UUIDs are left out. `moe-eval compare` reads the file. A .csv or .parquet has one row for every "
    "figure instead.",
    (
        ("a run to send to a colleague", "moe-eval export moe_eval_run fp8_on_h100.zip"),
        ("its figures as a table", "moe-eval export moe_eval_run figures.parquet"),
    ),
)
IMPORT: Command[ImportOptions] = Command(
    "import",
    "imported",
    "exchange:ImportOptions",
    "Write the latency record of an arm that another tool measured, from the JSON of `vllm bench` (latency, throughput "
    "or serve), `trtllm-bench --report_json` or AIPerf. `moe-eval compare` reads it. What the files do not state stays "
    "absent.",
    (
        (
            "three runs of one batch",
            "moe-eval import 1.json 2.json 3.json --arm fp8 --batch_size 8 --input_len 512 --output_len 256",
        ),
        ("a server at several concurrencies", "moe-eval import c1.json c8.json --arm nvfp4 --output_dir served"),
    ),
)
DOCTOR: Command[DoctorOptions] = Command(
    "doctor",
    "doctor",
    "machine:DoctorOptions",
    "Print the machine, its GPUs, the installed engines and the precisions that they run here. With --selftest load a "
    "checkpoint on TensorRT-LLM, score ten windows in two ways, generate, look for the class of the experts, and print "
    "one page of Markdown. The exit code is 1 where something does not work.",
    (
        ("this machine", "moe-eval doctor"),
        (
            "the self-test on a checkpoint",
            "moe-eval doctor --selftest --model_args pretrained=M,tensor_parallel_size=2",
        ),
    ),
)
COMPLETION: Command[CompletionOptions] = Command(
    "completion",
    "completion",
    "machine:CompletionOptions",
    "Print a script for bash, zsh or fish that completes commands, options, choices and paths. In zsh put it where "
    "$fpath names, as _moe-eval. In fish put it into ~/.config/fish/completions/moe-eval.fish.",
    (
        ("bash, in every later session", "moe-eval completion bash >> ~/.bash_completion"),
        ("fish", "moe-eval completion fish > ~/.config/fish/completions/moe-eval.fish"),
    ),
)

# the commands differ in their options; what takes one takes any
COMMANDS: dict[str, Command[Any]] = {
    command.name: command
    for command in (RUN, COMPARE, PPL, PERF, SENSITIVITY, KERNELS, EXPORT, IMPORT, LOG, DOCTOR, COMPLETION)
}
