"""Stands in for AIPerf's command: sends the requests of its input file and writes what AIPerf 0.13 writes of them.

`install` makes a command of it. It needs nothing but the standard library, so that it starts in a moment.
"""

import argparse
import http.client
import json
import os
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

VERSION = "0.13.0"


def install(folder: Path, code: int = 0) -> Path:
    """A folder with the command `aiperf`. `code`: that it ends with at once, where that is not 0."""
    folder.mkdir(parents=True, exist_ok=True)
    text = f"#!{sys.executable} -I\n" + (f"raise SystemExit({code})\n" if code else Path(__file__).read_text())
    command = folder / "aiperf"
    command.write_text(text)
    command.chmod(0o755)
    return folder


def _options():
    parser = argparse.ArgumentParser()
    for name in ("model", "endpoint-type", "tokenizer", "ui", "url", "output-artifact-dir"):
        parser.add_argument(f"--{name}", required=True)
    given = "--config" not in sys.argv
    for name in ("input-file", "custom-dataset-type", "dataset-sampling-strategy", "request-count"):
        parser.add_argument(f"--{name}", required=given)
    parser.add_argument("--num-dataset-entries", required=given)
    for name in ("concurrency", "request-rate", "arrival-pattern", "server-metrics", "warmup-request-count"):
        parser.add_argument(f"--{name}")
    for name in ("random-seed", "config", "custom-endpoint"):
        parser.add_argument(f"--{name}")
    for name in ("streaming", "use-server-token-count", "no-gpu-telemetry", "no-server-metrics"):
        parser.add_argument(f"--{name}", action="store_true")
    return _configured(parser.parse_args(sys.argv[2:]))


def _configured(options):
    """What a file says in place of options."""
    options.key = None
    if options.config:
        content = json.loads(Path(options.config).read_text())["benchmark"]
        (requests,), phases = content["datasets"], {phase["kind"]: phase for phase in content["phases"]}
        assert content["endpoint"]["apiKey"] == "${OPENAI_API_KEY}"
        options.key = os.environ["OPENAI_API_KEY"]
        options.input_file, options.num_dataset_entries = requests["path"], requests["entries"]
        options.request_count = phases["profiling"]["requests"]
        options.concurrency = phases["profiling"].get("concurrency")
        options.warmup_request_count = phases.get("warmup", {}).get("requests")
    return options


def _send(place, path, body, key):
    """The metrics of one request, or why it failed."""
    data, started, tokens, first, usage = json.dumps(body).encode(), time.perf_counter(), 0, None, None
    try:
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        connection.request("POST", path, data, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        if answer.status != 200:
            return {}, {"code": answer.status, "type": answer.reason, "message": answer.read().decode()}
        for line in answer:
            text = line.decode().strip().removeprefix("data:").strip()
            if not text or text == "[DONE]":
                continue
            event = json.loads(text)
            usage = event.get("usage") or usage
            if event.get("choices"):
                first = first or time.perf_counter()
                last, tokens = time.perf_counter(), tokens + 1
        connection.close()
        figures = {"time_to_first_token": 1e3 * (first - started), "request_latency": 1e3 * (last - started)}
        figures["input_sequence_length"] = usage["prompt_tokens"]
        figures["output_sequence_length"] = usage["completion_tokens"]
    except (OSError, http.client.HTTPException, TypeError) as error:
        return {}, {"code": None, "type": type(error).__name__, "message": str(error)}
    return {name: {"value": value, "unit": "ms"} for name, value in figures.items()}, None


def _sampled(url):
    """What the server's metrics say once, as if they had been sampled."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
    connection.request("GET", place.path)
    text = connection.getresponse().read().decode()
    metrics = {}
    for line in text.splitlines():
        if line and line[0] != "#":
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0].removesuffix("_total")
            stats = dict.fromkeys(("avg", "min", "max", "total"), float(value))
            metrics[name] = {"type": "gauge", "description": "", "series": [{"endpoint_url": url, "stats": stats}]}
    return {"schema_version": "1.1", "metrics": metrics}


def main():
    options, lock, lines = _options(), threading.Lock(), []
    folder, place = Path(options.output_artifact_dir), urlsplit(options.url)
    path = options.custom_endpoint or f"/v1/{'chat/' * (options.endpoint_type == 'chat')}completions"
    path = place.path + path
    bodies = [json.loads(row)["payload"] for row in Path(options.input_file).read_text().splitlines()]
    warm_up = int(options.warmup_request_count or 0)
    assert len(bodies) == int(options.num_dataset_entries)
    phases = (("warmup", bodies[:warm_up]), ("profiling", bodies[warm_up : warm_up + int(options.request_count)]))

    def work(phase, left):
        while True:
            with lock:
                if not left:
                    return
                body = left.pop(0)
                started = time.time_ns()
            metrics, error = _send(place, path, body, options.key)
            metadata = {"benchmark_phase": phase, "request_start_ns": started, "request_end_ns": time.time_ns()}
            line = {"metadata": {**metadata, "was_cancelled": False}, "metrics": metrics}
            with lock:
                lines.append(line if error is None else {**line, "error": error})

    for phase, part in phases:
        left = list(part)
        users = [threading.Thread(target=work, args=(phase, left)) for _ in range(int(options.concurrency or 4))]
        for user in users:
            user.start()
        for user in users:
            user.join()
    (folder / "profile_export.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if options.server_metrics:
        (folder / "server_metrics_export.json").write_text(json.dumps(_sampled(options.server_metrics)))


if __name__ == "__main__":
    if "--version" in sys.argv:
        print(VERSION)
    else:
        main()
