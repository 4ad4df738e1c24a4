"""A batch size that follows B_D along the run, and the forms in which large training codes read it.

B_D usually grows while a model learns, so a batch size that is right late in the run is inefficient early.
At each measured point the schedule allows min(1 + δ·B_D, the other limits), never more than any later
point allows, rounded down to a power of two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A batch size and when it begins.

    Attributes:
        examples: seen before.
        batch_size: B from there on, over all workers.
    """

    examples: int
    batch_size: int


@dataclass(frozen=True)
class BatchSchedule:
    """Batch sizes that grow along a run, each a multiple of the one before.

    Attributes:
        stages: the first begins at 0 examples.
    """

    stages: tuple[Stage, ...]

    @classmethod
    def along(cls, examples: Sequence[int], bounds: Sequence[float], *, delta: float, largest: float) -> BatchSchedule:
        """The schedule that measurements along a run allow.

        Args:
            examples: seen at each measurement, ascending; the first measurement stands for all before it.
            bounds: B_D there.
            delta: δ of 1 + δ·B_D.
            largest: the least of the other limits, in examples.

        Returns:
            The schedule.

        Raises:
            ValueError: if there is no measurement.
        """
        if not examples:
            raise ValueError("a schedule needs at least one measurement along the run.")
        allowed = [max(1.0, min(largest, 1 + delta * bound)) for bound in bounds]
        stages: list[Stage] = []
        for k, seen in enumerate(examples):
            size = 2 ** math.floor(math.log2(min(allowed[k:])))
            if not stages or size > stages[-1].batch_size:
                stages.append(Stage(examples=seen if stages else 0, batch_size=size))
        return cls(tuple(stages))

    def updates(self) -> list[int]:
        """The update at which each stage begins, counted from 0."""
        starts = [0]
        for before, after in pairwise(self.stages):
            starts.append(starts[-1] + math.ceil((after.examples - before.examples) / before.batch_size))
        return starts

    def megatron_core(self) -> str:
        """Arguments of Megatron-Core and Megatron-LM; their ramp is linear in samples, and stays below this schedule.

        Returns:
            `--global-batch-size`, with `--rampup-batch-size START INCREMENT SAMPLES` if the batch grows.
        """
        first, last = self.stages[0].batch_size, self.stages[-1].batch_size
        if first == last:
            return f"--global-batch-size {last}"
        increments = last // first - 1
        samples = max(
            math.ceil(after.examples * increments / (before.batch_size // first))
            for before, after in pairwise(self.stages)
        )
        return f"--rampup-batch-size {first} {first} {samples} --global-batch-size {last}"

    def olmo_core(self, sequence_length: int) -> str:
        """The callback of OLMo-core, which counts in tokens. It multiplies Adam's learning rate by √(B/B₀) by itself.

        Args:
            sequence_length: tokens per example, ≥ 1.

        Returns:
            Python code for the trainer's callbacks.

        Raises:
            ValueError: if the length is below 1.
        """
        if sequence_length < 1:
            raise ValueError(f"sequence_length must be at least 1 token; got {sequence_length}.")
        sizes = ", ".join(str(stage.batch_size * sequence_length) for stage in self.stages)
        starts = ", ".join(f"Duration.tokens({stage.examples * sequence_length})" for stage in self.stages)
        return f"BatchSizeSchedulerCallback(batch_sizes=[{sizes}], schedule=[{starts}])"

    def levanter(self) -> str:
        """The configuration of Levanter, which counts in updates.

        Returns:
            YAML.
        """
        rows = [
            f"    - start: {start}\n      value: {stage.batch_size}"
            for start, stage in zip(self.updates(), self.stages, strict=True)
        ]
        return "\n".join(["trainer:", "  train_batch_size:", *rows])

    def __str__(self) -> str:
        return ", ".join(f"{stage.batch_size:,} from {stage.examples:,} examples on" for stage in self.stages)
