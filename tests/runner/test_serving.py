"""Serving tasks: servers by load and in turns, points that fail alone, and what a real server leaves of a point."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import requests

from moe_eval.checkpoint.tokenizer import load as load_tokenizer
from moe_eval.data.served_requests import Lengths, LoadPoint, of_stream
from moe_eval.engines import registry
from moe_eval.engines.base import EngineSettings
from moe_eval.engines.endpoint.server import Server
from moe_eval.engines.served import server as processes
from moe_eval.engines.served.server import ServerProcess
from moe_eval.engines.serving import HOST, ServeSettings, free_port, local
from moe_eval.errors import EngineError
from moe_eval.evaluators import load_generator
from moe_eval.records import by_arm
from moe_eval.records.labels import Status
from moe_eval.records.samples import EngineSteps
from moe_eval.records.serving import ServedLoad
from moe_eval.runner import plan_text, served_tasks
from moe_eval.runner.folder import RunFolder
from moe_eval.runner.request import ServingRequest
from moe_eval.runner.tasks import Task, served_load
from tests.conftest import SHIPPED
from tests.doubles import aiperf, plays, server_command
from tests.doubles.arm_process import FACTS, Stage

POINTS = (LoadPoint(1), LoadPoint(2))
SERVE = ServeSettings(16, 10.0)
SERVING = ServingRequest(POINTS, output_len=4, minimum=5)


@pytest.fixture(autouse=True)
def _generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{aiperf.install(tmp_path / 'bin')}:/usr/bin:/bin")


def execute(folder: Path, loads: int = 2) -> tuple[plays.Quiet, list[Task]]:
    """Do what is left of a run of servers."""
    request = plays.request(folder, evaluators=("serving",), loads=loads)
    run = plays.run_of(replace(request, serving=SERVING))
    quiet = plays.Quiet()
    run.execute(quiet)
    return quiet, list(run.plan.tasks)


def test_arms_take_turns_by_load_and_a_load_is_one_server(stage: Stage, tmp_path: Path) -> None:
    quiet, tasks = execute(tmp_path / "run")
    assert quiet.failed == {}
    assert stage.order("load") == ["bf16", "fp32", "fp32", "bf16"]
    served = [
        (request.arm, LoadPoint(**request.arguments["order"]["point"]).name)
        for request in stage.asked
        if request.task == "serving"
    ]
    assert served == [(arm, name) for arm in ("bf16", "fp32", "fp32", "bf16") for name in ("c1", "c2")]
    assert stage.most_alive == 1
    assert [task.name for task in tasks[:2]] == ["serving_c1_0", "serving_c2_0"]
    loads = [request.load for request in stage.asked if request.task == "load"]
    assert all(load and load.serving and load.serving.window == 12 for load in loads)
    assert all(load and load.settings.kv_tokens is None for load in loads)
    record = msgspec.json.decode((tmp_path / "run" / "serving_fp32_cpu.json").read_bytes())
    assert [point["name"] for point in record["points"]] == ["c1_i8_o4", "c2_i8_o4"]
    assert [len(point["loads"]) for point in record["points"]] == [2, 2]


def test_every_arm_gets_the_same_requests(stage: Stage, tmp_path: Path) -> None:
    execute(tmp_path / "run", loads=1)
    files = {request.arguments["order"]["requests"] for request in stage.asked if request.task == "serving"}
    (file,) = files
    content = msgspec.json.decode(Path(file).read_bytes())
    assert content["digest"] in Path(file).name
    assert len(content["requests"]) == 2 + 20, "two users warm up, and send ten requests each"
    digests = {
        msgspec.json.decode(record.read_bytes())["workload"]["digest"]
        for record in (tmp_path / "run").glob("serving_*.json")
    }
    assert digests == {content["digest"]}


def test_a_point_that_fails_is_alone_and_done_again_on_resume(stage: Stage, tmp_path: Path) -> None:
    stage.fails["fp32", "serving", "c1"] = "The server of Made up ended with code 3."
    quiet, tasks = execute(tmp_path / "run", loads=1)
    assert quiet.failed == {"fp32 serving_c1_0": "The server of Made up ended with code 3."}
    assert stage.order("load") == ["bf16", "fp32", "fp32"], "its server is started again for the next point"
    folder = RunFolder(tmp_path / "run")
    statuses = [folder.result(task).status for task in tasks if task.arm == "fp32"]  # type: ignore[union-attr]
    assert statuses == [Status.FAILED, Status.FINISHED]
    record = msgspec.json.decode((tmp_path / "run" / "serving_fp32_cpu.json").read_bytes())
    assert (record["status"], record["points"][0]["loads"]) == ("failed", [None])
    assert record["points"][0]["errors"] == ["The server of Made up ended with code 3."]
    assert record["points"][1]["metrics"]["output_tok_s"] is not None
    stage.fails.clear()
    stage.asked.clear()
    quiet, _ = execute(tmp_path / "run", loads=1)
    assert quiet.failed == {}
    assert [(request.arm, request.task) for request in stage.asked] == [("fp32", "load"), ("fp32", "serving")]


def test_a_server_that_never_gets_ready_costs_its_load_alone(stage: Stage, tmp_path: Path) -> None:
    stage.fails["bf16", "load"] = "The server of Made up did not get ready within 5 s."
    quiet, _ = execute(tmp_path / "run", loads=1)
    assert set(quiet.failed) == {"bf16 serving_c1_0", "bf16 serving_c2_0"}
    assert stage.order("load") == ["bf16", "fp32"], "it is not awaited for every point"


@pytest.fixture
def play(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """A server process of the stand-in, which plays what the test names."""
    port = free_port(None)
    command = [sys.executable, "-S", str(Path(server_command.__file__)), str(port), request.param]
    process = processes.start("Made up", command, {})
    processes.await_ready("Made up", process, port, 20)
    served = ServerProcess("Made up", process, local(port, "x"), FACTS, f"http://{HOST}:{port}/metrics")
    yield served
    served.close()


def drive(served: Any, tmp_path: Path, users: int = 2, count: int = 12) -> ServedLoad:
    requests = of_stream(range(1000), [Lengths(4, 3), Lengths(2, 5)], users + count, "counted")
    file = tmp_path / "requests.json"
    file.write_bytes(msgspec.json.encode(requests))
    return served_tasks.serving(
        served,
        None,
        order={
            "requests": str(file),
            "point": {"concurrency": users},
            "count": count,
            "warm_up": users,
            "tokenizer": "x",
        },
        folder=str(tmp_path / "raw"),
    )


@pytest.mark.parametrize("play", ["serve"], indirect=True)
def test_a_point_is_driven_and_its_raw_output_kept(play: ServerProcess, tmp_path: Path) -> None:
    load = drive(play, tmp_path)
    assert sorted(load.times.output_tokens) == [3] * 6 + [5] * 6
    assert sorted(load.times.input_tokens) == [2] * 6 + [4] * 6
    assert all(first < whole for first, whole in zip(load.times.ttft_ms, load.times.e2e_ms, strict=True))
    assert 0 < load.ended - load.started < 30
    assert (load.state.running, load.state.waiting, load.state.kv_cache_share) == (3.0, 1.0, 0.25)
    assert (load.state.preemptions, load.generator) == (2.0, "aiperf 0.13.0")
    assert {"profile_export.jsonl", "aiperf.txt"} <= {file.name for file in Path(load.folder).iterdir()}
    body = msgspec.json.decode((tmp_path / "serving_requests.jsonl").read_bytes().splitlines()[0])["payload"]
    assert (body["prompt"], body["max_tokens"], body["ignore_eos"]) == ([0, 1, 2, 3], 3, True)


@pytest.mark.parametrize("play", ["dies"], indirect=True)
def test_a_server_that_dies_in_the_middle_is_told_by_its_end(play: ServerProcess, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"The server of Made up ended with code 3\. Read the end of the arm's log\."):
        drive(play, tmp_path)


@pytest.mark.parametrize("play", ["errors"], indirect=True)
def test_a_server_that_answers_errors_fails_the_point(play: ServerProcess, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"^4 of 12 requests failed \(500 Internal Server Error it broke\)"):
        drive(play, tmp_path)
    play.check()


@pytest.mark.parametrize("play", ["serve"], indirect=True)
def test_a_generator_that_fails_is_told_with_its_words(
    play: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(aiperf.install(tmp_path / "broken", code=9)))
    with pytest.raises(EngineError, match="AIPerf ended with code 9 at 2 users"):
        drive(play, tmp_path)


def test_steps_stand_in_where_a_server_tells_of_no_moments(tmp_path: Path) -> None:
    steps = EngineSteps(steps=7, sequences=4, queued=2, kv_cache_share=0.5)
    served = ServerProcess("Made up", None, Server("u", "m"), FACTS, read_steps=lambda: steps)  # type: ignore[arg-type]
    state = served_tasks._state(served, tmp_path)
    assert (state.running_most, state.waiting_most, state.kv_cache_share, state.steps) == (4, 2, 0.5, 7)


def test_loads_of_servers_are_apart_from_those_of_engines() -> None:
    names = {Task("serving", "a", served_load(number), point=POINTS[0]).name for number in range(3)}
    assert names == {"serving_c1_0", "serving_c1_1", "serving_c1_2"}


def test_a_server_is_traced_last_at_the_middle_load_after_some_requests(stage: Stage, tmp_path: Path) -> None:
    request = plays.request(tmp_path / "run", evaluators=("serving", "kernels"))
    run, quiet = plays.run_of(replace(request, serving=SERVING)), plays.Quiet()
    run.execute(quiet)
    assert quiet.failed == {}
    traced = [request for request in stage.asked if request.task == "serving_trace"]
    assert [(request.arm, request.arguments["order"]["point"]["concurrency"]) for request in traced] == [
        ("bf16", 2),
        ("fp32", 2),
    ]
    loads = [request.load.serving for request in stage.asked if request.load and request.load.serving]
    assert {bool(serving.trace_folder) for serving in loads[:6]} == {False}, "timed loads have no profiler"
    assert {bool(serving.trace_folder) for serving in loads[6:]} == {True}
    e2e_ms = (100 + 10 * 10 * stage.seconds("bf16", 2)) / 1000
    assert traced[0].arguments["settle_s"] == pytest.approx(2.5 * e2e_ms)
    records = by_arm.read(tmp_path / "run")
    assert [set(arm.kernels) for arm in records] == [{"c2_i8_o4"}] * 2, "no batch was timed, so none is traced"


def test_fixed_batches_are_traced_as_well_where_they_are_timed(tmp_path: Path) -> None:
    request = replace(plays.request(tmp_path, evaluators=("latency", "serving", "kernels")), serving=SERVING)
    plan = plays.run_of(request).plan
    names = [task.name for task in plan.tasks if task.kind == "kernels" and task.arm == "bf16"]
    assert names == ["kernels_b1_i8_o4", "kernels_b2_i8_o4", "kernels_c2_0"]
    text = plan_text.describe(plan, request, ())
    assert "kernels of servers: at c2, in a load of its own, traced by torch's profiler" in text
    assert " tasks, about " in text
    open_end = replace(request, serving=replace(SERVING, is_sweep=True))
    assert " tasks, at most about " in plan_text.describe(plan, open_end, ())


@pytest.mark.parametrize("play", ["serve"], indirect=True)
def test_an_endpoint_is_driven_as_it_is_and_left_alone(play: ServerProcess, tmp_path: Path) -> None:
    settings = EngineSettings("x", options={"base_url": play.server.base_url, "tokenizer": str(SHIPPED)})
    endpoint = registry.serve("openai", settings, None, SERVE)
    load = drive(endpoint, tmp_path)
    assert (len(load.times.e2e_ms), load.state.running) == (12, 3.0)
    endpoint.close()
    play.check()
    chats = registry.serve("openai", replace(settings, options={**settings.options, "chat": True}), None, SERVE)
    order = {"requests": str(tmp_path / "requests.json"), "point": {"concurrency": 2}}
    order |= {"count": 12, "warm_up": 2, "tokenizer": str(SHIPPED)}
    text = load_tokenizer(str(SHIPPED), None, False).decode([0, 1, 2, 3])
    with pytest.raises(EngineError, match="requests failed"):  # the stand-in counts the tokens of no chat
        served_tasks.serving(chats, None, order=order, folder=str(tmp_path / "chats"))
    body = msgspec.json.decode((tmp_path / "serving_requests.jsonl").read_bytes().splitlines()[0])["payload"]
    assert body["messages"] == [{"role": "user", "content": text}]


@pytest.mark.parametrize("play", ["serve"], indirect=True)
def test_an_endpoint_below_another_path_is_asked_there(play: ServerProcess, tmp_path: Path) -> None:
    base = play.server.base_url.removesuffix("/v1")
    play.server = Server(f"{base}/api", "x")
    assert len(drive(play, tmp_path).times.e2e_ms) == 12
    paths = requests.get(f"{base}/keys", timeout=5).json()["paths"]
    assert paths == ["/api/completions"]


@pytest.mark.parametrize("play", ["serve"], indirect=True)
def test_a_key_reaches_the_endpoint_and_neither_a_file_nor_a_command_line(
    play: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    commands: list[Sequence[str]] = []
    run = subprocess.run

    def seen(command: Sequence[str], **options: Any) -> Any:
        commands.append(command)
        return run(command, **options)

    monkeypatch.setattr(load_generator.subprocess, "run", seen)
    load = drive(play, tmp_path)
    assert len(load.times.e2e_ms) == 12
    answer = requests.get(f"{play.server.base_url}/keys", timeout=5).json()
    assert (answer["keys"], answer["requests"]) == (["Bearer sk-secret"], 14)
    assert not [command for command in commands if "sk-secret" in " ".join(command)]
    files = [file for file in tmp_path.rglob("*") if file.is_file() and file.name != "aiperf"]
    assert not [file for file in files if b"sk-secret" in file.read_bytes()]


def sweep(folder: Path, loads: int = 1) -> plays.Quiet:
    """Do what is left of a run that was given no numbers of users."""
    points = tuple(LoadPoint(1 << power) for power in range(5))
    request = plays.request(folder, evaluators=("serving",), loads=loads)
    run = plays.run_of(replace(request, serving=ServingRequest(points, output_len=4, minimum=5, is_sweep=True)))
    quiet = plays.Quiet()
    run.execute(quiet)
    return quiet


def served(stage: Stage) -> list[tuple[str, int]]:
    orders = [(entry.arm, entry.arguments["order"]) for entry in stage.asked if entry.task == "serving"]
    return [(arm, order["point"]["concurrency"]) for arm, order in orders]


# a request takes 100 ms and 10 tokens of this many ms: with twice the users, twice that time adds no tokens per second
SATURATED = {("bf16", 4): 40.0, ("bf16", 8): 90.0, ("fp32", 4): 10.0, ("fp32", 8): 20.0, ("fp32", 16): 70.0}


def seconds(stage: Stage, tpot_ms: dict[tuple[str, int], float]) -> None:
    stage.seconds = lambda arm, users: tpot_ms.get((arm, users), 10.0) / 10  # type: ignore[method-assign]


def test_a_sweep_ends_for_all_arms_where_the_last_one_is_saturated(stage: Stage, tmp_path: Path) -> None:
    seconds(stage, SATURATED)
    assert sweep(tmp_path / "run", loads=2).failed == {}
    # 2 x 11 tokens in 200 ms, 4 x 11 in 500 ms: 20 % fewer a second. 8 x 11 in 300 ms, 16 x 11 in 800 ms: 25 % fewer
    assert served(stage) == [
        *[("bf16", users) for users in (1, 2, 4)],
        *[("fp32", users) for users in (1, 2, 4, 8, 16)],
        *[("bf16", users) for users in (8, 16)],
        *[("fp32", users) for users in (1, 2, 4, 8, 16)],
        *[("bf16", users) for users in (1, 2, 4, 8, 16)],
    ]


def test_where_and_why_a_sweep_ended_is_recorded_and_kept(stage: Stage, tmp_path: Path) -> None:
    seconds(stage, {("bf16", 4): 40.0, ("fp32", 4): 40.0})
    assert sweep(tmp_path / "run").may_end_early
    run = msgspec.json.decode((tmp_path / "run" / "run.json").read_bytes())
    assert (run["status"], run["sweep"]["most_users"]) == ("finished", 4)
    assert run["sweep"]["reason"] == "; ".join(
        f"{arm}: twice the users add less than 5 % to the tokens per second" for arm in ("bf16", "fp32")
    )
    record = msgspec.json.decode((tmp_path / "run" / "serving_bf16_cpu.json").read_bytes())
    assert [point["point"]["concurrency"] for point in record["points"]] == [1, 2, 4]
    stage.asked.clear()
    assert not sweep(tmp_path / "run").may_end_early, "where it ends is known"
    assert stage.asked == []


def test_a_sweep_that_was_cut_goes_on_where_it_was(stage: Stage, tmp_path: Path) -> None:
    seconds(stage, {("bf16", 4): 40.0, ("fp32", 8): 90.0})
    stage.fails["fp32", "serving", "c4"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path / "run")
    record = msgspec.json.decode((tmp_path / "run" / "serving_fp32_cpu.json").read_bytes())
    assert [bool(point["loads"][0]) for point in record["points"]] == [True, True, False]
    stage.fails.clear()
    stage.asked.clear()
    sweep(tmp_path / "run")
    assert served(stage) == [("fp32", 4), ("fp32", 8), ("bf16", 8)]


def test_a_point_that_fails_ends_an_arms_sweep_and_is_done_again_on_resume(stage: Stage, tmp_path: Path) -> None:
    seconds(stage, {("bf16", 2): 40.0, ("fp32", 8): 90.0})
    stage.fails["fp32", "serving", "c4"] = "out of memory"
    assert set(sweep(tmp_path / "run").failed) == {"fp32 serving_c4_0"}
    assert served(stage)[-3:] == [("fp32", 4), ("bf16", 4), ("fp32", 4)]
    run = msgspec.json.decode((tmp_path / "run" / "run.json").read_bytes())
    assert run["sweep"]["reason"].endswith("fp32: a load failed")
