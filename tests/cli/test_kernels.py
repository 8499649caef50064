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
from tests.doubles import chrome_trace, ranks_play, timeline
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


def cells(out: str) -> list[list[str]]:
    """The rows of all tables."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]


def test_one_trace_on_screen_and_as_json(traces: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", traces[0], "--output", str(tmp_path / "k.json")]) == 0
    out = capsys.readouterr().out
    record = json.loads((tmp_path / "k.json").read_text())
    assert (record["precision_seen"], record["moe_backend_seen"], record["verified"]) == ("bf16", "triton", None)
    assert (record["origin"]["run_id"], record["source"]["gpus"]) == (None, ["NVIDIA H100"])
    assert list(record["phases"]) == ["prefill", "decode"]
    by_category = {row[0]: row for row in cells(out) if len(row) == 7}
    for at, phase in ((1, record["phases"]["prefill"]), (4, record["phases"]["decode"])):
        assert sum(each["share"] for each in phase["categories"].values()) == pytest.approx(1)
        assert phase["total_ms"] == pytest.approx(sum(each["ms"] for each in phase["categories"].values()))
        for name, each in phase["categories"].items():
            share = f"{100 * each['share']:.1f}"
            assert by_category[name][at : at + 3] == [f"{each['ms']:.3f}", share, f"{each['launches']:.0f}"]
        assert by_category["TOTAL"][at : at + 2] == [f"{phase['total_ms']:.3f}", "100.0"]
        assert by_category["step"][at] == f"{phase['wall_ms']:.3f}"
        assert by_category["nothing running"][at] == f"{phase['wall_ms'] - phase['busy_ms']:.3f}"
        free_ms = phase["wall_ms"] / phase["wall_ceiling"]["if_free"]
        assert f"With free experts it would take {free_ms:.3f} ms ({phase['wall_ceiling']['if_free']:.2f}x)" in out


def test_the_conclusion_comes_first_and_one_trace_takes_forty_lines(
    traces: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kernels", "--precisions", "bf16", traces[0]]) == 0
    short = capsys.readouterr().out.splitlines()
    assert short[0] == (
        "bf16.json: the experts ran bf16 on triton, as labelled, NVIDIA H100, 1 prefill step, 8 decode steps."
    )
    assert short[1].startswith("A prefill step takes 0.")
    assert short[2].startswith("A decode step takes 0.")
    assert len(short) <= 42
    assert main(["kernels", traces[0], "--full"]) == 0
    full = capsys.readouterr().out
    for name in {str(row["text"])[:90] for row in generation(graph=True).rows}:
        assert name in full


def test_printed_kernels_and_categories_both_add_up_to_the_total(
    traces: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kernels", *traces[1:]]) == 0
    rows = cells(capsys.readouterr().out)
    kernels_at = [row[0] for row in rows].index("kernel")
    categories = {row[0]: row for row in rows[2:kernels_at]}
    sums = categories.pop("TOTAL")
    total = [float(sums[1]), float(sums[4])]
    listed = {name: row for name, row in categories.items() if name not in ("overlap", "nothing running", "step")}
    for at, of_phase in ((1, total[0]), (4, total[1])):
        assert sum(float(row[at]) for row in listed.values()) == pytest.approx(of_phase, abs=0.0005 * len(listed))
    for at, of_phase in ((2, total[0]), (3, total[1])):
        kernels = [row[at] for row in rows[kernels_at + 2 :]]
        assert sum(float(cell) for cell in kernels if cell not in ("none", "<0.001")) == pytest.approx(
            of_phase, abs=0.0005 * len(kernels)
        )
    expert = [row for row in rows[kernels_at:] if row[1] == "expert_gemm"]
    assert [row[2:] for row in expert] == [[listed["expert_gemm"][1], listed["expert_gemm"][4]]]


def test_the_file_has_the_first_plan_s_figures_of_the_whole_trace(traces: list[str], tmp_path: Path) -> None:
    recording = generation(graph=True, fp8=True)
    assert main(["kernels", "--input", traces[1], "--output", str(tmp_path / "k.json")]) == 0
    record = json.loads((tmp_path / "k.json").read_text())
    total_ns = sum(int(row["duration_ns"]) for row in recording.rows)
    assert set(record["categories"]) == set(recording.meant)
    for name, part in record["categories"].items():
        durations = [
            int(row["duration_ns"]) for row, meant in zip(recording.rows, recording.meant, strict=True) if meant == name
        ]
        assert part == pytest.approx(
            {"time": sum(durations) / 1e6, "share": sum(durations) / total_ns, "count": len(durations)}
        )
    assert record["total"] == pytest.approx({"time": total_ns / 1e6, "share": 1, "count": len(recording.rows)})
    assert record["ceiling"] == pytest.approx(1 / (1 - record["categories"]["expert_gemm"]["share"]))
    assert record["unit"] == "ms"


def test_a_trace_of_expert_gemms_alone_has_no_ceiling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording = Timeline()
    recording.run("expert_gemm", timeline.MOE, 9000)
    path = chrome(tmp_path / "experts.json", recording)
    assert main(["kernels", str(path), "--output", str(tmp_path / "k.json")]) == 0
    record = json.loads((tmp_path / "k.json").read_text())
    assert (record["ceiling"], record["total"]["time"]) == (None, 0.009)
    assert "would take no time" in capsys.readouterr().out


@pytest.mark.parametrize("size", [2, 3])
def test_files_of_ranks_are_one_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int) -> None:
    play = ranks_play.generation(decode=4, expert_ns=(9000,) * size, gap_ns=(500,) * (size - 1) + (6000,))
    paths = [str(play.chrome(tmp_path / f"rank{rank}.json", rank)) for rank in range(size)]
    assert main(["kernels", "--input", *paths, "--ranks", "--precisions", "bf16", "--output", str(tmp_path / "k")]) == 0
    assert "collective_wait" in capsys.readouterr().out
    trace = json.loads((tmp_path / "k").read_text())
    assert trace["trace"] == ", ".join(f"rank{rank}.json" for rank in range(size))
    assert [phase["steps"] for phase in trace["phases"].values()] == [1, 4]
    decode = trace["phases"]["decode"]
    assert [rank["rank"] for rank in decode["ranks"]] == list(range(size))
    assert decode["collectives"]["late"][0]["rank"] == size - 1


def test_two_traces_and_times_without_the_profiler(
    traces: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--precisions", "bf16,fp8", "--tpot_ms", "4.86", "4.83", "--output", str(tmp_path / "k.json")]
    assert main(["kernels", *options, *traces]) == 0
    out = capsys.readouterr().out
    assert "The expert GEMMs of fp8 take 0.024 ms less" in out
    # two quantisations of 0.6 us in three layers, of a gain of 4 us each
    assert "Other kernels take back 15 % of it: quant_dequant +0.004 ms" in out
    assert "measured without it is 1.006x. The kernels explain it." in out
    assert len(out.splitlines()) <= 60
    rows = {row[0]: row for row in cells(out)}
    assert (rows["quant_dequant"][1], rows["quant_dequant"][4]) == ("none", "new")
    assert rows["attention"][3:5] == ["none", "1.00x"]
    assert "+ residual" in rows
    content = json.loads((tmp_path / "k.json").read_text())
    assert [list(record["phases"]) for record in content["traces"]] == [["prefill", "decode"]] * 2
    assert all(record["total"]["count"] for record in content["traces"])
    assert list(content["difference"]) == ["prefill", "decode"]


def test_traces_without_labels_are_called_by_the_precisions_that_ran(
    traces: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kernels", *traces]) == 0
    out = capsys.readouterr().out
    assert out.startswith("bf16 is bf16.json: the experts ran bf16 on triton")
    assert "\nfp8 is fp8.json: the experts ran fp8 on triton" in out
    assert main(["kernels", traces[0], traces[0]]) == 0
    assert "than those of bf16 (1)" in capsys.readouterr().out


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


@pytest.mark.parametrize("labels", ["fp8", "bf16,bf16"])
def test_a_label_that_the_kernels_contradict_is_an_error_before_any_table(
    traces: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: str
) -> None:
    paths = traces[: len(labels.split(","))]
    assert main(["kernels", *paths, "--precisions", labels, "--output", str(tmp_path / "k.json")]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    wrong, seen = ("fp8", "bf16") if labels == "fp8" else ("bf16", "fp8")
    assert f"{seen}.json: the label says {wrong}, but the experts ran {seen} on triton" in line
    assert timeline.MOE in line
    content = json.loads((tmp_path / "k.json").read_text())
    assert [record["verified"] for record in content.get("traces", [content])][-1] is False


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
    assert main(["kernels", "--full", "--input", str(path), "--output", str(tmp_path / "k.json")]) == 0
    out = capsys.readouterr().out
    assert all(len(line) < 400 for line in out.splitlines())
    assert "\x1b" not in out
    assert "\t" not in out
    widths = {len(line) for line in out.splitlines() if "evil" in line or line.startswith("| kernel")}
    assert widths
    unclassified = json.loads((tmp_path / "k.json").read_text())["phases"]["decode"]["functions"]
    (hostile,) = [each for each in unclassified if each["name"].startswith("evil")]
    assert len(hostile["name"]) < 1100


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "Name one trace"),
        (["a", "b", "c"], "Name one trace"),
        (["--input", "a", "b", "c"], "Name one trace"),
        (["a", "--input", "b"], "Write all of them in one place"),
        (["classify", "a"], "classify takes neither"),
        (["classify", "--full"], "classify takes neither"),
        (["nowhere.json"], "nowhere.json"),
        (["--input", "nowhere.json"], "nowhere.json"),
        (["--input", "{bf16}", "--precisions", "int4"], "Give one of bf16"),
        (["--input", "{bf16}", "--precisions", "bf16,fp8"], "does not name every trace"),
        (["--input", "{bf16}", "{bf16}", "--ranks", "--precisions", "bf16,fp8"], "does not name every trace"),
        (["--input", "{bf16}", "{bf16}", "--ranks", "--tpot_ms", "1", "2"], "two traces"),
        (["classify", "--ranks"], "classify takes neither"),
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


def test_traces_are_one_object_or_their_conclusion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(chrome(tmp_path / f"{name}.json", generation(decode=2))) for name in "ab"]
    assert main(["kernels", files[0], "--json"]) == 0
    assert "decode" in json.loads(capsys.readouterr().out)["phases"]
    assert main(["kernels", *files, "--json"]) == 0
    out, err = capsys.readouterr()
    assert (len(json.loads(out)["traces"]), "decode" in json.loads(out)["difference"]) == (2, True)
    assert "TOTAL" in err
    assert main(["kernels", *files, "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert 1 <= len(out.splitlines()) <= 3
    assert ("TOTAL" in out, err) == (False, "")
