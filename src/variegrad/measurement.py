"""Gradient diversity of a model on a data set, exactly: one streaming pass at fixed weights (Definitions 4, 5, 6)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any

from torch import nn

from variegrad.accumulation import Accumulation
from variegrad.batches import Batch, passes_over, shared_length, split, to_device
from variegrad.in_batch import check_cut
from variegrad.mechanisms import Mechanism
from variegrad.moments import Diversity
from variegrad.per_example.differential import differential_norms
from variegrad.per_example.evaluate import Losses, left_as_found, trained_parameters, unwrap
from variegrad.per_example.norms import batch_norms
from variegrad.per_example.result import Norms

# A data set (not a loader) is read in batches of this many examples unless the user passes another number.
BATCH_SIZE = 256


def measure(
    model: nn.Module,
    losses: Losses,
    data: Any,
    *,
    mechanism: Mechanism | Sequence[Mechanism] = (),
    batch_size: int = BATCH_SIZE,
    chunk_size: int | None = None,
    progress: bool = False,
) -> Diversity:
    """Measure Δ_D(w) = Σ‖∇f_i‖²/‖Σ∇f_i‖² and B_D(w) = n·Δ_D(w) over all of the data, exactly.

    The model is measured in its current mode. Its mode, buffers, `.grad` fields and the global random state do not
    change. Sums are accumulated in float64, from float32 sums of at most eight batches.

    The gradient of an example is that of its loss within its batch. If a loss depends on the rest of the batch
    (normalised advantages, in-batch weights), so does the result: `chunk_size` is then refused, and a data set that is
    split into batches of `batch_size` here is measured with a warning. One comparison at the start detects both.

    Args:
        model: the model at the weights w.
        losses: `losses(model, batch) → (b,)`, one loss per example, not averaged.
        data: a `DataLoader` or any iterable of batches, or a `Dataset` of examples. A batch is any nesting of tensors
            whose first dimension is the example; the last may be short.
        mechanism: mechanisms for which you will call `Diversity.bound_with`; if one needs Σ‖∇f_i‖₁‖∇f_i‖₂, it is
            computed as well.
        batch_size: examples per batch if `data` is a data set.
        chunk_size: at most this many examples are differentiated at once, to save memory; None for whole batches.
        progress: whether a bar is shown on standard error.

    Returns:
        The diversity, with that of each parameter.

    Raises:
        TypeError: if `losses` does not return a floating-point tensor, or the data cannot be iterated.
        ValueError: if there are no examples, a loss or gradient is not finite, `losses` does not return one loss per
            example, the examples are coupled (batch statistics), or `chunk_size` would change the losses.

    Example:
        >>> import torch, variegrad as vg
        >>> x, y = torch.eye(4), torch.zeros(4)
        >>> losses = lambda model, batch: (model(batch[0]).squeeze(1) - batch[1]) ** 2
        >>> model = torch.nn.Linear(4, 1, bias=False)
        >>> bound = vg.measure(model, losses, torch.utils.data.TensorDataset(x, y)).batch_size_bound
        >>> round(bound, 6)  # orthogonal gradients: a batch may be as large as the data set
        4.0
    """
    wanted = (mechanism,) if isinstance(mechanism, Mechanism) else tuple(mechanism)
    l1 = any(m.needs_l1_norms for m in wanted)
    model = unwrap(model)
    parameters = trained_parameters(model)

    def visit(batch: Batch) -> Norms:
        return batch_norms(model, losses, batch, l1=l1)

    with left_as_found(model):
        return _sum(
            visit, model, losses, parameters, data,
            batch_size=batch_size, chunk_size=chunk_size, l1=l1, progress=progress,
        )  # fmt: skip


def measure_differential(
    model: nn.Module,
    other: nn.Module,
    losses: Losses,
    data: Any,
    *,
    batch_size: int = BATCH_SIZE,
    chunk_size: int | None = None,
    progress: bool = False,
) -> Diversity:
    """Measure the differential diversity Δ_D(w, w′): that of ∇f_i(w) − ∇f_i(w′), over all of the data, exactly.

    Both models see the same random draws (dropout masks). Neither is changed.

    Args:
        model: the model at w.
        other: the same model at w′.
        losses: `losses(model, batch) → (b,)`.
        data: as for `measure`.
        batch_size: examples per batch if `data` is a data set.
        chunk_size: at most this many examples are differentiated at once.
        progress: whether a bar is shown on standard
            error.

    Returns:
        B_D(w, w′) and its parts; `undefined` where all gradients are equal at w and w′.

    Raises:
        TypeError: as `measure`.
        ValueError: as `measure`, or if the two models differ in their trained parameters.

    Source: Definition 6.
    """
    model, other = unwrap(model), unwrap(other)
    parameters, others = trained_parameters(model), trained_parameters(other)
    if {n: p.shape for n, p in parameters.items()} != {n: p.shape for n, p in others.items()}:
        odd = sorted(n for n in parameters.keys() | others.keys() if n not in parameters or n not in others
                     or parameters[n].shape != others[n].shape)  # fmt: skip
        raise ValueError(
            f"measure_differential compares one model at two weights; {odd[:5]} differ in name, shape or whether they "
            "are trained."
        )

    def visit(batch: Batch) -> Norms:
        return differential_norms(model, other, losses, batch)

    with left_as_found(model), left_as_found(other):
        return _sum(
            visit, model, losses, parameters, data,
            batch_size=batch_size, chunk_size=chunk_size, l1=False, progress=progress,
        )  # fmt: skip


def _sum(
    visit: Callable[[Batch], Norms],
    model: nn.Module,
    losses: Losses,
    parameters: dict[str, nn.Parameter],
    data: Any,
    *,
    batch_size: int,
    chunk_size: int | None,
    l1: bool,
    progress: bool,
) -> Diversity:
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 example; got {chunk_size}.")
    device = next(iter(parameters.values())).device
    sums = Accumulation(parameters, l1=l1)
    batches = passes_over(data, batch_size)
    for whole in _shown(batches, progress):
        whole = to_device(whole, device)  # noqa: PLW2901
        if not sums.count:
            check_cut(model, losses, whole, chunk_size=chunk_size, batch_size=None if batches is data else batch_size)
        for batch in split(whole, chunk_size):
            if shared_length(batch) == 0:
                continue
            try:
                sums.add(visit(batch))
            except ValueError as error:
                if not sums.count:
                    raise
                raise type(error)(
                    f"in the batch that starts with example {sums.count}, counted from 0: {error}"
                ) from error
    if not sums.count:
        raise ValueError("the data has no examples. Is the data set or loader empty?")
    return sums.moments().diversity


def _shown(batches: Iterable[Batch], progress: bool) -> Iterator[Batch]:
    if not progress:
        yield from batches
        return
    try:
        total = len(batches) if isinstance(batches, Sized) else None
    except TypeError:  # a DataLoader over an iterable data set has a length in name only
        total = None
    from rich.console import Console  # noqa: PLC0415 - only if a bar is shown
    from rich.progress import track  # noqa: PLC0415

    yield from track(batches, description="measuring", total=total, console=Console(stderr=True), transient=True)
