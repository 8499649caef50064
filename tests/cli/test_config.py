"""--config: options from a YAML file, which the command line overrules."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_eval.cli import config, main
from moe_eval.errors import UsageError


def test_a_file_s_options_come_before_the_command_s_own(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("batch_size: [1, 8]\nemulate: true\nresume: false\ntimeout: 60\nmodel_path: null\n")
    for words in (["--config", str(file)], [f"--config={file}"]):
        found = config.expanded(["run", "--blocks", "2", *words, "--timeout", "5"])
        assert found == ["run", "--batch_size=1,8", "--emulate", "--timeout=60", "--blocks", "2", "--timeout", "5"]


@pytest.mark.parametrize("words", [[], ["run"], ["run", "--config"], ["perf", "--batch_size", "1"]])
def test_words_without_a_file_stay_as_they_are(words: list[str]) -> None:
    assert config.expanded(words) == words


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- a\n- b\n", "by name"),
        ("1: 2\n", "by name"),
        ("a: [1\n", "no YAML"),
        ("model: {a: 1}\n", "plain value"),
        ("config: other.yaml\n", "plain value"),
        ("", "by name"),
    ],
)
def test_what_is_no_list_of_options_is_one_sentence(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(UsageError, match=words):
        config.expanded(["run", "--config", str(file)])


def test_a_file_that_is_not_there_ends_the_command_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--config", "nowhere.yaml"]) == 2
    found = capsys.readouterr()
    assert (
        found.err == "moe-eval: --config nowhere.yaml cannot be read (No such file or directory); give another file.\n"
    )
