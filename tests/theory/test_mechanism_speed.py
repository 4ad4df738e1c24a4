"""When a mechanism pays: f(B) against simulated steps, best batches against a search, and the link where masks pay."""

from __future__ import annotations

import math

import numpy as np
import pytest

from theory.brute_force import batch_size_bound
from variegrad.theory import communication_that_pays, mechanism_time, updates_factor


def simulated_factor(
    gradients: np.ndarray, batch_size: int, drop: float, granularity: str, workers: int, draws: int
) -> float:
    """E‖(1/B)Σm(g)‖²/‖∇F‖² over draws with replacement of a batch that P workers share."""
    generator = np.random.default_rng(0)
    n, d = gradients.shape
    chosen = gradients[generator.integers(n, size=(draws, batch_size))]
    if granularity == "worker":
        chosen = chosen.reshape(draws, workers, batch_size // workers, d).sum(axis=2)
    kept = generator.random(chosen.shape) < 1 - drop
    steps = (chosen * kept / (1 - drop)).sum(axis=1) / batch_size
    mean = gradients.mean(axis=0)
    return float(np.square(steps).sum(axis=1).mean() / (mean @ mean))


@pytest.mark.parametrize(
    ("batch_size", "drop", "granularity", "workers"),
    [(1, 0.5, "example", 1), (8, 0.0, "example", 1), (8, 0.5, "example", 2), (8, 0.4, "worker", 2),
     (24, 0.5, "worker", 2), (24, 0.75, "worker", 4), (2, 0.5, "worker", 2)],
)  # fmt: skip
def test_the_updates_are_in_proportion_to_the_second_moment_of_the_step(
    batch_size: int, drop: float, granularity: str, workers: int
) -> None:
    gradients = np.random.default_rng(1).standard_normal((50, 6)) + 0.5
    found = updates_factor(
        bound=batch_size_bound(gradients), batch_size=batch_size, relative_variance=drop / (1 - drop),
        granularity=granularity, workers=workers,
    )  # fmt: skip
    # 40,000 draws; the standard error of the mean is below 1 %.
    assert simulated_factor(gradients, batch_size, drop, granularity, workers, 40_000) == pytest.approx(found, rel=0.03)


LINKS = [0.0, 3.4e-3, 33e-3, 0.337, 5.0]
NUMBERS = {"seconds_per_step": 3.6e-3, "seconds_per_example": 1e-4}


@pytest.mark.parametrize("granularity", ["example", "worker"])
@pytest.mark.parametrize("drop", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("communication", LINKS)
@pytest.mark.parametrize("bound", [1.0, 60.0, 900.0])
def test_no_other_batches_make_another_gain(bound: float, communication: float, drop: float, granularity: str) -> None:
    found = mechanism_time(
        bound=bound, communication=communication, drop=drop, granularity=granularity, workers=2, **NUMBERS,
        extra_seconds_per_step=1e-3,
    )  # fmt: skip
    sizes = np.arange(2, 20_000)
    sent = communication * ((1 - drop) if granularity == "worker" else 1)
    f = np.array([[updates_factor(bound=bound, batch_size=int(b), relative_variance=t, granularity=g, workers=2)
                   for b in sizes[:: 1 if bound < 2 else 7]]
                  for t, g in ((0.0, "example"), (drop / (1 - drop), granularity))])  # fmt: skip
    sizes = sizes[:: 1 if bound < 2 else 7]
    plain = ((3.6e-3 + communication + 1e-4 * sizes) * f[0]).min()
    masked = ((4.6e-3 + sent + 1e-4 * sizes) * f[1]).min()
    assert found.gain == pytest.approx(plain / masked, rel=1e-3)
    assert found.pays == (found.gain > 1)


def test_the_known_table_of_predictions() -> None:
    # Time saved, in per cent, B_D = 60, P = 2: (loopback, 1 Gbit/s, 100 and 10 Mbit/s) × (p = 0.4, 0.5).
    known = {"example": [(-36, -53), (-30, -44), (-18, -26), (-7, -10)],
             "worker": [(-52, -77), (-34, -52), (-6, -11), (11, 13)]}  # fmt: skip
    for granularity, rows in known.items():
        for communication, row in zip(LINKS, rows, strict=False):
            for drop, saved in zip((0.4, 0.5), row, strict=True):
                found = mechanism_time(
                    bound=60, communication=communication, drop=drop, granularity=granularity, **NUMBERS
                )
                assert 100 * (1 - 1 / found.gain) == pytest.approx(saved, abs=0.6)


@pytest.mark.parametrize("drop", [0.1, 0.4, 0.5, 0.9])
@pytest.mark.parametrize("workers", [2, 4, 64])
@pytest.mark.parametrize("bound", [1.0, 60.0, 5000.0])
def test_a_mask_per_worker_pays_beyond_a_communication_and_not_before(bound: float, workers: int, drop: float) -> None:
    numbers = {"bound": bound, "drop": drop, "workers": workers, **NUMBERS, "extra_seconds_per_step": 2e-3}
    edge = communication_that_pays(**numbers)
    assert 0 < edge < math.inf
    slower, faster = (mechanism_time(communication=c * edge, granularity="worker", **numbers) for c in (0.98, 1.02))
    assert not slower.pays
    assert faster.pays
    assert not mechanism_time(communication=100 * edge, granularity="example", **numbers).pays


def test_one_worker_sends_nothing_so_a_mask_saves_nothing() -> None:
    assert communication_that_pays(bound=60, drop=0.5, workers=1, **NUMBERS) == math.inf


def test_no_drop_is_the_plain_gradient_and_says_so_in_words() -> None:
    found = mechanism_time(bound=60, communication=0.033, drop=0.0, granularity="example", **NUMBERS)
    assert found.gain == 1
    assert found.batch_size == found.plain_batch_size == 147
    slow = mechanism_time(bound=60, communication=0.337, drop=0.5, **NUMBERS)
    assert str(slow) == (
        "DropConnect 0.5 per worker: 12.8 % less time to an accuracy, each at its fastest batch: 368 against 448 "
        "with plain gradients"
    )
    assert "more time" in str(mechanism_time(bound=60, communication=0.0, drop=0.5, **NUMBERS))
    assert mechanism_time(bound=60, communication=0.337, drop=0.5, largest=64, **NUMBERS).batch_size == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bound": 0.5}, r"bound must be at least 1; got 0\.5"),
        ({"bound": math.inf}, "bound must be finite"),
        ({"drop": 1.0}, r"drop must be at least 0 and below 1; got 1\.0"),
        ({"granularity": "layer"}, "granularity must be 'example' or 'worker'; got 'layer'"),
        ({"communication": -1.0}, "communication must be finite and not negative"),
        ({"largest": 1}, "largest must be at least the number of workers, 2; got 1"),
    ],
)
def test_numbers_out_of_range_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mechanism_time(**{"bound": 60, "communication": 0.0, "drop": 0.5, **NUMBERS, **change})


def test_a_batch_has_an_example_for_each_worker() -> None:
    with pytest.raises(ValueError, match="at least the number of workers, 4; got 2"):
        updates_factor(bound=60, batch_size=2, relative_variance=1.0, granularity="worker", workers=4)
    with pytest.raises(ValueError, match="drop must be above 0 and below 1; got 0"):
        communication_that_pays(bound=60, drop=0, **NUMBERS)
