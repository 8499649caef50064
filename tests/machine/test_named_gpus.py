"""GPUs to plan for by name."""

from __future__ import annotations

import pytest

from moe_eval.errors import UsageError
from moe_eval.machine import named_gpus


@pytest.mark.parametrize(
    ("text", "count", "title", "sm", "gigabytes"),
    [
        ("H100", 1, "NVIDIA H100 80GB HBM3", 90, 85.5),
        ("8xh200", 8, "NVIDIA H200", 90, 150.8),
        ("4xGB200", 4, "NVIDIA GB200", 100, 198.7),
        ("RTX 6000 PRO", 1, "NVIDIA RTX PRO 6000 Blackwell Server Edition", 120, 102.6),
        ("2xrtx-pro-6000", 2, "NVIDIA RTX PRO 6000 Blackwell Server Edition", 120, 102.6),
        ("L40S", 1, "NVIDIA L40S", 89, 48.3),
        ("NVIDIA B200", 1, "NVIDIA B200", 100, 192.3),
    ],
)
def test_a_name_is_so_many_gpus(text: str, count: int, title: str, sm: int, gigabytes: float) -> None:
    gpus = named_gpus.named(text)
    assert len(gpus) == count
    assert {(gpu.name, gpu.sm) for gpu in gpus} == {(title, sm)}
    assert gpus[0].memory_bytes / 1e9 == pytest.approx(gigabytes, abs=0.05)


@pytest.mark.parametrize("text", ["", "H10", "0xH100", "x", "8x", "xH100", "8xH100xH100", "H100,H200"])
def test_a_name_that_is_none_is_refused_with_those_that_are(text: str) -> None:
    fix = r"(Give one of A100, .*GB200.* or 8xH100 for eight\.|Did you mean H[12]00\?)$"
    with pytest.raises(UsageError, match=rf"There is no GPU .* to plan for\. {fix}"):
        named_gpus.named(text)


def test_every_row_has_a_source_and_marketed_sizes_say_so() -> None:
    rows = named_gpus.rows()
    assert len({frozenset(row.name.split("_")) for row in rows}) == len(rows)
    assert all(row.source for row in rows)
    assert {row.is_nominal for row in rows if row.source.startswith("data sheet")} == {True}
    assert not any(row.is_nominal for row in rows if not row.source.startswith("data sheet"))
