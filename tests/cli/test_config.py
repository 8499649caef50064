"""--config: options from a YAML file, which the command line overrules."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_eval.cli import main
from moe_eval.cli.options import config
from moe_eval.cli.options.commands import PERF, PPL, RUN
from moe_eval.cli.options.measuring import RunOptions
from moe_eval.errors import UsageError

SECRET = "hunter2-very-secret-token"


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "batch_size: [1, 8]\nemulate: true\nresume: false\ntimeout: 60\nmodel_path: null\nscope: all\n"
        "precisions: bf16\nnum_chunks: 7\n"
    )
    for words in (["--config", str(file)], [f"--config={file}"]):
        options = RUN.read(["--loads", "2", *words, "--timeout", "5"])
        assert options == RunOptions(
            config=file,
            batch_size=(1, 8),
            emulate=True,
            timeout=5.0,
            scope="all",
            precisions=("bf16",),
            num_chunks=7,
            loads=2,
        )


@pytest.mark.parametrize("command", [RUN, PERF, PPL])
def test_every_command_that_loads_arms_reads_a_file(tmp_path: Path, command: object) -> None:
    file = tmp_path / "any.yaml"
    file.write_text("precisions: [bf16, fp8]\nmodel_args: [dtype=float32, device=cpu]\n")
    options = command.read(["--config", str(file)])  # type: ignore[attr-defined]
    assert (options.precisions, options.model_args) == (("bf16", "fp8"), "dtype=float32,device=cpu")


def test_texts_with_commas_are_lists_as_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("batch_size: '1,8'\nprecisions: 'bf16, fp8'\nnum_iterations: 3\n")
    assert RUN.read(["--config", str(file)]) == RUN.read(
        ["--batch_size", "1,8", "--precisions", "bf16,fp8", "--num_iterations", "3", "--config", str(file)]
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- a\n- b\n", "by name"),
        ("1: 2\n", "by name"),
        ("a: 1\nb: [1\n", "no YAML at line 3"),
        ("[" * 10_000, "no YAML"),
        ("dataset: 2020-13-45\n", "no YAML"),
        ("", "by name"),
        ("config: other.yaml\n", "config is no option of moe-eval run"),
        ("batchsize: 2\n", "batchsize is no option of moe-eval run. Did you mean batch_size?"),
        ("help: true\n", "help is no option"),
        (f"hf_token: {SECRET}\n", "hf_token is no option"),
        (f"batch: {SECRET}\n", "batch is no option"),
        ("--loads: 2\n", "--loads is no option"),
        (f"loads: 1\ndataset: {SECRET}\nloads: 2\n", "loads is given twice"),
        (f"model_path: {{{SECRET}: 1}}\n", "model_path has to be text"),
        ("dataset: true\n", "dataset has to be text"),
        ("batch_size: [[1]]\n", "batch_size has to be a whole number or a list of them"),
        (f"batch_size: {SECRET}\n", "batch_size has to be a whole number or a list of them"),
        ("batch_size: [1.5]\n", "batch_size has to be a whole number or a list of them"),
        (f"emulate: '{SECRET}'\n", "emulate has to be true or false"),
        ("emulate: 'true'\n", "emulate has to be true or false"),
        ("resume: 1\n", "resume has to be true or false"),
        (f"loads: {SECRET}\n", "loads has to be a whole number"),
        ("loads: 1.5\n", "loads has to be a whole number"),
        ("loads: [1, 2]\n", "loads has to be a whole number"),
        ("loads: true\n", "loads has to be a whole number"),
        ("loads: 0\n", "loads has to be 1 to 1000"),
        ("timeout: 1e3\n", "timeout has to be a number"),
        ("timeout: 0\n", "timeout has to be 1 to 1000000"),
        (f"scope: {SECRET}\n", "scope has to be one of experts, all"),
        (f"evaluators: [quality, {SECRET}]\n", "evaluators has to be some of quality, tasks, latency, kernels"),
        ("evaluators: perplexity\n", "Did you mean quality?"),
        (f"model_path: [{SECRET}\n", "no YAML"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_without_being_shown(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(UsageError) as refused:
        config.read(file, "run", RunOptions)
    sentence = str(refused.value)
    assert sentence.startswith(f"--config {file}")
    assert words in sentence
    assert "\n" not in sentence
    assert SECRET not in sentence


def test_two_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("loads: 2\n")
    assert main(["run", "--config", str(file), f"--config={file}"]) == 2
    assert capsys.readouterr().err == "moe-eval: --config is given twice. Write all options into one file.\n"


def test_a_file_that_is_not_there_ends_the_command_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--config", "nowhere.yaml"]) == 2
    assert capsys.readouterr().err == ("moe-eval: nowhere.yaml does not exist. Give a YAML file of options.\n")
