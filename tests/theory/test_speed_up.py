"""Speed-up and the best batch: the closed forms are the optima."""

from __future__ import annotations

import math

import numpy as np
import pytest

from variegrad.theory import best_batch_size, efficiency, local_step, rates_smooth, rates_strongly_convex, speed_up
from variegrad.theory.arguments import positive


def test_the_speed_up_saturates_at_the_bound() -> None:
    assert speed_up(batch_size=1, bound=50) == 1
    assert speed_up(batch_size=51, bound=50) == 25.5
    assert efficiency(batch_size=51, bound=50) == 0.5
    assert 49.9 < speed_up(batch_size=10**6, bound=50) < 50
    assert speed_up(batch_size=64, bound=math.inf) == 64


@pytest.mark.parametrize(
    ("bound", "alpha", "per_example"), [(50, 0.01, 1e-4), (500, 1e-4, 1e-3), (3, 1, 1e-5), (1, 1, 1)]
)
def test_no_other_batch_is_faster(bound: float, alpha: float, per_example: float) -> None:
    found = best_batch_size(bound=bound, seconds_per_step=alpha, seconds_per_example=per_example)
    sizes = np.arange(1, 20_000)
    times = (alpha + per_example * sizes) * (bound + sizes - 1) / sizes / bound
    assert found.batch_size == sizes[times.argmin()]
    assert found.seconds_per_serial_step == pytest.approx(times.min())
    assert found.gain == pytest.approx(times[0] / times.min())
    least = (math.sqrt(alpha) + math.sqrt(per_example * (bound - 1))) ** 2 / bound
    assert times.min() >= least * (1 - 1e-12)


def test_a_cap_on_the_batch_is_kept() -> None:
    found = best_batch_size(bound=10_001, seconds_per_step=1.0, seconds_per_example=1e-4, largest=512)
    assert (found.batch_size, found.continuous) == (512, pytest.approx(10_000))
    with pytest.raises(ValueError, match="largest must be at least 1; got 0"):
        best_batch_size(bound=10_001, seconds_per_step=1.0, seconds_per_example=1e-4, largest=0)
    with pytest.raises(TypeError, match=r"largest must be a whole number; got 51\.5"):
        best_batch_size(bound=10_001, seconds_per_step=1.0, seconds_per_example=1e-4, largest=51.5)


def test_without_a_bound_the_best_batch_is_the_largest() -> None:
    found = best_batch_size(bound=math.inf, seconds_per_step=1.0, seconds_per_example=1e-4, largest=512)
    assert (found.batch_size, found.continuous, found.efficiency) == (512, math.inf, 1)
    assert found.seconds_per_serial_step == pytest.approx((1 + 512e-4) / 512)
    with pytest.raises(ValueError, match="bound is infinite, so that every larger batch is better: give largest"):
        best_batch_size(bound=math.inf, seconds_per_step=1.0, seconds_per_example=1e-4)


def test_the_local_step_minimises_the_expected_quadratic() -> None:
    found = local_step(smoothness=2.0, bound=30.0, batch_size=8, sq_norm_of_gradient=0.7)

    def decrease(step: float) -> float:
        # F − F⁺ = γB‖G‖² − (β/2)γ²B(M² + (B−1)‖G‖²), M² = B_D·‖G‖²
        return step * 8 * 0.7 - step**2 * 8 * (30 * 0.7 + 7 * 0.7)

    assert found.decrease == pytest.approx(decrease(found.step_size))
    assert decrease(found.step_size) > max(decrease(0.99 * found.step_size), decrease(1.01 * found.step_size))
    assert found.learning_rate == pytest.approx(1 / 2 / (1 + 29 / 8))


def test_numbers_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match=r"batch_size must be at least 1; got 0\.5"):
        speed_up(batch_size=0.5, bound=3)
    with pytest.raises(ValueError, match="bound must be at least 1; got nan"):
        efficiency(batch_size=2, bound=math.nan)
    with pytest.raises(ValueError, match="seconds_per_example must be positive and finite; got 0"):
        best_batch_size(bound=3, seconds_per_step=1, seconds_per_example=0)
    with pytest.raises(ValueError, match="x must be positive and finite; got inf"):
        positive(x=math.inf)


def test_delta_and_batch_size_are_two_ways_to_say_one_thing() -> None:
    numbers = {"error": 0.1, "smoothness": 2.0, "second_moment": 5.0, "initial_gap": 3.0, "bound": 50.0}
    assert rates_smooth(**numbers, batch_size=26) == rates_smooth(**numbers, delta=0.5)
    assert rates_smooth(**numbers) == rates_smooth(**numbers, delta=1.0)
    with pytest.raises(ValueError, match="give delta or batch_size, not both"):
        rates_smooth(**numbers, delta=1.0, batch_size=3)
    assert rates_smooth(**{**numbers, "bound": math.inf}, batch_size=7).efficiency == 1
    assert rates_smooth(**{**numbers, "bound": math.inf}, delta=0.0).paper.batch_size == 1


def test_a_batch_beyond_the_cap_is_refused_and_a_step_too_large_for_one_example_too() -> None:
    numbers = {"strong_convexity": 0.5, "second_moment": 4.0, "sq_distance": 1.0, "bound": 1e6}
    with pytest.raises(ValueError, match=r"allows a batch of at most 800 examples here .*; got batch_size=801"):
        rates_strongly_convex(error=0.01, **numbers, batch_size=801)
    with pytest.raises(ValueError, match="less than one; ask for a smaller error"):
        rates_strongly_convex(error=100.0, **numbers)


def test_a_schedule_prints_itself() -> None:
    text = str(rates_smooth(error=0.1, smoothness=2.0, second_moment=5.0, initial_gap=3.0, bound=50.0, delta=0.5))
    assert "retuned: γ = 0.006667 (γB = 0.1733), B = 26, T = 9,000 updates = 347 iterations, error ≤ 0.1" in text
    assert "paper:   γ = 0.01" in text
