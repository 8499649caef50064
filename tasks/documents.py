"""The functions in the task files beside this one, since a harness before 0.4.12 looks only in its tasks' folder."""

from lm_eval.tasks.wikitext.preprocess_wikitext import process_results, wikitext_detokenizer

from moe_eval.data.documents import moe_sample, wikitext_local
from moe_eval.harness.kernels import MoeKernels
from moe_eval.harness.latency import MoeLatency
from moe_eval.harness.raw_pages import RawPages

__all__ = [
    "MoeKernels",
    "MoeLatency",
    "RawPages",
    "moe_sample",
    "process_results",
    "wikitext_detokenizer",
    "wikitext_local",
]
