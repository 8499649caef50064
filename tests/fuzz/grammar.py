"""Command lines that the option dataclasses allow, and those that they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hypothesis import strategies as st

from moe_eval.cli.options.commands import COMMANDS
from moe_eval.cli.options.option import Option, options_of
from moe_eval.engines import registry, tables
from tests.fuzz.hostile import TEXTS

# nothing of these loads an engine, writes elsewhere than `out`, or waits for a network
_FIRST: Mapping[str, Sequence[str]] = dict.fromkeys(("run", "perf", "ppl"), ("--dry_run",))
_PLACES = (
    "../out",
    "../out/deep",
    "nothing",
    "moe",
    "moe/config.json",
    "run",
    "first",
    "chrome.json",
    "/dev/null",
    "/dev/full",
)
_VALID: Mapping[str, Sequence[str]] = {
    "dataset": ("moe_sample", "random", "wikitext_local"),
    "precisions": ("bf16", "bf16,fp8", "fp8_block"),
    "engine": ("trtllm", "vllm", "transformers"),
    "gpu": ("H100", "8xB200"),
    "gate": ("speed>=1.2", "ln_ppl<=0.01,speed[b8]>=1", "task:arc>=-0.01", "speed[fp8]>=1e3"),
    "arm": (
        "a:precision=bf16",
        "b:engine=vllm,checkpoint=moe,tensor_parallel_size=2",
        "a:env.NCCL_ALGO=Ring,engine=vllm",
    ),
    "nsys_args": ("--gpu-metrics-devices=0", "--trace=cuda,nvtx", "-y 5"),
    "config": ("run.yaml", "arms.yaml"),
    "output_dir": ("../out",),
    "output": ("../out/kernels.json",),
    "target": ("../out/x.zip", "../out/x.csv", "../out/x.parquet"),
    "source": ("run", "other", "first"),
    "checkpoint": ("moe",),
    "folders": ("first", "."),
    "model_args": ("dtype=float32", "revision=main,trust_remote_code=on"),
}
_NUMBERS = (
    "0",
    "-1",
    "1",
    "2",
    "8",
    "64",
    "0.5",
    "1.5",
    "1e3",
    "1e999",
    "nan",
    "-inf",
    "1_0",
    "\u0661",
    "+1",
    " 1",
    "0x10",
    "1e-320",
    "9" * 30,
    "9" * 5000,
    "1,2",
    "1,,2",
    "1,1",
    ",",
    "1,nan",
    "1" * 400,
)
words_of_text = st.sampled_from(
    [text.replace("\x00", "") for text in TEXTS] + ["--", "-", "-1", "--json", "\udc80"]
) | st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=5)
_SETTINGS = sorted(
    {key for engine in registry.ENGINES for key in registry.settings_of(engine)}
    | {f"env.{row.name}" for row in tables.variables()}
)
settings = st.lists(
    st.tuples(
        st.sampled_from([*_SETTINGS, "checkpoint", "precision", "engine", "device"]),
        st.sampled_from(_NUMBERS)
        | words_of_text
        | st.sampled_from(("on", "maybe", "[1,2]", '{"a": 1}', "auto", "vllm", "bf16")),
    ),
    max_size=3,
).map(lambda pairs: ",".join("=".join(pair) for pair in pairs))


def words_of(option: Option) -> st.SearchStrategy[str]:
    """Values of an option: most of them valid."""
    valid = [*_VALID.get(option.spelling or option.name, ()), *option.choices]
    if not valid:
        valid = ["1", "2", "8"] if option.kind in (int, float) else list(_PLACES)
    if option.name == "folders":  # logging a run takes seconds
        return st.sampled_from(valid) | words_of_text
    wrong = words_of_text | (st.sampled_from(_NUMBERS) if option.kind in (int, float) else st.sampled_from(_PLACES))
    if option.name in ("output_dir", "output", "target"):  # a command writes where it is told to
        wrong = wrong.map("../out/{}".format)
    if option.name in ("model_args", "arms"):
        wrong |= settings if option.name == "model_args" else settings.map("a:{}".format)
    return st.sampled_from(valid) | st.sampled_from(valid) | wrong


def _typed(option: Option) -> st.SearchStrategy[list[str]]:
    if option.kind is bool:
        return st.sampled_from([[option.label]] * 8 + [[f"{option.label}=yes"], [option.label.replace("_", "-")]])
    values = words_of(option)
    if isinstance(option.word_count, int):
        return st.lists(values, min_size=1, max_size=3).map(lambda words: [option.label, *words])
    if option.is_positional:
        return st.lists(values, min_size=0, max_size=3 if option.word_count else 1)
    return st.tuples(st.booleans(), values).map(
        lambda drawn: [f"{option.label}={drawn[1]}"] if drawn[0] else [option.label, drawn[1]]
    )


@st.composite
def lines(draw: st.DrawFn, command: str) -> list[str]:
    """The words of a command, which never starts an engine."""
    options = {
        option.name: option for option in options_of(COMMANDS[command].options).values() if option.name != "selftest"
    }
    first, words = list(_FIRST.get(command, ())), []
    if "dataset" in options and draw(st.booleans()):
        first += ["--dataset", "moe_sample", "--input_len", "64"]
    positional = [option for option in options.values() if option.is_positional]
    for option in positional:
        words += draw(_typed(option))
    for name in draw(st.lists(st.sampled_from(sorted(options)), max_size=4)):
        if not options[name].is_positional:
            words += draw(_typed(options[name]))
    if "output_dir" in options and not any(word.startswith("--output") for word in words):
        words += ["--output_dir", "../out"]
    if draw(st.integers(0, 9)) == 0:
        words.insert(draw(st.integers(0, len(words))), draw(words_of_text))
    return [command, *first, *(word.replace("\x00", "") for word in words)]
