"""Stands in for the server command of an engine: `server_command.py PORT PLAY`, with the standard library alone.

Plays: `serve`, `never` (it does not get ready), `ends` (before it is ready), `dies` (in its fifth answer), `errors` (of
every third request), `stubborn` (it has a child and ignores SIGINT).
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PLAY = sys.argv[2] if __name__ == "__main__" else ""
METRICS = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="x"} 3
vllm:num_requests_waiting{model_name="x"} 1
vllm:kv_cache_usage_perc{model_name="x"} 0.25
vllm:num_preemptions_total{model_name="x"} 2
"""
_lock, _requests, _keys, _paths = threading.Lock(), [], set(), set()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Print nothing."""

    def do_GET(self):
        if self.path.endswith("/keys"):
            return self._answer(
                200, json.dumps({"keys": sorted(_keys), "paths": sorted(_paths), "requests": len(_requests)})
            )
        status = 503 if PLAY == "never" and self.path == "/health" else 200
        return self._answer(status, METRICS if self.path == "/metrics" else "{}")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with _lock:
            _requests.append(body)
            _paths.add(self.path)
            _keys.add(self.headers.get("Authorization", ""))
            number = len(_requests)
        if PLAY == "errors" and number % 3 == 0:
            return self._answer(500, "it broke")
        if not body.get("stream"):
            return self._answer(200, '{"choices": [{"index": 0, "text": "x"}]}')
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for token in range(body["max_tokens"]):
            if PLAY == "dies" and number == 5 and token == 1:
                os._exit(3)
            time.sleep(0.001)
            self._event({"choices": [{"index": 0, "text": "x "}]})
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
        self._event({"choices": [], "usage": usage})
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, content):
        data = b"data: " + json.dumps({"object": "text_completion", **content}).encode() + b"\n\n"
        self.wfile.write(b"%x\r\n" % len(data) + data + b"\r\n")
        self.wfile.flush()

    def _answer(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


if __name__ == "__main__":
    if PLAY == "ends":
        sys.exit(7)
    if PLAY == "stubborn":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
