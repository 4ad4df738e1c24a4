"""The settings of a run of equation (2): everything but the model, the losses and the data; and their changes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from variegrad.exact import text
from variegrad.mechanisms import Mechanism
from variegrad.training.not_finite import Stop, WhenNotFinite
from variegrad.training.projection import Projection
from variegrad.training.sampling import Sampling, WithReplacement

EXAMPLES = {"sampling": "Epochs()", "projection": "Ball(1.0)", "when_not_finite": "Stop()"}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of w ← Π_W(w − γ·Σ_{ℓ=1..B} m(∇f_{s_ℓ}(w))); with the position in samples seen they say what comes next.

    Attributes:
        batch_size: B, examples an update, over all workers together.
        step_size: γ of the *summed* gradient: a learning rate η of the mean is γ = η/B.
        passes: how long, in passes over the data: the last update is the one that completes passes·n samples; with
            inf you stop the loop.
        mechanism: m; None for plain gradients.
        granularity: "example": m is applied to the gradient of each example, as in the paper; "worker": to the sum of
            each worker.
        seed: of the order of the data, of the mechanism's draws and of the model's own.
        sampling: `WithReplacement()`, as in the paper, or `Epochs()`.
        projection: onto W, `Ball(R)` or `Box(low, high)`; None for all of ℝ^d.
        when_not_finite: `Stop()` or `Skip()`.

    Raises:
        ValueError: if a number is out of range.
        TypeError: if a setting is of the wrong kind.

    Source: equation (2).
    """

    batch_size: int
    step_size: float
    passes: float = 1.0
    mechanism: Mechanism | None = None
    granularity: Literal["example", "worker"] = "example"
    seed: int = 0
    sampling: Sampling = field(default_factory=WithReplacement)
    projection: Projection | None = None
    when_not_finite: WhenNotFinite = field(default_factory=Stop)

    def __post_init__(self) -> None:
        for name in ("batch_size", "seed"):
            if not isinstance(getattr(self, name), int) or isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a whole number; got {getattr(self, name)!r}.")
        for name in ("step_size", "passes"):
            if not isinstance(getattr(self, name), int | float) or isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a number; got {getattr(self, name)!r}.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1 example; got {self.batch_size}.")
        if not 0 < self.step_size < math.inf:
            raise ValueError(f"step_size must be positive and finite; got {self.step_size}.")
        if not self.passes > 0:
            raise ValueError(f"passes must be positive; got {self.passes}.")
        if self.mechanism is not None and not isinstance(self.mechanism, Mechanism):
            raise TypeError(f"mechanism must be a Mechanism such as DropConnect(0.4), or None; got {self.mechanism!r}.")
        if self.granularity not in ("example", "worker"):
            raise ValueError(f"granularity must be 'example' or 'worker'; got {self.granularity!r}.")
        kinds = (("sampling", Sampling), ("projection", Projection | None), ("when_not_finite", WhenNotFinite))
        for name, kind in kinds:
            value = getattr(self, name)
            if isinstance(value, type) or not isinstance(value, kind):
                raise TypeError(f"{name} must be an object such as {EXAMPLES[name]}; got {value!r}.")

    def at(self, position: int) -> TrainConfig:  # noqa: ARG002 - `Phases` has others
        """The settings of the update that begins at a position: these.

        Args:
            position: samples seen before it.

        Returns:
            This object.
        """
        return self

    def settings(self) -> dict[str, Any]:
        """The settings as JSON: what workers compare, and what a record of the run holds.

        Returns:
            Field → number or text; an endless run's `passes` is the text "inf".
        """
        return {
            "batch_size": self.batch_size,
            "step_size": float(self.step_size),
            "passes": float(self.passes) if math.isfinite(self.passes) else "inf",
            "mechanism": None if self.mechanism is None else text(self.mechanism),
            "granularity": self.granularity,
            "seed": self.seed,
            "sampling": text(self.sampling),
            "projection": None if self.projection is None else text(self.projection),
            "when_not_finite": text(self.when_not_finite),
        }

    def __str__(self) -> str:
        rule = f"w ← w − {self.step_size:g}·Σ"
        rule += " ∇f_i" if self.mechanism is None else f" m(∇f_i), m = {self.mechanism} per {self.granularity}"
        if self.projection is not None:
            rule += f", projected onto {self.projection}"
        return (
            f"{rule}; B = {self.batch_size:,} drawn {self.sampling}, {self.passes:g} passes, seed {self.seed} "
            f"(a learning rate of {self.step_size * self.batch_size:.3g} for the mean)"
        )


@dataclass(frozen=True)
class Phases:
    """Settings that change along a run, each from its position on: `Phases({0: small, 64_000: large})`.

    An update has the settings of the last phase at or before the position where it begins; the samples and their order
    do not change, and no draw is repeated. A run whose changes are not known beforehand needs no phases: leave the loop
    and call `train` again with the other settings and `start=update.position`.

    Attributes:
        configs: position, in samples seen → the settings from there on; the first position is 0.

    Raises:
        ValueError: if no phase begins at 0, a position is negative, or seed, sampling or passes differ.
        TypeError: if a position is no whole number or a phase no `TrainConfig`.
    """

    configs: Mapping[int, TrainConfig]

    def __post_init__(self) -> None:
        for position, config in self.configs.items():
            if isinstance(position, bool) or not isinstance(position, int):
                raise TypeError(f"Phases: a position must be a whole number of samples seen; got {position!r}.")
            if not isinstance(config, TrainConfig):
                raise TypeError(f"Phases: a phase must be a TrainConfig; got {config!r} at {position}.")
        if not self.configs or min(self.configs) != 0:
            first = min(self.configs, default=None)
            raise ValueError(f"Phases: the first phase must begin at position 0; got {first}.")
        object.__setattr__(self, "configs", dict(sorted(self.configs.items())))
        for name in ("seed", "sampling", "passes"):
            if len(found := dict.fromkeys(getattr(config, name) for config in self.configs.values())) > 1:
                raise ValueError(
                    f"Phases: {name} belongs to the whole run and may not change; got {', '.join(map(repr, found))}."
                )

    @property
    def passes(self) -> float:
        """Of the whole run."""
        return self.configs[0].passes

    @property
    def seed(self) -> int:
        """Of the whole run."""
        return self.configs[0].seed

    @property
    def sampling(self) -> Sampling:
        """Of the whole run."""
        return self.configs[0].sampling

    def at(self, position: int) -> TrainConfig:
        """The settings of the update that begins at a position.

        Args:
            position: samples seen before it.

        Returns:
            Those of the last phase at or before it.
        """
        return self.configs[max(start for start in self.configs if start <= position)]

    def settings(self) -> dict[str, Any]:
        """The settings as JSON: those of the first phase, and under "phases" what the later ones change.

        Returns:
            Field → number or text, and [[position, {field → value}], …].
        """
        first = self.configs[0].settings()
        later = [(position, config.settings()) for position, config in self.configs.items() if position]
        changes = [[at, {name: value for name, value in new.items() if value != first[name]}] for at, new in later]
        return {**first, "phases": changes}

    def __str__(self) -> str:
        return "; ".join(f"from sample {position:,}: {config}" for position, config in self.configs.items())
