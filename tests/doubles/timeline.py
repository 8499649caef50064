"""Traces whose every figure is known: a list of (category, name, duration) that run after each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from numpy.typing import ArrayLike

from moe_eval.records.kernels import TraceSource
from moe_eval.traces import kernel_table
from moe_eval.traces.kernel_table import Trace

GAP_NS = 500
QKV, GATE = "nvjet_tst_64x8_64x16_4x1_v_bz_TNT", "nvjet_tst_64x8_64x16_2x1_v_bz_TNT"
O_PROJ = "nvjet_tst_64x8_64x16_4x1_v_bz_splitK_TNT"
SPLIT_K = "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>"
FLASH = "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<x>>>"
TOPK = "void vllm::moe::topkGating<8, 128, 4, 16, 32, int, __nv_bfloat16>"
MOE = "fused_moe_kernel"
NORM = "triton_red_fused_fused_add_rms_norm_1"
SILU = "void vllm::act_and_mul_kernel<c10::BFloat16>"
SUM = "void at::native::reduce_kernel<128, 4, at::native::ReduceOp<c10::BFloat16, at::native::sum_functor<float>>>"
QUANT = "void vllm::scaled_fp8_quant_kernel_strided_dynamic<c10::BFloat16, c10::Float8_e4m3fn>"
ARGMAX = "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::ArgMaxOps<float>>>"
UPLOAD, DOWNLOAD = "Memcpy HtoD (Pinned -> Device)", "Memcpy DtoH (Device -> Pinned)"

_EMPTY: dict[str, int | bool] = {
    "start_ns": 0,
    "duration_ns": 0,
    "kind": 0,
    "correlation": -1,
    "launch_ns": -1,
    "launch_thread": -1,
    "blocks": 0,
    "stream": 0,
    "replayed": False,
    "device": 0,
}


@dataclass
class Timeline:
    """Rows in the order they run, and the category that each is meant to have."""

    rows: list[dict[str, int | str | bool]] = field(default_factory=list)
    meant: list[str] = field(default_factory=list)
    steps: list[tuple[str, int, int]] = field(default_factory=list)
    ranges: list[tuple[str, int, int, int]] = field(default_factory=list)
    clock_ns: int = 1_000_000
    launches: int = 0

    def run(self, meant: str, name: str, ns: int, **columns: int | bool) -> None:
        self.launches += 1
        kind = kernel_table.COPY if name.startswith("Memcpy") else kernel_table.KERNEL
        row = {
            "start_ns": self.clock_ns,
            "duration_ns": ns,
            "correlation": self.launches,
            "launch_ns": self.clock_ns - 9000,
        }
        self.rows.append({"text": name, "kind": kind, "launch_thread": 7, **row, **columns})
        self.meant.append(meant)
        self.clock_ns += ns + GAP_NS

    def layer(self, number: int, tokens: int, *, fp8: bool, split_k: bool, scale: int, **columns: int | bool) -> None:
        """One layer of a mixture-of-experts model as vLLM runs it."""
        sized = {"blocks": tokens, **columns}
        begin = self.clock_ns
        self.run("norm", NORM, 1000 * scale, **sized)
        self.run("dense_gemm", QKV, 3000 * scale, **columns)
        self.run("attention", FLASH, 4000 * scale, **columns)
        self.run("dense_gemm", O_PROJ, 2000 * scale, **columns)
        self.run("dense_gemm", SPLIT_K, 700 * scale, **columns)
        self.run("norm", NORM, 1000 * scale, **sized)
        self.run("gate_gemm", GATE, 1100 * scale, **columns)
        if split_k:
            self.run("gate_gemm", SPLIT_K, 300 * scale, **columns)
        self.run("routing_permute", TOPK, 900 * scale, **columns)
        for _ in range(2):
            if fp8:
                self.run("quant_dequant", QUANT, 600 * scale, **sized)
            self.run("expert_gemm", MOE, (5000 if fp8 else 9000) * scale, **columns)
            self.run("activation", SILU, 500 * scale, **sized)
        self.rows.pop()
        self.meant.pop()
        self.clock_ns -= 500 * scale + GAP_NS
        self.run("routing_permute", SUM, 800 * scale, **columns)
        self.ranges.append((f"model.layers.{number}.mlp", begin - 9000, self.clock_ns - 9000, 7))

    def step(
        self,
        phase: str,
        tokens: int,
        layers: int = 3,
        *,
        fp8: bool = False,
        split_k: bool = True,
        graph: bool = False,
    ) -> None:
        """One forward step: inputs, layers, the head, sampling, and the token on its way back."""
        begin, scale = self.clock_ns, 8 if phase == "prefill" else 1
        self.run("memory", UPLOAD, 800)
        columns: dict[str, int | bool] = (
            {"replayed": True, "correlation": -len(self.steps) - 2 + 10**6} if graph else {}
        )
        for number in range(layers):
            self.layer(number, tokens, fp8=fp8, split_k=split_k, scale=scale, **columns)
        self.run("dense_gemm", QKV, 6000, **columns)
        self.run("sampling", ARGMAX, 2000)
        self.run("memory", DOWNLOAD, 900)
        self.steps.append((phase, begin, self.clock_ns - GAP_NS))
        self.clock_ns += 20_000

    def trace(self, *, ranges: Sequence[tuple[str, int, int, int]] = (), order: Iterable[int] | None = None) -> Trace:
        """The trace; `order` is that of the rows in the file."""
        rows = self.rows if order is None else [self.rows[at] for at in order]
        columns = {key: [row.get(key, empty) for row in rows] for key, empty in _EMPTY.items()}
        return trace_of([str(row["text"]) for row in rows], ranges, **columns)


def trace_of(
    texts: Sequence[str], ranges: Sequence[tuple[str, int, int, int]] = (), *, timed: bool = True, **columns: ArrayLike
) -> Trace:
    """A trace of rows with these names and columns, and of ranges by text, start, end and thread."""
    names, marks = sorted(set(texts)), sorted({text for text, *_ in ranges})
    return Trace(
        kernel_table.kernels(names, name=[names.index(text) for text in texts], **columns),
        kernel_table.ranges(
            marks,
            name=[marks.index(text) for text, *_ in ranges],
            start_ns=[start for _, start, _, _ in ranges],
            end_ns=[end for _, _, end, _ in ranges],
            thread=[thread for _, _, _, thread in ranges],
        ),
        TraceSource("made up"),
        timed=timed,
    )


def generation(decode: int = 8, **options: bool) -> Timeline:
    """One prefill and some decode steps."""
    timeline = Timeline()
    timeline.step("prefill", 512, **{**options, "graph": False})
    for _ in range(decode):
        timeline.step("decode", 1, **options)
    return timeline
