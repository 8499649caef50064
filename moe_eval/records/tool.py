"""The labels of a measurement that another tool made, as its file states them."""

from __future__ import annotations

from typing import Literal

from moe_eval.frozen import frozen

ToolName = Literal["vllm bench latency", "vllm bench throughput", "vllm bench serve", "trtllm-bench", "aiperf"]
Load = Literal["batch", "offline", "serving"]
# the kinds of load in a sentence
LOADS: dict[Load, str] = {
    "batch": "one batch at a time",
    "offline": "all requests at once",
    "serving": "requests at a concurrency",
}
NOT_STATED = "not stated"  # the precision of an arm of which nobody says it


@frozen
class ToolLabels:
    """What a file of another tool says of its measurement. None means that it does not say.

    Attributes:
        version: of the tool.
        load: `batch`: all sequences of a shape start and end together, as in moe_eval's own loads. `offline`: the
            engine has all requests from the start and divides them as it likes. `serving`: a client keeps so many
            requests in flight as the shape's batch size says.
        statistic: what one sample is: an iteration, or the median over a run's requests.
        model: as the file names it. `requests`: of all files together.
        request_rate: per second, at which requests arrive beneath the concurrency. None for as fast as it allows.
        gpus: over how many the model is spread.
    """

    name: ToolName
    load: Load
    statistic: Literal["iteration", "median of requests"]
    version: str | None = None
    model: str | None = None
    requests: int | None = None
    request_rate: float | None = None
    gpus: int | None = None

    @property
    def engine_version(self) -> str | None:
        """trtllm-bench is a part of its engine."""
        return self.version if self.name == "trtllm-bench" else None
