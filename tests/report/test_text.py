"""Names as a reader sees them."""

from __future__ import annotations

from moe_eval.report import text

HEAD = "void cutlass::device_kernel<" + "cutlass::gemm::kernel::" * 10


def test_names_that_differ_look_different_when_they_are_cut() -> None:
    names = [f"{HEAD}bf16, 128>(int)", f"{HEAD}fp8, 128>(int)", f"{HEAD}fp8, 256>(int)", "short", "z" * 200]
    shown = text.apart(names, 100)
    assert len(set(shown)) == len(names)
    assert all(len(name) <= 100 for name in shown)
    assert [part in name for part, name in zip(("bf16", "fp8, 128", "fp8, 256"), shown, strict=False)] == [True] * 3
    assert shown[3:] == ["short", "z" * 97 + "..."]


def test_the_same_name_is_cut_the_same_way() -> None:
    assert text.apart([HEAD, HEAD], 60) == [HEAD[:57] + "..."] * 2
