"""Π_W gives the nearest point of W: in W, unchanged inside, and closer than every other point of W."""

import pytest
import torch

from variegrad.training import Ball, Box

CENTER = {"w": torch.ones(2, 3).double(), "v": torch.full((4,), -1.0).double()}
SETS = {
    "ball": Ball(1.5), "ball around a point": Ball(1.5, CENTER), "box": Box(-0.3, 0.5),
    "orthant": Box(0.0, float("inf")),
}  # fmt: skip


def point(scale, seed):
    generator = torch.Generator().manual_seed(seed)
    return {n: scale * torch.randn(t.shape, generator=generator).double() for n, t in CENTER.items()}


def flat(weights):
    return torch.cat([w.flatten() for w in weights.values()])


def projected(onto, weights):
    onto.project(found := {name: w.clone() for name, w in weights.items()})
    return found


@pytest.mark.parametrize("name", SETS)
def test_a_projection_is_the_nearest_point(name):
    onto = SETS[name]
    for seed in range(20):
        outside = point(3.0, seed)
        near = projected(onto, outside)
        torch.testing.assert_close(flat(projected(onto, near)), flat(near), rtol=1e-12, atol=0)
        for other in (projected(onto, point(scale, 100 + seed)) for scale in (0.1, 1.0, 5.0)):
            # ⟨w − Πw, z − Πw⟩ ≤ 0 for every z in W
            assert (flat(outside) - flat(near)) @ (flat(other) - flat(near)) <= 1e-12


def test_inside_nothing_moves_not_even_a_bit():
    inside = {name: t + 0.1 for name, t in CENTER.items()}
    assert torch.equal(flat(projected(Ball(1.5, CENTER), inside)), flat(inside))
    small = point(0.01, 3)
    assert torch.equal(flat(projected(Ball(1.5), small)), flat(small))
    assert torch.equal(flat(projected(Box(-1.0, 1.0), small)), flat(small))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ball(0.0), "radius must be positive and finite; got 0.0"),
        (lambda: Ball(float("nan")), "radius must be positive and finite; got nan"),
        (lambda: Box(1.0, 1.0), "low must be below high; got 1.0 and 1.0"),
        (lambda: Box(float("nan"), 1.0), "low must be below high; got nan and 1.0"),
        (
            lambda: projected(Ball(1.0, {"other": torch.zeros(1)}), point(1.0, 0)),
            "center must name the trained parameters w, v; got other",
        ),
    ],
)
def test_a_set_that_is_none_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_sets_print_their_size_and_their_place():
    assert (str(Ball(2.0)), str(Box(-1.0, 1.0))) == ("Ball(2)", "Box(-1, 1)")
    assert str(Ball(2.0, CENTER)) != str(Ball(2.0, {n: t + 1 for n, t in CENTER.items()}))
