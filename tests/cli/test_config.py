"""--config: options from a YAML file, which the command line overrules."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from moe_eval.cli import config, main, run
from moe_eval.cli.options import Parser
from moe_eval.errors import UsageError

SECRET = "hunter2-very-secret-token"


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    """The parser of `moe-eval run`."""
    commands: Any = Parser().add_subparsers()
    run.add(commands)
    found: argparse.ArgumentParser = commands.choices["run"]
    return found


def test_a_file_s_options_come_before_the_command_s_own(tmp_path: Path, parser: argparse.ArgumentParser) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "batch_size: [1, 8]\nemulate: true\nresume: false\ntimeout: 60\nmodel_path: null\nscope: all\n"
        "precisions: bf16\n"
    )
    for words in (["--config", str(file)], [f"--config={file}"]):
        found = config.expanded(["run", "--blocks", "2", *words, "--timeout", "5"], parser)
        assert found == [
            *("run", "--batch_size=1,8", "--emulate", "--timeout=60", "--scope=all", "--precisions=bf16"),
            *("--blocks", "2", "--timeout", "5"),
        ]


@pytest.mark.parametrize("words", [["run"], ["run", "--config"], ["run", "--batch_size", "1"]])
def test_words_without_a_file_stay_as_they_are(words: list[str], parser: argparse.ArgumentParser) -> None:
    assert config.expanded(words, parser) == words


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
        ("help: true\n", "help is no option"),
        (f"hf_token: {SECRET}\n", "hf_token is no option"),
        (f"batch: {SECRET}\n", "batch is no option"),
        ("--blocks: 2\n", "--blocks is no option"),
        (f"blocks: 1\ndataset: {SECRET}\nblocks: 2\n", "blocks is given twice"),
        (f"model_path: {{{SECRET}: 1}}\n", "model_path has to be text"),
        ("dataset: true\n", "dataset has to be text"),
        ("batch_size: [[1]]\n", "batch_size has to be text, a number or a list of them"),
        (f"emulate: '{SECRET}'\n", "emulate has to be true or false"),
        ("emulate: 'true'\n", "emulate has to be true or false"),
        ("resume: 1\n", "resume has to be true or false"),
        (f"blocks: {SECRET}\n", "blocks has to be a whole number"),
        ("blocks: 1.5\n", "blocks has to be a whole number"),
        ("blocks: [1, 2]\n", "blocks has to be a whole number"),
        ("blocks: true\n", "blocks has to be a whole number"),
        ("timeout: 1e3\n", "timeout has to be a number"),
        (f"scope: {SECRET}\n", "scope has to be one of experts, all"),
        (f"model_path: [{SECRET}\n", "no YAML"),
    ],
)
def test_what_is_no_option_with_its_value_is_one_sentence_without_the_value(
    tmp_path: Path, parser: argparse.ArgumentParser, content: str, words: str
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(UsageError) as refused:
        config.expanded(["run", "--config", str(file)], parser)
    sentence = str(refused.value)
    assert sentence.startswith(f"--config {file}")
    assert words in sentence
    assert "\n" not in sentence
    assert SECRET not in sentence


def test_two_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("blocks: 2\n")
    assert main(["run", "--config", str(file), f"--config={file}"]) == 2
    assert capsys.readouterr().err == "moe-eval: --config is given twice; write all options into one file.\n"


@pytest.mark.parametrize(
    "words", [["run", "--conf", "x.yaml"], ["run", "--dry"], ["compare", "x", "--gat", "speed>=1"]]
)
def test_shortened_names_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert f"unrecognized arguments: {words[words.index(next(each for each in words if each[0] == '-'))]}" in (
        capsys.readouterr().err
    )


def test_a_file_that_is_not_there_ends_the_command_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--config", "nowhere.yaml"]) == 2
    found = capsys.readouterr()
    assert (
        found.err == "moe-eval: --config nowhere.yaml cannot be read (No such file or directory); give another file.\n"
    )


@pytest.mark.parametrize("command", ["run", "compare"])
def test_every_option_is_explained_with_its_default(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    named = {"run": (512, 100, 256, 20, 5, 3600, "wikitext", "moe_eval_run", "experts"), "compare": (".",)}[command]
    for default in named:
        assert f"(default: {default})" in text
    assert "(default: None)" not in text


def test_every_option_of_run_has_help(parser: argparse.ArgumentParser) -> None:
    assert [action.dest for action in parser._actions if not action.help] == []
