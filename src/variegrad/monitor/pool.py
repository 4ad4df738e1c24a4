"""From the sums of a step to a reading: moments, the window, what the reading says of itself, and where it goes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from variegrad.monitor.backward_pass import BackwardPass
from variegrad.monitor.dependence import Dependence
from variegrad.monitor.exchange.sums import NUMBERS, StepSums
from variegrad.monitor.history import History
from variegrad.monitor.loop import Loop
from variegrad.monitor.reading import Reading
from variegrad.monitor.window import Window, usual_batch_size


class Pool:
    """The steps that are pooled, and the readings that come of them.

    Args:
        history: of the readings.
        window: how many steps; None for the default.
        population: n, in units.
        confidence: of intervals.
        unit: what to call the unit.
        on_reading: called with each reading.
    """

    def __init__(
        self, history: History, window: int | None, *, population: int | None, confidence: float, unit: str | None,
        on_reading: Callable[[Reading], object] | None,
    ) -> None:  # fmt: skip
        self.history, self.window = history, Window(window)
        self.dependence = Dependence()
        self.skipped = 0
        self.unit = unit
        self._population, self._confidence, self._on_reading = population, confidence, on_reading
        self._taken: dict[str, Any] = {}

    def add(
        self, numbers: Sequence[float], totals: Sequence[float], last: BackwardPass, loop: Loop, sketch: list[float]
    ) -> StepSums | None:
        """One step, of its sums and V, each followed by those of the parts; None if it says nothing."""
        sums, parts = StepSums(*numbers[:NUMBERS]), list(last.plan.parts)
        workers, groups = loop.workers, last.watched.groups
        if sums.unwatched > 0:
            missing = workers - round(sums.watchers)
            self.leave_out(loop.number, f"{missing} of {workers} workers did not call watch at this step")
            return None
        moments = sums.moments(totals[0]) if sums.finite else ""
        if isinstance(moments, str) or not all(map(math.isfinite, moments)):
            self.skipped += 1
            said = moments if isinstance(moments, str) else ""
            self.leave_out(loop.number, said, quiet="gradients were not finite, or a worker had nothing to send")
            return None
        if sums.cells_of_unknown_scale and self.window.outweighs(sums.pairs):
            self.leave_out(
                loop.number, "", quiet="short batches with a loss that may be a mean: their weight is not known"
            )
            return None
        self._compare(sums, moments.mean_product, sketch, workers)
        of_parts: list[float] = []
        for k, total in enumerate(totals[1:]):
            inside = sums._replace(sq_norms_of_sums=numbers[NUMBERS + 2 * k], sum_sq_norms=numbers[NUMBERS + 2 * k + 1])
            found = inside.moments(total)
            of_parts += (math.nan, math.nan) if isinstance(found, str) else found
        self.window.add(loop.number, round(sums.examples), moments, sums.pairs, of_parts)
        self._taken = {
            "step": loop.number,
            "examples": round(sums.used),
            "batch_size": round(sums.examples),
            "source": _source(sums, workers, 1 if loop.sharded else loop.accumulate, last),
            "unit": self.unit or ("examples" if groups is None else "groups"),
            "group_size": last.watched.examples / last.watched.count if last.watched.count else 1.0,
            "missing": workers - round(sums.workers),
            "geometry": last.plan.norm.name,
        }
        bounds = {}
        for k, part in enumerate(parts):
            one = self.window.estimate(population=self._population, confidence=self._confidence, part=k)
            bounds[part] = (one.batch_size_bound, one.low, one.high, one.lower_confidence_bound)
        average: tuple[float, ...] = ()
        if self.history.path is not None:
            over = self._reading({}, whole=True)
            average = (float(over.first_step), over.batch_size_bound, over.low, over.high)
        self.tell(self._reading(bounds, average))
        return sums

    @property
    def common(self) -> dict[str, Any]:
        """What every reading says."""
        return {"confidence": self._confidence, "population": self._population, "skipped": self.skipped}

    def average(self) -> Reading | None:
        """B_D on average over all steps that are kept; None before the first."""
        return self._reading({}, whole=True) if len(self.window) and self._taken else None

    def tell(self, reading: Reading) -> None:
        """Into the history, and to `on_reading`."""
        self.history.append(reading)
        if self._on_reading is not None:
            try:
                self._on_reading(reading)
            except Exception as error:  # noqa: BLE001 - within the user's backward pass
                self.leave_out(reading.step, f"on_reading failed: {type(error).__name__}: {error}")

    def leave_out(self, step: int, reason: str, quiet: str = "") -> None:
        """No reading at this step: a reason in the history, and one warning per kind."""
        reason = reason.rstrip(".")
        new = self.history.leave_out(step, reason or quiet)
        if new and reason:
            warnings.warn(f"Monitor: no reading at step {step}: {reason}.", RuntimeWarning, stacklevel=2)

    def _reading(
        self,
        parts: dict[str, tuple[float, float, float, float]],
        average: tuple[float, ...] = (),
        *,
        whole: bool = False,
    ) -> Reading:
        steps = self.window.kept if whole else self.window.latest
        return Reading.from_estimate(
            self.window.estimate(
                population=self._population, confidence=self._confidence, steps=steps if whole else None
            ),
            first_step=steps[0].step,
            usual_batch_size=usual_batch_size(steps),
            pooled_steps=len(steps),
            average=average,
            parts=parts,
            **self.common,
            **self._taken,
        )

    def _compare(self, sums: StepSums, mean_product: float, sketch: list[float], workers: int) -> None:
        if sketch and sums.weight:
            said = self.dependence.add(mean_product, workers / sums.weight, sketch)  # of the mean gradient
            if said:
                warnings.warn(f"Monitor: {said}.", RuntimeWarning, stacklevel=2)


def _source(sums: StepSums, workers: int, micro_batches: int, last: BackwardPass) -> str:
    if last.plan.probe is not None:
        return "sign probe"
    present = round(sums.workers)
    of_workers = f"{workers} workers" if present == workers else f"{present} of {workers} workers"
    parts = [of_workers] * (workers > 1) + [f"{micro_batches} micro-batches"] * (micro_batches > 1)
    if sums.cells_without_norms:
        return " × ".join(parts)
    unit = "examples" if last.watched.groups is None else "groups"
    return f"{round(sums.used)} of {round(sums.examples)} {unit}" + "".join(f", {part}" for part in parts)
