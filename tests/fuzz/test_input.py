"""Any file and any command line is answered within seconds, by what was asked for or by a sentence, without a trace.

2,000 examples run here. FUZZ_EXAMPLES=20000 in the environment makes more of them, which no two runs have alike.
"""

from __future__ import annotations

import gzip
import importlib
import itertools
import json
import os
import resource
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from moe_eval.cli import main
from moe_eval.cli.options.commands import COMMANDS
from moe_eval.errors import UsageError
from moe_eval.machine import hardware
from moe_eval.report import drawing, page, picture
from moe_eval.runner import sensitivity
from tests.fuzz import grammar, hostile, templates
from tests.fuzz.play import Stage, hold

_BY_HAND = "FUZZ_EXAMPLES" in os.environ
_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "2000"))
_MODULES = {f"moe_eval.cli.{command.module}" for command in COMMANDS.values()}
_NEVER = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


def share(percent: float) -> settings:
    """The settings of a test that has so many of all examples."""
    return settings(
        max_examples=max(1, round(_EXAMPLES * percent / 100)),
        derandomize=not _BY_HAND,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),  # to explain, every line would be traced
        suppress_health_check=_NEVER,
    )


def _refuse(*_: object) -> None:
    raise UsageError("No model is loaded here. Leave it.")


@pytest.fixture(scope="module", autouse=True)
def _at_hand(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No GPU, no drawing, and a store and a home of one's own."""
    from matplotlib.figure import Figure

    def save(_: object, file: Any, **options: object) -> None:
        file.write(b"<svg xmlns='http://www.w3.org/2000/svg'/>" if options["format"] == "svg" else b"\x89PNG")

    # what an example would import takes up its time
    for name in ("lm_eval.utils", "pyarrow.csv", "torch", "transformers", *_MODULES):
        importlib.import_module(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        patch.setattr(picture, "write", lambda *_: None)
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(sensitivity, "measure", _refuse)
        svg, charts = drawing.svg, itertools.count()
        # a drawing takes as long as the rest of a command: of all charts every fifth is drawn, so each kind is at times
        draw = lambda *chart: "" if next(charts) % 5 else svg(*chart)  # noqa: E731
        patch.setattr(page, "render", partial(page.render, draw=draw))
        patch.setattr(hardware, "gpus", lambda: ())
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{empty_store}")
        before = resource.getrlimit(resource.RLIMIT_AS)  # what reads without an end is to fail, and not the machine
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + (6 << 30), before[1]))
        yield
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("stage"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of every kind of input."""
    folder = tmp_path_factory.mktemp("templates")
    (folder / "records").mkdir()
    templates.records(folder / "records")
    templates.checkpoint(folder / "moe")
    for name, fill in {"traces": templates.traces, "yaml": templates.options, "tools": templates.tools}.items():
        (folder / name).mkdir()
        fill(folder / name)
    (folder / "archives").mkdir()
    main(["export", str(folder / "records" / "run"), str(folder / "archives" / "run.zip")])
    for name in ("traces", "yaml", "tools"):
        shutil.copytree(folder / name, folder / "all", dirs_exist_ok=True)
    for name in ("run", "first"):
        shutil.copytree(folder / "records" / name, folder / "all" / name)
    return folder


@cache
def _parsed(file: Path) -> tuple[Any, tuple[hostile.Place, ...]]:
    document = yaml.safe_load(file.read_bytes()) if file.suffix == ".yaml" else json.loads(file.read_bytes())
    return document, tuple(hostile.places(document))


def _edited(data: st.DataObject, file: Path) -> bytes:
    """A file whose values were changed, in the file's own format."""
    if file.suffix == ".sqlite":
        return _database(data, file)
    if file.suffix == ".jsonl":
        lines = file.read_bytes().splitlines()
        at = data.draw(st.integers(0, len(lines) - 1))
        document = json.loads(lines[at])
        lines[at] = hostile.written(data.draw(hostile.edited(document, tuple(hostile.places(document)))))
        return b"\n".join(lines)
    if file.suffix == ".safetensors":
        content = file.read_bytes()
        document = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return templates.safetensors(
            hostile.written(data.draw(hostile.edited(document, tuple(hostile.places(document)))))
        )
    if file.suffix not in (".json", ".yaml"):
        return data.draw(hostile.damaged(file.read_bytes()))
    content = hostile.written(data.draw(hostile.edited(*_parsed(file))))
    return gzip.compress(content, 1) if file.name == "chrome.json" and data.draw(st.booleans()) else content


def _database(data: st.DataObject, file: Path) -> bytes:
    """A database of which a value, a column or a table was changed."""
    database = sqlite3.connect(":memory:")
    database.deserialize(file.read_bytes()) if hasattr(database, "deserialize") else None
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    table = data.draw(st.sampled_from(tables))
    columns = [row[1] for row in database.execute(f'PRAGMA table_info("{table}")')]
    column = data.draw(st.sampled_from(columns))
    action = data.draw(st.sampled_from(("value", "value", "value", "all", "drop", "rename", "empty")))
    value = data.draw(
        st.none()
        | st.sampled_from([-(2**63), 2**63 - 1, 0, -1, 1e308, float("inf"), b"\xff\x00", "x", "\x1b[2J", "", 2**40])
    )
    statements = {
        "value": f'UPDATE "{table}" SET "{column}" = ? WHERE rowid = (SELECT max(rowid) FROM "{table}")',
        "all": f'UPDATE "{table}" SET "{column}" = ?',
        "drop": f'DROP TABLE "{table}"',
        "rename": f'ALTER TABLE "{table}" RENAME COLUMN "{column}" TO "renamed"',
        "empty": f'DELETE FROM "{table}"',
    }
    try:
        database.execute(statements[action], [value] if "?" in statements[action] else [])
        database.commit()
    except sqlite3.Error:
        pass  # a constraint of the table
    return database.serialize() if hasattr(database, "serialize") else file.read_bytes()


def _change(data: st.DataObject, file: Path) -> bytes | str:
    kind = data.draw(st.sampled_from(("edited",) * 7 + ("damaged",) * 2 + ("special",)))
    if kind == "edited":
        return _edited(data, file)
    return data.draw(st.sampled_from(hostile.SPECIAL) if kind == "special" else hostile.damaged(file.read_bytes()))


def _play(
    data: st.DataObject, stage: Stage, template: Path, lines: Sequence[Sequence[str]], names: Sequence[str] = ()
) -> None:
    """Change one of a template's files and run one of these commands on it."""
    files = sorted(file for file in template.rglob("*") if (file.is_file() and not names) or file.name in names)
    file = data.draw(st.sampled_from(files))
    change = _change(data, file)
    words = list(data.draw(st.sampled_from(lines)))
    with stage.set(template) as root:
        hostile.apply(root / "in" / file.relative_to(template), change)
        if "--resume" in words:
            (root / "in" / "run").rename(root / "out" / "run")
        hold(words, root)


_EXPORTS = [["export", source, f"../out/x.{kind}"] for source in ("run", "other") for kind in ("zip", "csv")]
_COMPARES = [
    ["compare", *sources, "--output_dir", "../out"]
    for sources in (["run"], ["other"], ["run", "other"], ["first", "second"], ["first", "run"])
]


@given(data=st.data())
@share(12)
def test_records(data: st.DataObject, stage: Stage, folders: Path) -> None:
    _play(
        data,
        stage,
        folders / "records",
        [*_COMPARES, *_EXPORTS, ["compare", "run", "--json", "--output_dir", "../out"]],
    )


_RESUME = [
    *("run", "--dry_run", "--resume", "--output_dir", "../out/run", "--dataset", "moe_sample", "--input_len", "64"),
    *("--output_len", "8"),
]


@given(data=st.data())
@share(2)
def test_the_record_of_a_run_that_goes_on(data: st.DataObject, stage: Stage, folders: Path) -> None:
    _play(data, stage, folders / "records", [_RESUME], ["run.json"])


_PLANS = [
    [
        command,
        "--dry_run",
        "--model_path",
        "moe",
        "--dataset",
        "moe_sample",
        "--input_len",
        "64",
        "--output_dir",
        "../out",
        *rest,
    ]
    for command, rest in (
        ("run", ["--output_len", "8", "--engine", "vllm", "--gpu", "H100", "--precisions", "fp8"]),
        ("perf", ["--output_len", "8", "--engine", "trtllm", "--gpu", "B200", "--precisions", "fp8,nvfp4"]),
        ("ppl", ["--engine", "transformers", "--precisions", "bf16"]),
    )
]


@given(data=st.data())
@share(18)
def test_checkpoints(data: st.DataObject, stage: Stage, folders: Path) -> None:
    lines = [
        ["doctor", "--checkpoint", "../in"],
        *[["../in" if word == "moe" else word for word in line] for line in _PLANS],
    ]
    _play(data, stage, folders / "moe", [*lines, ["doctor", "--checkpoint", ".", "--json"]])


@given(data=st.data())
@share(18)
def test_files_of_options(data: st.DataObject, stage: Stage, folders: Path) -> None:
    _play(
        data,
        stage,
        folders / "yaml",
        [
            [command, "--dry_run", "--config", file, "--output_dir", "../out"]
            for command in ("run", "perf", "ppl")
            for file in ("run.yaml", "arms.yaml")
        ],
    )


@given(data=st.data())
@share(18)
def test_results_of_other_tools(data: st.DataObject, stage: Stage, folders: Path) -> None:
    name = data.draw(st.sampled_from(sorted(templates.TOOLS)))
    sizes = [[], templates.SIZES] if name in ("latency.json", "throughput.json") else [[], templates.SIZES[2:]]
    lines = [["import", name, "--arm", "a", "--output_dir", "../out", *more] for more in sizes]
    _play(data, stage, folders / "tools", lines, [name])


@given(data=st.data())
@share(15)
def test_traces(data: st.DataObject, stage: Stage, folders: Path) -> None:
    name = data.draw(st.sampled_from(("chrome.json", "nsys.sqlite", "stats.csv")))
    lines = [["kernels", name], ["kernels", name, "--full"], ["kernels", name, "--json", "--output", "../out/x.json"]]
    lines += [["kernels", name, "chrome.json"], ["kernels", "--ranks", name, name]]
    _play(data, stage, folders / "traces", lines, [name])


@given(data=st.data())
@share(3)
def test_archives(data: st.DataObject, stage: Stage, folders: Path) -> None:
    _play(data, stage, folders / "archives", [["compare", "run.zip", "--output_dir", "../out"]])


@given(
    names=st.lists(
        st.binary(max_size=20) | st.sampled_from(hostile.TEXTS).map(lambda text: text.encode("utf-8", "replace"))
    )
)
@share(2)
def test_names_of_kernels(names: list[bytes], stage: Stage) -> None:
    with stage.set(None) as root:
        hold(["kernels", "classify"], root, b"\n".join(names))


@given(data=st.data())
@share(15)
def test_command_lines(data: st.DataObject, stage: Stage, folders: Path) -> None:
    words = data.draw(st.sampled_from(sorted(COMMANDS)).flatmap(grammar.lines))
    with stage.set(folders / "all") as root:
        hold(words, root, b"a\n", codes=(0, 1, 2))
