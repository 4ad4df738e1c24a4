"""The document of `variegrad measure` as typed points: what the pictures and the page are drawn from.

JSON has no infinity and no NaN: +inf stands there as the string "inf", an undefined number as null. Here both become
floats again, so that `isinf` means "the gradients cancel" and `isnan` means "undefined or not measured".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

SCHEMA = "variegrad.measure/1"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The sums of one parameter, or of several taken together.

    Attributes:
        dimension: d_l, its trained coordinates.
        sum_sq_norms: A_l = Σ_i ‖g_i‖² over its coordinates.
        sq_norm_of_sum: S_l = ‖Σ_i g_i‖² over its coordinates.
        bound: B_l = n·A_l/S_l, in examples.
        share: (A_l/A)(1/B_l)/(1/B_D) = S_l/S, its part of 1/B_D.
    """

    dimension: int
    sum_sq_norms: float
    sq_norm_of_sum: float
    bound: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measurement at fixed weights; NaN for a number that is undefined or was not measured.

    Attributes:
        passes: passes over the data so far.
        updates: updates so far.
        loss: mean training loss.
        accuracy: training accuracy.
        test_loss: mean test loss.
        test_accuracy: test accuracy.
        count: n, the examples measured.
        diversity: Δ_D.
        bound: B_D, in examples.
        bound_without_replacement: B_wor, in examples.
        flags: names of the degenerate cases that hold here.
        mechanisms: B_DIM and B_eff of each mechanism, in examples.
        layers: each parameter by its name, in the order of the model.
    """

    passes: float
    updates: int
    loss: float
    accuracy: float
    test_loss: float
    test_accuracy: float
    count: int
    diversity: float
    bound: float
    bound_without_replacement: float
    flags: tuple[str, ...]
    mechanisms: Mapping[str, tuple[float, float]]
    layers: Mapping[str, Layer]

    def efficiency(self, batch_size: float) -> float:
        """1/(1 + (B−1)/B_D), the fraction of a batch's examples that are not wasted.

        Args:
            batch_size: B, in examples.

        Returns:
            A number in (0, 1]; NaN if B_D is undefined.
        """
        return 1 / (1 + (batch_size - 1) / self.bound)


def number(value: object) -> float:
    """A number of the document as a float: "inf" is +inf, null is NaN.

    Args:
        value: a value of the document.

    Returns:
        The float.

    Raises:
        ValueError: if it is neither a number, nor "inf", nor null.
    """
    if value is None:
        return math.nan
    if value == "inf":
        return math.inf
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ValueError(
        f'document: a number must be a JSON number, "inf" for +inf or null for undefined; got {value!r}. '
        "Was it written by another version of variegrad?"
    )


def points(document: Mapping[str, Any]) -> list[Point]:
    """The measured points of a document, in its order.

    Args:
        document: the document of `variegrad measure`.

    Returns:
        One typed point for each measurement.

    Raises:
        ValueError: if the document is of another schema or a number is malformed.
    """
    if document.get("schema") != SCHEMA:
        raise ValueError(
            f"document: its schema must be {SCHEMA!r}; got {document.get('schema')!r}. "
            "Pass what `variegrad measure --json` prints, from this version of variegrad."
        )
    return [_point(raw) for raw in document["points"]]


def layer_kinds(model: Any) -> dict[str, str]:
    """What each layer is, for names that say little, such as the numbers of a Sequential.

    Args:
        model: a module.

    Returns:
        Name of a layer with parameters of its own to its class and the sizes of its weight: "Linear 64→32".
    """
    kinds = {}
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own or not name:
            continue
        shape = tuple(getattr(own.get("weight"), "shape", ()))
        kind = type(module).__name__
        if len(shape) == 2 and kind.endswith("Linear"):
            kind += f" {shape[1]}→{shape[0]}"
        elif len(shape) > 1:
            kind += " " + "×".join(map(str, shape))
        kinds[name] = kind
    return kinds


def batch_size(document: Mapping[str, Any]) -> float:
    """The batch size the run was trained with, in examples; NaN if the document names none.

    Args:
        document: the document of `variegrad measure`.

    Returns:
        B, in examples.
    """
    return number(document["settings"].get("batch_size"))


def landmarks(measured: Sequence[Point]) -> dict[str, Point]:
    """The points worth naming: start, middle, smallest B_D and end, each point once and in the order of the run.

    Args:
        measured: the points of a run.

    Returns:
        Name to point; empty for no points. A point with two roles carries both names, as in "end, smallest".
    """
    if not measured:
        return {}
    last = len(measured) - 1
    defined = [k for k, point in enumerate(measured) if not math.isnan(point.bound)]
    roles = {"start": 0, "middle": last // 2, "end": last}
    if defined:
        roles["smallest"] = min(defined, key=lambda k: measured[k].bound)
    names: dict[int, list[str]] = {}
    for role, k in roles.items():
        # The middle is only a filler between the others: it yields its name to any of them.
        if role != "middle" or k not in {roles["start"], roles["end"], roles.get("smallest")}:
            names.setdefault(k, []).append(role)
    return {", ".join(names[k]): measured[k] for k in sorted(names)}


def modules(measured: Sequence[Point], shown: int) -> list[tuple[str, list[Layer]]]:
    """Parameters grouped by the module that owns them, the largest shares alone and the rest as one.

    Args:
        measured: the points of a run, all over the same parameters.
        shown: how many modules keep their own name.

    Returns:
        Name, less the path that all share, and one `Layer` for each point, in the order of the model; last the rest.
    """
    owner = {name: name.rpartition(".")[0] or name for point in measured for name in point.layers}
    members: dict[str, list[str]] = {}
    for name, module in owner.items():
        members.setdefault(module, []).append(name)
    series = {module: [_together(point, names) for point in measured] for module, names in members.items()}
    largest = sorted(series, key=lambda m: -max((x.share for x in series[m] if x.share == x.share), default=0.0))[
        :shown
    ]
    rest = [module for module in series if module not in largest]
    if len(rest) == 1:  # A single module needs no disguise.
        largest, rest = [*largest, *rest], []
    paths = {module: module.split(".") for module in series if module in largest}
    alike = takewhile(lambda parts: len(set(parts)) == 1, zip(*(path[:-1] for path in paths.values()), strict=False))
    depth = len(list(alike)) if len(paths) > 1 else 0
    # "…3.attention" tells more in a narrow legend than "model.transfor….attention" does.
    kept = [("…" * (depth > 0) + ".".join(path[depth:]), series[module]) for module, path in paths.items()]
    if rest:
        names = [name for module in rest for name in members[module]]
        kept.append((f"other ({len(rest)} modules)", [_together(point, names) for point in measured]))
    return kept


def _together(point: Point, names: Sequence[str]) -> Layer:
    parts = [point.layers[name] for name in names if name in point.layers]
    if len(parts) == 1:
        return parts[0]
    sum_sq_norms = math.fsum(part.sum_sq_norms for part in parts)
    sq_norm_of_sum = math.fsum(part.sq_norm_of_sum for part in parts)
    # A total that is zero for every part is a cancellation for all of them together, too.
    cancelled = all(math.isinf(part.bound) or part.sum_sq_norms == 0 for part in parts)
    if sum_sq_norms == 0 or not parts:
        bound = math.nan
    else:
        bound = math.inf if cancelled or sq_norm_of_sum == 0 else point.count * sum_sq_norms / sq_norm_of_sum
    return Layer(
        dimension=sum(part.dimension for part in parts),
        sum_sq_norms=sum_sq_norms,
        sq_norm_of_sum=sq_norm_of_sum,
        bound=bound,
        share=sum(part.share for part in parts) if parts else math.nan,
    )


def _point(raw: Mapping[str, Any]) -> Point:
    return Point(
        passes=number(raw["passes"]),
        updates=int(raw["updates"]),
        loss=number(raw["loss"]),
        accuracy=number(raw.get("accuracy")),
        test_loss=number(raw.get("test_loss")),
        test_accuracy=number(raw.get("test_accuracy")),
        count=int(raw["count"]),
        diversity=number(raw["diversity"]),
        bound=number(raw["batch_size_bound"]),
        bound_without_replacement=number(raw["batch_size_bound_without_replacement"]),
        flags=tuple(raw["flags"]),
        mechanisms={
            name: (number(both["bound"]), number(both["effective_bound"])) for name, both in raw["mechanisms"].items()
        },
        layers={name: _layer(part) for name, part in raw["per_parameter"].items()},
    )


def _layer(raw: Mapping[str, Any]) -> Layer:
    return Layer(
        dimension=int(raw["dimension"]),
        sum_sq_norms=number(raw["sum_sq_norms"]),
        sq_norm_of_sum=number(raw["sq_norm_of_sum"]),
        bound=number(raw["batch_size_bound"]),
        share=number(raw["share"]),
    )
