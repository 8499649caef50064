"""A whole run: plan, steps, records, comparison and report, opened before the work and closed however it ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

from moe_eval.checkpoint import contents, geometry
from moe_eval.data import prompts
from moe_eval.data.workload import Workload
from moe_eval.engines import registry
from moe_eval.errors import UsageError
from moe_eval.machine.hardware import Gpu
from moe_eval.machine.rates import Rates
from moe_eval.records import by_arm, disk
from moe_eval.report import write
from moe_eval.runner import fit, opened
from moe_eval.runner.arm_process import ArmFailed, ArmProcess, Load
from moe_eval.runner.execute import Executor, How
from moe_eval.runner.folder import RunFolder, say
from moe_eval.runner.plan import Asked, Plan
from moe_eval.runner.speed_record import Context
from moe_eval.runner.steps import Step
from moe_eval.runner.views import Views

_RATES = "rates.json"
_ENDED_BEFORE = "the run ended before the machine's rates were measured"


@dataclass(frozen=True)
class Request:
    """What a run is made of beside its plan.

    Attributes:
        tokenizer: the folder or hub name; None where each checkpoint has its own.
        shown: the command's options as a record has them, secrets removed.
        patience: seconds that an arm may take for one step.
        resume: go on with a run that is in the folder already.
    """

    asked: Asked
    tokenizer: str | None
    shown: Mapping[str, str]
    folder: Path
    where: str
    fusion_disabled: bool
    patience: float
    resume: bool


class Run:
    """One run in its folder."""

    def __init__(self, request: Request, plan: Plan, gpus: Sequence[Gpu]) -> None:
        self.request, self.plan, self.gpus = request, plan, tuple(gpus)
        self.folder = RunFolder(request.folder)
        self.kind = registry.named(request.asked.arms.engine)

    def execute(
        self,
        begun: Callable[[Step], None],
        done: Callable[[Step, str | None], None],
        ready: Callable[[Sequence[Step]], None],
    ) -> list[str]:
        """Do what is left to do and write the records, also as it goes: a kill leaves those of what was measured.

        A run that has finished stays as it is, but for records and reports that are made again.

        Args:
            begun, done: told every step; `ready` is told all that are left, once the run is on disk.

        Returns:
            A sentence for every step that failed.

        Raises:
            UsageError: the folder is in use, or holds another run.
            KeyboardInterrupt: with a sentence that says how to go on.
        """
        with self.folder.locked() as lock:
            content = self._open()
            for sentence in self.folder.mend(self.plan.steps):
                say(sentence)
            left = self.folder.missing(self.plan.steps)
            settled = not left and content["status"] == "finished"
            failed: list[str] = []

            def ended(step: Step, reason: str | None) -> None:
                if reason is not None:
                    failed.append(f"{step.arm} {step.name}: {reason}")
                shown(step)
                done(step, reason)

            with nullcontext() if settled else self._closed(content):
                work = self._workload()
                shown = self._shown(left, work)
                ready(left)
                try:
                    with Executor(self.folder, self._how(work), lock) as executor:
                        executor.run(left, begun, ended)
                except BaseException:  # what was measured is told as well as it can be, without a further measurement
                    self._views(work, self._known_rates() or _ENDED_BEFORE).write()
                    raise
                self._views(work, self._rates() if self.plan.timed else "not measured").write()
                self._conclude()
            return failed

    def _shown(self, left: Sequence[Step], work: Workload | None) -> Callable[[Step], None]:
        """What writes the records of a step that has ended, but not between turns at a shape: arms would wait."""
        views = self._views(work, self._known_rates() or _ENDED_BEFORE)
        turns = self.plan.schedule.mode == "interleaved"
        waiting = {
            one for one, after in pairwise(left) if turns and one.kind == after.kind and one.shape == after.shape
        }
        return lambda step: None if step in waiting and step.kind == "latency" else views.write(step.kind)

    def _conclude(self) -> None:
        """The comparison and the report, unless there is nothing but traces that could not be made."""
        if any(step.kind != "kernels" or self.folder.done(step) for step in self.plan.steps):
            write.conclude(by_arm.read(self.folder.path), self.folder.path, self.folder.run())

    def _open(self) -> dict[str, Any]:
        """What is written down of this run; of the one in the folder where this goes on with it."""
        now = opened.new(self.request.shown, self.plan, self.gpus)
        if not self.folder.exists():
            return now
        before = self.folder.run()
        if not self.request.resume:
            raise UsageError(
                f"{self.folder.path} holds a run already; give --resume to go on with it, or another --output_dir."
            )
        opened.check(before, now, self.folder.path)
        return before

    @contextmanager
    def _closed(self, content: dict[str, Any]) -> Iterator[None]:
        """Write that the run is at work, and then how it ended; what was measured is in the records in any case."""
        content = {**content, "status": "running", "error": None, "ended": None}
        self.folder.write_run(content)
        try:
            yield
        except BaseException as error:
            killed = isinstance(error, (KeyboardInterrupt, SystemExit))
            reason = ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))[:1000]
            with suppress(OSError):  # a full disk is what ended it, perhaps
                self.folder.write_run({**content, "status": "killed" if killed else "failed", "error": reason})
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(
                    f"Interrupted; {self.folder.path} holds what was measured, and the same command with --resume goes "
                    "on."
                ) from None
            raise
        complete = not self.folder.missing(self.plan.steps)
        ended = datetime.now(timezone.utc).isoformat(timespec="seconds")
        status = "finished" if complete else "failed"
        why = None if complete else "some steps failed; their records say why"
        self.folder.write_run({**content, "status": status, "error": why, "ended": ended})

    def _loads(self) -> dict[str, Load]:
        engine, named = self.request.asked.arms.engine, self.request.tokenizer
        return {
            each.precision: Load(engine, each.settings, named or each.settings.checkpoint) for each in self.plan.arms
        }

    def _workload(self) -> Workload | None:
        """The prompts, frozen beside the plan."""
        asked = self.request.asked
        wanted = [each for each in self.plan.arms if {"latency", "kernels"} & set(self.plan.evaluators[each.precision])]
        if not wanted:
            return None
        named = self.request.tokenizer or wanted[0].settings.checkpoint
        work = prompts.of_arms(asked.dataset, 0, self.plan.shapes, [each.settings for each in wanted], named)
        disk.write_json(self._frozen(work), work.to_json())
        return work

    def _frozen(self, work: Workload) -> Path:
        return self.folder.path / f"workload_{work.digest}.json"

    def _geometry(self) -> geometry.Geometry | None:
        settings = self.plan.arms[0].settings
        return geometry.read(contents.read_config(contents.settings_folder(settings.checkpoint, settings.revision)))

    def _how(self, work: Workload | None) -> How:
        asked, sizes = self.request.asked, self._geometry()
        return How(
            loads=self._loads(),
            timed=self.plan.timed,
            routing=self.kind.routing or {},
            experts=sizes.experts if sizes else None,
            workload=self._frozen(work) if work else None,
            batch_sizes=sorted({shape.batch_size for shape in self.plan.shapes}),
            shapes=self.plan.shapes,
            quality={"dataset": asked.dataset, "input_len": asked.input_len, "num_chunks": asked.num_chunks},
            iterations=1 if self.plan.schedule.mode == "interleaved" else self.plan.schedule.per_block,
            warm_ups=asked.warm_ups,
            together=self.plan.schedule.mode == "interleaved",
            patience=self.request.patience,
            uuids=[gpu.uuid for gpu in self.gpus[: fit.gpu_count(self.plan.arms[0].settings.options)] if gpu.uuid],
        )

    def _views(self, work: Workload | None, rates: Rates | str) -> Views:
        run = self.folder.run()
        unrouted = "not measured: the number of experts of this architecture is not known"
        if self.kind.routing is None:
            unrouted = f"not measured: {self.kind.title} does not tell which experts tokens go through"
        context = Context(
            run_id=run["run_id"],
            workload=work,
            schedule=self.plan.schedule,
            machine=run["machine"],
            versions=run["versions"],
            git=run["git"],
            asked=run["asked"],
            fusion_disabled=self.request.fusion_disabled,
            geometry=self._geometry(),
            rates=rates,
        )
        return Views(
            folder=self.folder,
            steps=self.plan.steps,
            precisions={each.precision: each.precision for each in self.plan.arms},
            loads=self._loads(),
            context=context,
            asked=run["asked"],
            where=self.request.where,
            unrouted=unrouted,
        )

    def _known_rates(self) -> Rates | None:
        """What the machine can do at most, where this run has measured it."""
        try:
            return Rates(**json.loads((self.folder.path / _RATES).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # a damaged file is measured again
            return None

    def _rates(self) -> Rates | str:
        """What the machine can do at most, measured once a run."""
        known = self._known_rates()
        if known is not None:
            return known
        with ArmProcess(None, patience=self.request.patience) as process:
            try:
                device = self.plan.arms[0].settings.device or ("cuda" if self.gpus else "cpu")
                found = process.ask("rates", device=device)
            except ArmFailed as error:
                return f"the machine's rates were not measured ({error})"
        disk.write_json(self.folder.path / _RATES, found)
        return Rates(**found)
