"""Coverage of the intervals of B_D on populations whose B_D is known, with the code that ships.

    python benchmarks/coverage.py --seeds 11 12 13 --table docs/understand/intervals.md
    python benchmarks/coverage.py --seeds 11 12 13 --table docs/understand/intervals.md --pooled

For every cell (population, m, true B_D, fresh data or a finite set) many samples are drawn; counted are those whose
two-sided interval holds the true B_D, and those whose lower confidence bound lies below it. The bars: 0.90 and 0.94.
Pooled cells are windows of a Monitor: K steps, of each the norm of the batch's sum and the norms of half its examples.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from variegrad.estimators.coherence import coherence_from_gram, coherence_limits, inverse_bound
from variegrad.estimators.pooled import pooled_estimate

COUNTS = (16, 64, 256)
BOUNDS = (4.0, 16.0, 64.0, 256.0, 1000.0)
FINITE_BOUNDS = (16.0, 256.0)
WORKERS, EXAMPLES_OF_A_WORKER = (4, 8, 32), 8
CHUNK = 100
TWO_SIDED_BAR, LOWER_BAR = 0.90, 0.94
FRESH, FINITE, WORKER = "fresh data", "without replacement from n = 4m", "workers of 8 examples each"
SOURCES = {FRESH: (COUNTS, BOUNDS), FINITE: (COUNTS, FINITE_BOUNDS), WORKER: (WORKERS, BOUNDS)}
STEPS, EXAMPLES_OF_A_STEP, NORMS_OF_A_STEP = (8, 16, 64), 16, 8
POOLED = f"pooled steps of {EXAMPLES_OF_A_STEP} examples, the norms of {NORMS_OF_A_STEP} known"
POOLED_SOURCES = {POOLED: (STEPS, BOUNDS)}
LETTERS = {FRESH: "m", FINITE: "m", WORKER: "P", POOLED: "K"}

Draw = Callable[[int], Tensor]
"""Rows → that many independent gradients."""


Build = Callable[[float, torch.Generator], tuple[Draw, float]]
"""The B_D asked for and a generator → a sampler and the B_D it has."""


@dataclass(frozen=True, kw_only=True)
class Population:
    """Gradients with a known B_D; those not judged show where intervals end."""

    name: str
    build: Build
    judged: bool = True


def gaussian(
    spectrum: Tensor, along: int | None, scale: Callable[[int, torch.Generator], Tensor] | None = None
) -> Build:
    """μ + s·z: z of the given spectrum, μ along one of its axes (or a random direction), s a random size."""

    def build(bound: float, generator: torch.Generator) -> tuple[Draw, float]:
        if along is None:
            direction = torch.randn(len(spectrum), dtype=torch.float64, generator=generator)
        else:
            direction = torch.eye(len(spectrum), dtype=torch.float64)[along]
        mean = direction / direction.norm() * math.sqrt(float(spectrum.sum()) / (bound - 1))

        def draw(rows: int) -> Tensor:
            noise = torch.randn(rows, len(spectrum), dtype=torch.float64, generator=generator) * spectrum.sqrt()
            return mean + (noise if scale is None else noise * scale(rows, generator))

        return draw, bound

    return build


def log_normal(rows: int, generator: torch.Generator, sigma: float = 0.75) -> Tensor:
    """A random size s with E s² = 1 and a squared norm of coefficient of variation √(e^{4σ²}−1) = 2.9."""
    return torch.exp(sigma * torch.randn(rows, 1, dtype=torch.float64, generator=generator) - sigma**2)


def student_3(rows: int, generator: torch.Generator) -> Tensor:
    """The size of a Student t with 3 degrees of freedom, E s² = 1: its squared norm has no variance at all."""
    chi = torch.randn(rows, 3, dtype=torch.float64, generator=generator).square().sum(1, keepdim=True)
    return chi.rsqrt()


def logistic(intercept: float) -> Build:
    """Gradients of logistic regression (20,000 examples, 20 features) on the way to its optimum, where B_D = bound.

    The way starts where the rarer label is always predicted and gradients agree, and ends where they cancel.
    """

    def build(bound: float, generator: torch.Generator) -> tuple[Draw, float]:
        n, d = 20_000, 20
        features = torch.randn(n, d, dtype=torch.float64, generator=generator) * torch.arange(1, d + 1).pow(-0.5)
        features[:, 0] = 3
        truth = 2 * torch.randn(d, dtype=torch.float64, generator=generator)
        truth[0] = intercept / 3
        labels = (torch.rand(n, dtype=torch.float64, generator=generator) < torch.sigmoid(features @ truth)).double()

        def gradients(weights: Tensor) -> Tensor:
            return (torch.sigmoid(features @ weights) - labels)[:, None] * features

        optimum = torch.zeros(d, dtype=torch.float64)
        for _ in range(15):
            chance = torch.sigmoid(features @ optimum)
            hessian = (features * (chance * (1 - chance))[:, None]).T @ features / n
            optimum = optimum - torch.linalg.solve(hessian, gradients(optimum).mean(0))
        start = optimum.clone()
        start[0] = -10 if labels.mean() > 0.5 else 10

        def bound_at(progress: float) -> float:
            rows = gradients(start + progress * (optimum - start))
            return float(rows.square().sum() / n / rows.mean(0).square().sum())

        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if bound_at(middle) < bound else (low, middle)
        rows = gradients(start + high * (optimum - start))
        return lambda count: rows[torch.randint(n, (count,), generator=generator)], bound_at(high)

    return build


POWER_LAW = torch.arange(1, 101, dtype=torch.float64).pow(-1.5)
FLAT = torch.ones(100, dtype=torch.float64)
POPULATIONS = (
    Population(name="isotropic, d = 100", build=gaussian(FLAT, None)),
    Population(name="power law j^−1.5, ∇F along the top", build=gaussian(POWER_LAW, 0)),
    Population(name="rank 3", build=gaussian(torch.ones(3, dtype=torch.float64), None)),
    Population(name="heavy tails, log-normal", build=gaussian(FLAT, None, log_normal)),
    Population(name="logistic gradients", build=logistic(0.0)),
    Population(name="limit: Student t₃", build=gaussian(FLAT, None, student_3), judged=False),
    Population(name="limit: logistic, 2 % positive", build=logistic(-7.5), judged=False),
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What was counted in one cell."""

    population: str
    judged: bool
    source: str
    count: int
    bound: float
    two_sided: float
    lower: float
    usable: float
    """Median of lower confidence bound ÷ true bound."""

    @property
    def missed(self) -> bool:
        return self.two_sided < TWO_SIDED_BAR or self.lower < LOWER_BAR


def run_cell(population: Population, source: str, count: int, bound: float, repeats: int, seed: int) -> Cell:
    """Draws `repeats` samples and counts.

    In a finite cell each hundred samples come, without replacement, from a set of 4m of its own, whose B_D is exact.
    Rows of workers are means of 8 examples; coverage of ρ_w is coverage of B, which is monotone in it.
    """
    group = EXAMPLES_OF_A_WORKER if source == WORKER else 1
    generator = torch.Generator().manual_seed(seed)
    draw, true_bound = population.build(bound, generator)
    inside, below, usable, bounds = [], [], [], []
    for start in range(0, repeats, CHUNK):
        chunk = min(CHUNK, repeats - start)
        size = 4 * count if source == FINITE else None
        if size is None:
            rows = draw(chunk * count * group).view(chunk, count, group, -1).mean(2)
            inverse = 1 / (1 + (true_bound - 1) / group)
        else:
            members = draw(size)
            inverse = float(members.sum(0).square().sum() / (size * members.square().sum()))
            rows = torch.stack([members[torch.randperm(size, generator=generator)[:count]] for _ in range(chunk)])
        limits = coherence_limits(
            coherence_from_gram(rows @ rows.mT),
            least=0.0 if size is None else -1 / (size - 1),
            sampled_fraction=0.0 if size is None else count / size,
        )
        low, high, safe = (inverse_bound(limit, size) for limit in limits)
        inside.append((low <= inverse) & (inverse <= high))
        below.append(inverse <= safe)
        bounds.append(1 + group * (1 / inverse - 1))
        usable.append((1 + group * (1 / safe - 1)).clamp(min=1) / bounds[-1])
    return Cell(
        population=population.name,
        judged=population.judged,
        source=source,
        count=count,
        bound=sum(bounds) / len(bounds),
        two_sided=float(torch.cat(inside).double().mean()),
        lower=float(torch.cat(below).double().mean()),
        usable=float(torch.cat(usable).median()),
    )


def run_pooled_cell(population: Population, source: str, count: int, bound: float, repeats: int, seed: int) -> Cell:
    """The same for windows of K steps of fresh data."""
    generator = torch.Generator().manual_seed(seed)
    draw, true_bound = population.build(bound, generator)
    examples, known = EXAMPLES_OF_A_STEP, NORMS_OF_A_STEP
    found = []
    for start in range(0, repeats, CHUNK):
        chunk = min(CHUNK, repeats - start)
        rows = draw(chunk * count * examples).view(chunk, count, examples, -1)
        norms = rows[:, :, :known].square().sum(3).mean(2)
        products = (rows.sum(2).square().sum(2) - examples * norms) / (examples * (examples - 1))
        windows = torch.stack([torch.ones_like(norms), products, norms], 2).tolist()
        found += [pooled_estimate(window, population=None, confidence=0.95) for window in windows]
    return Cell(
        population=population.name,
        judged=population.judged,
        source=source,
        count=count,
        bound=true_bound,
        two_sided=statistics.fmean(one.low <= true_bound <= one.high for one in found),
        lower=statistics.fmean(one.lower_confidence_bound <= true_bound for one in found),
        usable=statistics.median(one.lower_confidence_bound for one in found) / true_bound,
    )


def run(repeats: int, seed: int, *, pooled: bool) -> Iterator[Cell]:
    """Every cell, one after the other, each with a seed of its own."""
    number = 0
    for population in POPULATIONS:
        for source, (counts, bounds) in (POOLED_SOURCES if pooled else SOURCES).items():
            for count in counts:
                for bound in bounds:
                    number += 1
                    of_cell = run_pooled_cell if pooled else run_cell
                    yield of_cell(population, source, count, bound, repeats, seed * 10_007 + number)


def markers(pooled: bool) -> tuple[str, str]:
    """The comments around a table in the document."""
    name = "pooled coverage table" if pooled else "coverage table"
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def table(cells_by_seed: list[list[Cell]], repeats: int, seeds: list[int], *, pooled: bool) -> str:
    """The worst of the seeds, cell by cell: two-sided / lower bound (its median as a fraction of the truth)."""
    given = f"--repeats {repeats} --seeds {' '.join(map(str, seeds))}"
    begin, end = markers(pooled)
    lowest = f"Each entry is the lowest of {len(seeds)} seeds:" if len(seeds) > 1 else "Each entry:"
    lines = [
        begin,
        "",
        f"Made by `python benchmarks/coverage.py {given} --table docs/understand/intervals.md{' --pooled' * pooled}`: "
        f"{repeats:,} {'windows' if pooled else 'samples'} a cell",
        f"and seed. {lowest} two-sided coverage / coverage of the lower bound,",
        "and in brackets the median lower bound as a fraction of the true bound.",
        "A † stands where a seed fell below 0.90 or 0.94.",
        "",
    ]
    for source, (_, bounds) in (POOLED_SOURCES if pooled else SOURCES).items():
        lines += [
            f"**{source.capitalize()}**",
            "",
            f"| population | {LETTERS[source]} | "
            + " | ".join(f"B_D {'≈' if source == FINITE else '='} {b:g}" for b in bounds)
            + " |",
            "|---|---|" + "---|" * len(bounds),
        ]
        chosen = [[cell for cell in cells if cell.source == source] for cells in cells_by_seed]
        for start in range(0, len(chosen[0]), len(bounds)):
            entries = []
            for offset in range(len(bounds)):
                same = [cells[start + offset] for cells in chosen]
                mark = " †" if any(cell.missed for cell in same) else ""
                usable = sum(cell.usable for cell in same) / len(same)
                entries.append(
                    f"{min(c.two_sided for c in same):.3f} / {min(c.lower for c in same):.3f} ({usable:.2f}){mark}"
                )
            lines.append(f"| {chosen[0][start].population} | {chosen[0][start].count} | " + " | ".join(entries) + " |")
        lines.append("")
    return "\n".join([*lines, end])


def main() -> None:
    """Runs all cells for all seeds, prints each, and writes the table where asked."""
    parser = argparse.ArgumentParser(description="Coverage of the intervals of the batch-size bound.")
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11])
    parser.add_argument("--table", type=Path, help="a Markdown file whose coverage table is replaced")
    parser.add_argument("--pooled", action="store_true", help="the cells of pooled steps, and their table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began, cells_by_seed = time.perf_counter(), []
    for seed in arguments.seeds:
        cells = []
        for cell in run(arguments.repeats, seed, pooled=arguments.pooled):
            cells.append(cell)
            print(
                f"seed {seed}  {cell.population:36s} {cell.source:31s} {cell.count:3d} "
                f"B={cell.bound:7.1f}  two-sided {cell.two_sided:.3f}  lower {cell.lower:.3f}  "
                f"(median lower bound {cell.usable:.2f} of the truth){'  BELOW THE BAR' if cell.missed else ''}",
                flush=True,
            )
        cells_by_seed.append(cells)
    judged = [cell for cells in cells_by_seed for cell in cells if cell.judged]
    print(
        f"{sum(not cell.missed for cell in judged)} of {len(judged)} judged cells meet both bars; lowest two-sided "
        f"{min(c.two_sided for c in judged):.3f}, lowest lower bound {min(c.lower for c in judged):.3f}; "
        f"{time.perf_counter() - began:.0f} s"
    )
    if arguments.table:
        text = arguments.table.read_text()
        begin, end = markers(arguments.pooled)
        new = (
            text[: text.index(begin)]
            + table(cells_by_seed, arguments.repeats, arguments.seeds, pooled=arguments.pooled)
            + text[text.index(end) + len(end) :]
        )
        temporary = arguments.table.with_suffix(".tmp")
        temporary.write_text(new)
        temporary.replace(arguments.table)


if __name__ == "__main__":
    main()
