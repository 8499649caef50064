"""Parameters hold what a colleague needs to know of a run, and nothing that says nothing."""

from __future__ import annotations

from moe_eval.tracking import parameters


def test_what_is_absent_off_internal_or_hidden_is_no_parameter() -> None:
    labels = {
        "model_args": {"pretrained": "Qwen3", "revision": None, "trust_remote_code": False, "api_key": "[redacted]"},
        "engine": {"emulated": False, "gpus": 0, "graphs": [], "unobserved": [], "max_length": 4096},
        "machine": {"gpus": [{"name": "H100", "uuid": "gpu0"}], "home": "[home]", "folders": ["[folder]/[user]"]},
        "options": {"output_dir": "x", "quiet": True, "batch_size": [1, 8], "dataset": "wikitext", "tasks": ()},
        "nothing": {},
        "odd?": "a[user]b",
    }
    assert dict(parameters.of_labels(labels)) == {
        "model_args.pretrained": "Qwen3",
        "engine.emulated": "False",
        "engine.gpus": "0",
        "engine.max_length": "4096",
        "machine.gpus.0.name": "H100",
        "options.batch_size": "1,8",
        "options.dataset": "wikitext",
        "odd_": "a[user]b",
    }
