"""`moe-eval kernels`: its tables, its JSON, and every way it refuses a file."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

import pytest

from moe_eval.cli import main
from tests.doubles import chrome_trace, timeline
from tests.doubles.timeline import Timeline, generation

COMMAND = [sys.executable, "-c", "import sys; from moe_eval.cli import main; sys.exit(main())", "kernels"]
ASCII = {**os.environ, "PYTHONIOENCODING": "ascii"}
HOSTILE = 'evil\t|"<script>alert(1)</script>\x1b[31m\n' + "n" * 100_000


def chrome(path: Path, recording: Timeline) -> Path:
    """The timeline as torch's profiler writes it, every kernel with its launch."""
    events: list[dict[str, Any]] = []
    for row in recording.rows:
        copy = str(row["text"]).startswith("Memcpy")
        args = {"device": 0, "stream": 7, "correlation": row["correlation"], "grid": [row.get("blocks", 1), 1, 1]}
        kernel = chrome_trace.kernel(row["text"], cat="gpu_memcpy" if copy else "kernel", args=args)
        events.append(kernel | {"ts": int(row["start_ns"]) / 1000, "dur": int(row["duration_ns"]) / 1000})
        launch = "cudaGraphLaunch" if row.get("replayed") else "cudaLaunchKernel"
        events.append(
            chrome_trace.call(launch, ts=int(row["launch_ns"]) / 1000, args={"correlation": row["correlation"]})
        )
    return chrome_trace.save(path, events, deviceProperties=[{"name": "NVIDIA H100"}])


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("traces")
    return [str(chrome(folder / f"{name}.json", generation(graph=True, fp8=name == "fp8"))) for name in ("bf16", "fp8")]


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["kernels", *argv]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("moe-eval: ")
    return line


def test_one_trace_on_screen_and_as_json(traces: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "--input", traces[0], "--output", str(tmp_path / "k.json")]) == 0
    out = capsys.readouterr().out
    content = json.loads((tmp_path / "k.json").read_text())
    (record,) = content["traces"]
    assert (record["precision_seen"], record["moe_backend_seen"], record["verified"]) == ("bf16", "triton", None)
    assert (record["origin"]["run_id"], content["difference"]) == (None, None)
    assert record["source"]["gpus"] == ["NVIDIA H100"]
    assert list(record["phases"]) == ["prefill", "decode"]
    decode = record["phases"]["decode"]
    assert sum(each["share"] for each in decode["categories"].values()) == pytest.approx(1)
    assert decode["total_ms"] == pytest.approx(sum(each["ms"] for each in decode["categories"].values()))
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    by_category = {line[0]: line for line in lines[-30:] if len(line) == 5}
    for name, each in decode["categories"].items():
        assert by_category[name][1] == f"{each['ms']:.3f}"
        assert by_category[name][3] == f"{each['launches']:.0f}"
    assert by_category["TOTAL"][1:3] == [f"{decode['total_ms']:.3f}", "100.0"]
    assert f"{decode['ceiling']['if_free']:.2f}x of busy time" in out


def test_two_traces_and_times_without_the_profiler(traces: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--input", *traces, "--precisions", "bf16,fp8", "--tpot_ms", "4.86", "4.83"]
    assert main(["kernels", *options]) == 0
    out = capsys.readouterr().out
    assert "decode: the expert GEMMs of fp8 take 0.024 ms less" in out
    assert "measured without it is 1.006x. The kernels explain it." in out
    assert "+ residual" in out


def test_times_given_by_hand_are_held_against_the_kernels(
    traces: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--input", *traces, "--precisions", "bf16,fp8", "--output", str(tmp_path / "k.json")]
    assert main(["kernels", *options, "--tpot_ms", "4.0", "8.0"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    decode = json.loads((tmp_path / "k.json").read_text())["difference"]["decode"]
    idle = [100 * (1 - busy / step) for busy, step in zip(decode["busy_ms"], decode["step_ms"], strict=True)]
    assert decode["measured_ratio"] == 0.5
    assert (
        "measured without it is 0.500x. The kernels do not explain it: both predictions are more than 15 % away. "
        f"Nothing runs for {idle[1]:.0f} % of the step of fp8 (bf16: {idle[0]:.0f} %), so the host may be what is "
        "waited for."
    ) in out


def test_a_label_that_the_kernels_contradict_fails_loudly_after_everything_is_shown(
    traces: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--input", traces[0], "--precisions", "fp8", "--output", str(tmp_path / "k.json")]
    assert main(["kernels", *options]) == 1
    output = capsys.readouterr()
    assert "TOTAL" in output.out
    assert "the label says fp8, but the experts ran bf16 on triton" in output.err
    assert json.loads((tmp_path / "k.json").read_text())["traces"][0]["verified"] is False


def test_classify_reads_names_from_standard_input(tmp_path: Path) -> None:
    names = [timeline.MOE, timeline.NORM, "never heard of", 'tab\there "quoted" <b>']
    text = "\n".join([*names, ""]).encode()
    done = subprocess.run([*COMMAND, "classify"], input=text, capture_output=True, check=True, cwd=tmp_path)
    rows = [line.split("\t", 3) for line in done.stdout.decode().splitlines()]
    assert [row[3] for row in rows] == names
    assert [row[0] for row in rows] == ["expert_gemm", "norm", "other", "other"]
    assert rows[2][1:3] == ["", ""]


def test_a_hostile_name_breaks_neither_the_table_nor_the_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = generation(decode=2)
    recording.run("other", HOSTILE, 500_000)
    path = chrome(tmp_path / "hostile.json", recording)
    assert main(["kernels", "--input", str(path), "--output", str(tmp_path / "k.json")]) == 0
    out = capsys.readouterr().out
    assert all(len(line) < 400 for line in out.splitlines())
    assert "\x1b" not in out
    assert "\t" not in out
    widths = {len(line) for line in out.splitlines() if "evil" in line or line.startswith("| kernel")}
    assert widths
    unclassified = json.loads((tmp_path / "k.json").read_text())["traces"][0]["phases"]["decode"]["functions"]
    (hostile,) = [each for each in unclassified if each["name"].startswith("evil")]
    assert len(hostile["name"]) < 1100


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "Give --input one trace"),
        (["--input", "a", "b", "c"], "Give --input one trace"),
        (["--input", "nowhere.json"], "nowhere.json"),
        (["--input", "{bf16}", "--precisions", "int4"], "Give one of bf16"),
        (["--input", "{bf16}", "--precisions", "bf16,fp8"], "does not name every trace"),
        (["--input", "{bf16}", "--tpot_ms", "1", "2"], "two traces"),
        (["--input", "{bf16}", "{bf16}", "--tpot_ms", "nan", "1"], "--tpot_ms"),
        (["--input", "{bf16}", "{bf16}", "--tpot_ms", "1", "inf"], "--tpot_ms"),
        (["--input", "{bf16}", "{bf16}", "--tpot_ms", "0", "2"], "above 0"),
        (["--input", "{bf16}", "--output", "{bf16}/x/k.json"], "does not exist"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    traces: list[str], capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    assert sentence in refused(capsys, *(each.replace("{bf16}", traces[0]) for each in options))


def test_damaged_files_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = gzip.compress(json.dumps({"traceEvents": []}).encode() * 50)
    for name, data in {
        "empty.json": b"",
        "cut.json.gz": good[: len(good) // 2],
        "half.json": b'{"traceEvents": [{"ph": "X", "name": ',
        "noise.bin": bytes(range(256)) * 10,
        "cpu.json": json.dumps({"traceEvents": [chrome_trace.mark("aten::mm", cat="cpu_op")]}).encode(),
        "no.sqlite": b"SQLite format 3\0" + bytes(100),
    }.items():
        (tmp_path / name).write_bytes(data)
        assert name in refused(capsys, "--input", str(tmp_path / name))


def test_output_replaces_neither_a_trace_nor_what_is_no_file(
    traces: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path(traces[0]).read_bytes()
    link = tmp_path / "link.json"
    link.symlink_to(traces[0])
    for output in (traces[0], str(link)):
        assert "is not changed" in refused(capsys, "--input", *traces, "--output", output)
    assert Path(traces[0]).read_bytes() == before
    device = tmp_path / "fifo"
    os.mkfifo(device)  # stands for /dev/null and /dev/stdout, which a user who may would lose
    for output in (str(device), str(tmp_path)):
        assert "no regular file" in refused(capsys, "--input", traces[0], "--output", output)
    assert device.is_fifo()


def test_chunks_of_a_prompt_that_look_like_one_step_are_pointed_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = Timeline()
    for chunk in range(3):
        recording.step("prefill", 512)
        if chunk < 2:  # only the last chunk is sampled from
            del recording.rows[-2:]
    for _ in range(3):
        recording.step("decode", 1, graph=True)
    assert main(["kernels", "--input", str(chrome(tmp_path / "chunks.json", recording))]) == 0
    assert "(9 in prefill, 3 in decode)" in capsys.readouterr().out


def test_classify_with_standard_input_closed_and_in_an_ascii_locale() -> None:
    command = [*COMMAND, "classify"]
    for closed in ("<&-", ">&-"):
        shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *command]
        output = subprocess.run(shell, input="", capture_output=True, text=True, check=False)
        assert (output.returncode, output.stderr.count("\n")) == (2, 1)
    output = subprocess.run(command, input="caf\u00e9\n", capture_output=True, encoding="utf-8", env=ASCII, check=True)
    assert output.stdout == "other\t\t\tcaf\u00e9\n"


def test_an_ascii_terminal_and_a_reader_that_has_seen_enough_end_no_command_with_a_traceback(tmp_path: Path) -> None:
    recording = generation(decode=2)
    recording.run("other", "µ-kernel €", 900_000)
    path = chrome(tmp_path / "a.json", recording)
    done = subprocess.run([*COMMAND, "--input", str(path)], capture_output=True, env=ASCII, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"?-kernel ?" in done.stdout
    names = "\n".join(["fused_moe_kernel"] * 100_000).encode()
    pipe = subprocess.PIPE
    with subprocess.Popen([*COMMAND, "classify"], stdin=pipe, stdout=pipe, stderr=pipe) as running:
        assert running.stdin and running.stdout and running.stderr  # noqa: PT018
        writer = threading.Thread(target=_feed, args=(running.stdin, names))
        writer.start()
        assert running.stdout.readline().startswith(b"expert_gemm\t")
        running.stdout.close()
        writer.join(60)
        assert running.wait(60) == 141
        assert running.stderr.read() == b""


def _feed(stream: IO[bytes], data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), stream:
        stream.write(data)
