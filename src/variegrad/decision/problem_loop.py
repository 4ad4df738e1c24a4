"""A problem's training loop in windows, for the branch check: the data of a window depend on its seed alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.utils.data import Dataset, TensorDataset, default_collate

from variegrad.decision.branching import Trial
from variegrad.decision.rules import LearningRateRule
from variegrad.keys import torch_draws
from variegrad.problems import Problem
from variegrad.problems.subset import size, some, take
from variegrad.training.evaluation import mean_of

EVALUATED = 4096  # training examples that the loss is evaluated on at most
WARM_UP_SEED = -1


class ProblemLoop:
    """The windows of a problem with an optimizer of the user's choice; `loop(trial)` is the `run` of `vg.branch`.

    Args:
        problem: its model, at the checkpoint's weights, is trained in place.
        optimizer: makes the optimizer at the settings in use: `optimizer(parameters)`.
        batch_size: B₀, in examples.
        warm_up: examples trained at B₀ before the checkpoint is taken, so that momentum and second moments are those
            of a run under way.
        seed: of the data.

    Raises:
        ValueError: if training diverges during the warm-up.
    """

    def __init__(
        self,
        problem: Problem,
        optimizer: Callable[[list[nn.Parameter]], optim.Optimizer],
        *,
        batch_size: int,
        warm_up: int = 0,
        seed: int = 0,
    ) -> None:
        self.problem, self.model, self.seed = problem, problem.model, seed
        self.optimizer = optimizer([p for p in self.model.parameters() if p.requires_grad])
        self.evaluated = some(problem.train, EVALUATED, seed=seed)
        if warm_up >= batch_size:
            self._train(
                Trial(
                    batch_size=batch_size,
                    k=1,
                    examples=warm_up,
                    seed=WARM_UP_SEED,
                    rule=LearningRateRule.FIXED,
                    half_lives=False,
                )
            )
        self.state = copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))
        self.start_loss = self._loss()
        if not self.start_loss < float("inf"):
            raise ValueError(f"{problem.name}: loss {self.start_loss} at the checkpoint. Lower the learning rate.")

    def __call__(self, trial: Trial) -> float:
        """Train one window from the checkpoint; the mean training loss at its end."""
        weights, settings = copy.deepcopy(self.state)
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(settings)
        trial.rescale(self.optimizer)
        self._train(trial)
        return self._loss()

    def _train(self, trial: Trial) -> None:
        generator = torch.Generator().manual_seed(hash((self.seed, trial.seed)) % 2**63)
        rows = torch.randint(size(self.problem.train), (trial.updates, trial.batch_size), generator=generator)
        for update, chosen in enumerate(rows):
            with torch_draws(self.seed, "branch", trial.seed, update):
                self.optimizer.zero_grad()
                self.problem.losses(self.model, _batch(self.problem.train, chosen)).mean().backward()
                self.optimizer.step()

    def _loss(self) -> float:
        return mean_of(self.problem.losses, self.model, self.evaluated)


def first_batch(dataset: Dataset[Any], most: int, *, seed: int) -> Any:
    """At most `most` examples of a data set, drawn by the seed, as one batch."""
    count = min(most, size(dataset))
    return _batch(dataset, torch.randperm(size(dataset), generator=torch.Generator().manual_seed(seed))[:count])


def _batch(dataset: Dataset[Any], rows: Tensor) -> Any:
    chosen = take(dataset, rows)
    if type(chosen) is TensorDataset:
        return chosen.tensors
    return default_collate([chosen[k] for k in range(len(rows))])
