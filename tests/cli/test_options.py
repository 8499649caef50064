"""Command lines: how options are written, what is refused, --help, and what a record keeps of them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from moe_eval.checkpoint.precision import PRECISIONS
from moe_eval.cli import main
from moe_eval.cli.options.commands import COMMANDS, COMPARE, KERNELS, LOG, PERF, PPL, RUN
from moe_eval.cli.options.kernels import KernelsOptions
from moe_eval.cli.options.measuring import RunOptions
from moe_eval.cli.options.option import options_of
from moe_eval.cli.request import recorded
from moe_eval.emulation.model import SCOPES
from moe_eval.engines.registry import ENGINES
from moe_eval.records.verdicts import TIME_OF
from moe_eval.stats import LEAST_LOADS
from tests.conftest import ROOT

PROGRAM = "import sys; from moe_eval.cli import main; sys.exit(main())"


def test_dashes_and_underscores_are_the_same() -> None:
    assert RUN.read(["--batch-size", "1,8", "--dry-run", "--output-dir=a-b"]) == RUN.read(
        ["--batch_size", "1,8", "--dry_run", "--output_dir=a-b"]
    )
    assert RUN.read(["--output-dir=a-b"]).output_dir == Path("a-b")


@pytest.mark.parametrize(
    "words", [["a", "b", "--gate", "kld<=1"], ["--gate", "kld<=1", "a", "b"], ["a", "--gate", "kld<=1", "b"]]
)
def test_options_stand_before_or_after_files(words: list[str]) -> None:
    options = COMPARE.read(words)
    assert (options.sources, options.gate, options.across) == (("a", "b"), "kld<=1", ())


def test_files_of_every_command() -> None:
    assert LOG.read(["one", "--", "-two"]).folders == (Path("one"), Path("-two"))
    options = KERNELS.read(["--input", "a", "b", "--tpot-ms", "1", "2.5", "--precisions", "bf16,fp8"])
    assert (options.input, options.tpot_ms, options.traces) == ((Path("a"), Path("b")), (1.0, 2.5), ())
    assert options.precisions == ("bf16", "fp8")
    assert KERNELS.read(["classify"]).traces == (Path("classify"),)
    for words in (["a", "b", "--full", "--precisions", "x,y"], ["--precisions", "x,y", "--full", "a", "b"]):
        assert KERNELS.read(words) == KernelsOptions(traces=(Path("a"), Path("b")), precisions=("x", "y"), full=True)
    assert KERNELS.read(["a", "--tpot_ms", "1", "2", "b"]).traces == (Path("a"), Path("b"))


def test_defaults_are_those_of_the_commands() -> None:
    assert [command.read(["--model_path", "m"]).loads for command in (RUN, PERF)] == [4, 4]
    assert [str(command.read([]).output_dir) for command in (RUN, PERF, PPL)] == [
        "moe_eval_run",
        "benchmark_results",
        "benchmark_results",
    ]
    assert PERF.read(["--dataset", "random", "--seed", "3"]).seed == 3


@pytest.mark.parametrize("words", [[], ["--output_dir", "x", "--json", "--dry_run"], ["--gate", "speed>=1", "--quiet"]])
def test_a_run_of_nothing_is_the_demo(words: list[str], tmp_path: Path) -> None:
    options = RUN.read(words)
    assert (options.emulate, options.dataset, options.batch_size, options.loads) == (True, "moe_sample", (1, 4), 2)
    file = tmp_path / "run.yaml"
    file.write_text("output_dir: y\n")
    assert RUN.read(["--config", str(file)]).dataset == "moe_sample"
    file.write_text("output_dir: y\nbatch_size: 8\n")
    for measured in (["--config", str(file)], [*words, "--batch_size", "8"], [*words, "--batch-size=8"]):
        options = RUN.read(measured)
        assert (options.emulate, options.dataset, options.batch_size, options.loads) == (False, "wikitext", (8,), 4)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "moe-eval needs a command: run, "),
        ("rum", "There is no command rum. Did you mean run?"),
        ("zzz", "There is no command zzz. Give one of run, "),
        ("run --batchsize 1", "There is no option --batchsize. Did you mean --batch_size?"),
        ("run --conf x.yaml", "There is no option --conf. Did you mean --config?"),
        ("run --dry", "There is no option --dry. Did you mean --dry_run?"),
        ("run --engin vllm", "There is no option --engin. Did you mean --engine?"),
        ("Kernels", "There is no command Kernels. Did you mean kernels?"),
        ("compare x --gat speed>=1", "There is no option --gat. Did you mean --gate?"),
        ("run --evaluators latency --num_chunks 5", "--num_chunks is for --evaluators quality. Give both, or leave"),
        ("run --evaluators quality --batch_size 8", "--batch_size is for --evaluators latency or kernels. Give both"),
        ("run --evaluators kernels --loads 8", "--loads is for --evaluators latency or serving. Give both"),
        ("run --evaluators latency --keep_report", "--keep_report is for --evaluators kernels. Give both"),
        ("run --precisions bf16 --fp8_model_path x", "--fp8_model_path is for --precisions fp8 or fp8_block or fp8_ch"),
        ("run --arm a:checkpoint=y --model_path x --dry_run", "No --arm has the checkpoint of --model_path"),
        ("run --arm a:precision=bf16 --nvfp4_model_path x --dry_run", "No --arm has the checkpoint of --nvfp4_model_p"),
        ("run --keep_report --profiler torch --dry_run", "--nsys_args and --keep_report are for Nsight Systems, and"),
        ("run -x", "There is no option -x. `moe-eval run --help` lists them."),
        ("run x", "moe-eval run has no use for x. `moe-eval run --help` lists the options."),
        ("run --batch_size", "--batch_size needs a value. "),
        ("kernels --tpot_ms 1", "--tpot_ms needs a value. "),
        ("run --emulate=true", "--emulate takes no value. "),
        ("run --batch_size many", "--batch_size many cannot be read. Give a whole number or a list of them."),
        ("run --loads 1.5", "--loads 1.5 cannot be read. Give a whole number."),
        ("run --scope some", "--scope some is unknown. Give one of experts, all."),
        ("run --num_iterations 0", "--num_iterations 0 is out of range. Give 1 or more."),
        ("run --warmup_iterations 0", "--warmup_iterations 0 is out of range. Give 1 or more."),
        ("run --loads 0", "--loads 0 is out of range. Give 1 to 1000."),
        ("run --max_loads 2", "--max_loads 2 is out of range. Give 3 to 1000."),
        ("compare x --min_gain 1", "--min_gain 1 is out of range. Give 0 to 0.5 (0.01 is 1 %)."),
        ("run --min_gain -0.1", "--min_gain -0.1 is out of range. Give 0 to 0.5 (0.01 is 1 %)."),
        ("perf --until tired", "--until tired is unknown. Give one of decided."),
        (
            "run --decide_on energy",
            "--decide_on energy is unknown. Give one of e2e, ttft, tpot, output_tok_s, output_tok_s_per_gpu.",
        ),
        ("run --timeout nan", "--timeout nan is out of range. Give 1 to 1000000."),
        ("run --timeout inf", "--timeout inf is out of range. Give 1 to 1000000."),
        ("run --timeout 0.5", "--timeout 0.5 is out of range. Give 1 to 1000000."),
        ("run --timeout 1e300", "--timeout 1e300 is out of range. Give 1 to 1000000."),
        ("run --evaluators=", "--evaluators cannot be read. Give some of quality, tasks, latency, kernels, serving."),
        (
            "run --evaluators perplexity",
            "Give some of quality, tasks, latency, kernels, serving. Did you mean quality?",
        ),
        ("run --evaluators latancy", "Give some of quality, tasks, latency, kernels, serving. Did you mean latency?"),
        ("run --scope expert", "Give one of experts, all. Did you mean experts?"),
        ("run --profiler NSYS", "Give one of auto, nsys, torch. Did you mean nsys?"),
        ("run --decide_on output", "Did you mean output_tok_s?"),
        ("run --gate spede>=1.2", "--gate has 'spede>=1.2', and there is no figure spede. Did you mean speed?"),
        ("run --gate ppl<=0.1", "there is no figure ppl. Did you mean ln_ppl?"),
        ("run --gate verdict==pay", "--gate has 'verdict==pay'. Did you mean verdict==pays?"),
        ("run --precisions bf16,fp9", "There is no precision 'fp9'. Did you mean fp"),
        ("run --precisions bf16,NVFP4", "There is no precision 'NVFP4'. Did you mean nvfp4?"),
        ("run --engine trtlm", "There is no engine 'trtlm'. Did you mean trtllm?"),
        ("run --engine hf", "There is no engine 'hf'. Did you mean transformers?"),
        ("run --engine vLLM", "There is no engine 'vLLM'. Did you mean vllm?"),
        ("run --dataset wikitxt", "There is no data set 'wikitxt'. Did you mean wikitext?"),
        ("run --gpu H10 --dry_run", "There is no GPU 'H10' to plan for. Did you mean H100?"),
        ("run --model_args dtyp=auto", "no argument 'dtyp'. Did you mean dtype?"),
        ("run --model_args attn_impl=eager", "no argument 'attn_impl'. Did you mean attn_implementation?"),
        ("run --model_args pretrained=x", "--model_args has pretrained, which is an option of its own here. Give --mo"),
        ("run --quiet --verbose", "--quiet prints less and --verbose prints more. Give one of them."),
        ("kernels sort", "sort"),
    ],
)
def test_bad_words_end_with_one_line(words: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("moe-eval: ")
    assert sentence in line
    assert out == ""


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_option_is_explained_with_its_default(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    line = " ".join(text.split())
    for option in options_of(COMMANDS[name].options).values():
        assert option.help in line.replace("- ", "-"), option.name
        assert option.label in line or (option.metavar or "") in line
    assert "(default: None)" not in line
    assert "(default: )" not in line
    examples = text.partition("examples:\n")[2].splitlines()
    assert [example.startswith("  # ") for example in examples] == [True, False] * 2


@pytest.mark.parametrize(
    ("name", "defaults"),
    [("run", (512, 100, 256, 20, 5, 3600, "wikitext", "moe_eval_run", "experts")), ("compare", (".",))],
)
def test_help_shows_defaults(name: str, defaults: tuple[object, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for default in defaults:
        assert f"(default: {default})" in text


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_examples_are_command_lines(name: str) -> None:
    for _, example in COMMANDS[name].examples:
        words = re.sub(r"^.*?moe-eval (?=[a-z])|[<>].*", "", example, count=2).replace('"', "").split()
        assert words[0] == name
        COMMANDS[name].read(words[1:])


def test_the_help_of_all_commands_and_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)
    assert main(["--version"]) == 0
    assert re.fullmatch(r"moe-eval \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def test_choices_and_limits_are_those_of_the_rooms_they_are_of() -> None:
    options = options_of(RunOptions)
    assert options["scope"].choices == tuple(SCOPES)
    assert options["decide_on"].choices == tuple(TIME_OF)
    assert options["max_loads"].minimum == LEAST_LOADS
    assert options["precisions"].suggestions == PRECISIONS
    assert options["engine"].suggestions == tuple(ENGINES)
    assert f"Fewer than {LEAST_LOADS} are a quick look" in options["loads"].help


def test_a_record_keeps_every_option_and_no_secret() -> None:
    options = RUN.read(["--model_args", "hub_token=hunter2,max_num_tokens=64,tokenizer=x", "--batch_size", "1,8"])
    kept = recorded(options)
    assert kept["model_args"] == "hub_token=[redacted],max_num_tokens=64,tokenizer=x"
    assert (kept["batch_size"], kept["output_dir"], kept["emulate"]) == ((1, 8), "moe_eval_run", False)
    assert (kept["precisions"], kept["timeout"]) == (("bf16", "fp8", "nvfp4"), 3600.0)
    assert "model_path" not in kept
    assert kept.keys() <= options_of(RunOptions).keys()


def test_the_reference_is_what_the_generator_writes() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for name, page in (("options", generate.options_page()), ("records", generate.records_page())):
        assert (ROOT / "docs" / "reference" / f"{name}.md").read_text(encoding="utf-8") == page, (
            "run python docs/generate.py"
        )


def test_a_word_of_thousands_of_letters_is_cut_in_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "a" * 5000]) == 2
    line = capsys.readouterr().err
    assert len(line) < 400
    assert "aaa...aaa" in line
