"""What tells of a person or a place is not in a copy of a record, and what a reader needs still is."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_eval.errors import UsageError
from moe_eval.machine.hardware import Gpu
from moe_eval.records import anonymous
from moe_eval.records.anonymous import Identity
from moe_eval.records.labels import Origin
from tests.doubles import recorded_arms as made

UUID = "GPU-12345678-9abc-def0-1234-56789abcdef0"
JANE = Identity(("node17.lab.example", "node17"), ("jane",), ("/home/jane", "/scratch/jane/runs"))
MS = {1: [[100.0, 101.0], [100.0, 99.0]] * 2}


@pytest.mark.parametrize(
    ("key", "text", "shared"),
    [
        ("checkpoint", "/data/models/Qwen3-30B-A3B/", "Qwen3-30B-A3B"),
        ("checkpoint", "/mnt/my disk/Qwen3", "Qwen3"),
        ("checkpoint", "Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-30B-A3B"),
        ("model_path", "models/of/jane/Qwen3", "Qwen3"),
        ("model_path", r"C:\Users\jane\Qwen3", "Qwen3"),
        ("tokenizer", "/home/jane/.cache/huggingface/hub/models--Qwen--Qwen3-30B/snapshots/ab12", "Qwen/Qwen3-30B"),
        ("tokenizer", "~/tok", "tok"),
        ("output_dir", "runs/first", "first"),
        ("output_dir", "/home/jane", "[home]"),
        ("model_args", "pretrained=/x/Qwen3,tokenizer=~/tok,dtype=auto", "pretrained=Qwen3,tokenizer=tok,dtype=auto"),
        ("error", "No file '/home/jane/ckpt/config.json' (jane@node17).", "No file 'config.json' ([user]@[host])."),
        ("error", "no http://node17:5000/api, nor 10.0.0.7:29500", "no http://[host], nor [host]"),
        ("error", "(EngineCore pid=4711) process 4712 ended", "(EngineCore pid=[pid]) process [pid] ended"),
        ("notes", f"NVML lost {UUID}", "NVML lost [gpu]"),
        ("name", "void at::native::elementwise<a / b, 2>(float*)", "void at::native::elementwise<a / b, 2>(float*)"),
        ("source", "tokens/s, 1/2 and and/or", "tokens/s, 1/2 and and/or"),
        ("versions", "10.11.0.33", "10.11.0.33"),
        ("error", "janet and node170 are others", "janet and node170 are others"),
    ],
)  # fmt: skip
def test_texts(key: str, text: str, shared: str) -> None:
    assert anonymous.text_of(text, JANE, key) == shared


_TELLING = st.sampled_from(["/home/jane", "/scratch/jane/runs", "node17", "node17.lab.example", "jane", UUID, "GPU-0"])
_PIECES = st.lists(st.one_of(_TELLING, st.text(max_size=5), st.sampled_from("/ .,=:'\n\\~")), max_size=8)


@settings(max_examples=60)
@given(pieces=_PIECES, key=st.sampled_from(["error", "checkpoint", "output_dir", "model"]))
def test_nothing_that_tells_is_left_in_any_text(pieces: list[str], key: str) -> None:
    identity = replace(JANE, uuids=("GPU-0",))
    text = anonymous.text_of("".join(pieces), identity, key)
    assert identity.find(text) is None
    assert "/home/jane" not in text
    assert UUID not in text


def test_a_record_keeps_its_figures_and_its_equal_labels() -> None:
    record = made.latency("fp8", MS, checkpoint="/home/jane/Qwen3", arguments={"cache": {"/tmp/jane": ["~/x"]}})
    machine = replace(made.machine(), gpus=(Gpu("H100", "9.0", 1, UUID), Gpu("H100", "9.0", 1, "GPU-1")))
    record = replace(record, error=f"{UUID} was lost", origin=Origin(made.RUN, {"output_dir": "/x/y"}, machine))
    identity = anonymous.of_records([record], JANE)
    copy = anonymous.anonymous(record, identity)
    assert copy.shapes[0].loads == record.shapes[0].loads
    assert copy.shapes[0].figures == record.shapes[0].figures
    assert copy.labels.engine is not None
    assert copy.labels.engine.checkpoint == "Qwen3"
    assert copy.labels.engine.arguments == {"cache": {"[user]": ["x"]}}
    assert copy.origin.machine is not None
    assert [gpu.uuid for gpu in copy.origin.machine.gpus] == ["gpu1", "gpu2"]
    assert {gpu.uuid for turn in copy.shapes[0].turns for gpu in turn.gpus} == {"gpu0"}
    assert copy.error == "gpu1 was lost"
    assert copy.origin.options == {"output_dir": "y"}
    assert identity.find(msgspec.json.encode(copy).decode()) is None


def test_users_of_the_machine_that_measured_are_read_from_its_paths() -> None:
    record = replace(made.latency("fp8", MS, checkpoint="/home/otto/Qwen3"), error="otto has no room")
    assert anonymous.anonymous(record, anonymous.of_records([record], JANE)).error == "[user] has no room"


def test_a_user_who_is_called_like_a_word_of_the_records() -> None:
    with pytest.raises(UsageError, match="Export under another name"):
        anonymous.anonymous(made.latency("fp8", MS), Identity(users=("finished",)))


def test_common_names_tell_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "localhost")
    monkeypatch.setattr("getpass.getuser", lambda: "root")
    monkeypatch.setenv("HOME", "/root")
    identity = anonymous.here()
    assert (identity.hosts, identity.users) == ((), ())
    assert "/root" in identity.folders
