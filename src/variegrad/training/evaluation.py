"""A number to follow along a run: the mean of a per-example function, such as accuracy, shared among the workers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from variegrad.batches import collated, passes_over, to_device
from variegrad.distributed.world import World
from variegrad.measurement import BATCH_SIZE
from variegrad.per_example.evaluate import Losses, left_as_found
from variegrad.problems.subset import size
from variegrad.training.cadence import Cadence
from variegrad.training.reading import Collate, outlive_requests_to_end


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `train` evaluates, on which data, how often, and at which accuracy the run may end.

    Attributes:
        accuracy: `accuracy(model, batch) → (b,)`, 1 if an example is answered right.
        data: a held-out set, or the training set itself.
        every: how often; the last update is always evaluated.
        target: end the run as soon as the accuracy reaches it; all workers see the same number.

    Raises:
        ValueError: if the data is empty or the target is NaN.
    """

    accuracy: Losses
    data: Dataset[Any]
    every: Cadence = field(default_factory=lambda: Cadence(passes=1.0))
    target: float | None = None

    def __post_init__(self) -> None:
        if size(self.data) == 0:
            raise ValueError("Evaluation: data has no examples.")
        if self.target is not None and math.isnan(self.target):
            raise ValueError("Evaluation: target must be a number; got nan.")


def mean_of(
    function: Losses,
    model: nn.Module,
    data: Any,
    world: World | None = None,
    *,
    readers: int = 0,
    collate_fn: Collate | None = None,
) -> float:
    """The mean of one per-example function over a data set, as `means_of` takes those of several.

    Args:
        function: `function(model, batch) → (b,)`.
        model: the model.
        data: as for `means_of`.
        world: the workers; None for this process alone.
        readers: as for `means_of`.
        collate_fn: as for `means_of`.

    Returns:
        The mean.
    """
    return means_of([function], model, data, world, readers=readers, collate_fn=collate_fn)[0]


def means_of(
    functions: Sequence[Losses],
    model: nn.Module,
    data: Any,
    world: World | None = None,
    *,
    readers: int = 0,
    collate_fn: Collate | None = None,
) -> list[float]:
    """Means of per-example functions over a data set: one pass, evaluation mode, no graph; all is left as found.

    Args:
        functions: `function(model, batch) → (b,)`.
        model: the model.
        data: a data set, of which each worker reads its share; for one worker also a loader.
        world: the workers; None for this process alone.
        readers: processes that read the data set; 0 to read here.
        collate_fn: makes a batch of a list of examples; torch's by default.

    Returns:
        The means, the same on every worker; NaN for an empty set.

    Raises:
        RuntimeError: if a function fails on another worker.
    """
    device = next(model.parameters()).device
    totals, count, failure = [0.0] * len(functions), 0, None
    if world is not None and world.size > 1:
        data = _part(data, world.share(size(data)))
    if (readers or collate_fn is not None) and isinstance(data, Dataset) and size(data):
        data = DataLoader(data, batch_size=BATCH_SIZE, num_workers=readers, collate_fn=collate_fn or collated,
                          worker_init_fn=outlive_requests_to_end)  # fmt: skip
    try:
        with left_as_found(model), torch.no_grad():
            model.eval()
            for batch in passes_over(data, BATCH_SIZE):
                moved = to_device(batch, device)
                for k, function in enumerate(functions):
                    values = function(model, moved)
                    totals[k] += float(values.double().sum())
                count += len(values)
    except Exception as error:  # the user's code: the others must hear of it
        if world is None or world.size == 1:
            raise
        failure = error
    if world is not None:
        *totals, counted, failures = world.add_up([*totals, count, failure is not None])
        if failure is not None:
            raise failure
        if failures:
            raise RuntimeError("the evaluation failed on another worker; its own message says why.")
        count = round(counted)
    return [total / count if count else math.nan for total in totals]


def _part(data: Dataset[Any], part: range) -> Dataset[Any]:
    if type(data) is TensorDataset:  # not its subclasses, which may transform what they return
        return TensorDataset(*(column[part.start : part.stop] for column in data.tensors))
    return Subset(data, part)
