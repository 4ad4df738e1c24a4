"""Ways to the same sums are compared with each other when they are timed, at the size at which they will be used."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from cases import energy
from reference import loop_gradients
from variegrad.per_example import learn
from variegrad.per_example import plan as plan_module
from variegrad.per_example.engine import Engine
from variegrad.per_example.norms import batch_norms, example_gradients
from variegrad.per_example.plan import TRIED, Disagreement, Plan, choose, following
from variegrad.per_example.rules.contribution import Summed, by_tiles
from variegrad.per_example.rules.convolution import Convolution
from variegrad.per_example.rules.matmul import Outer
from variegrad.per_example.rules.rounding import rows_apart, sums_apart


def wrong_above(size, honest, attribute):
    def wrong(self, *args):
        found = honest(self, *args)
        if self.count <= size:
            return found
        if attribute == "total":
            return Summed(found.sq_norms, None if found.total is None else found.total * 1.01)
        return Summed(found.sq_norms * 1.01, found.total)

    return wrong


@pytest.mark.parametrize("attribute", ["total", "sq_norms"])
@pytest.mark.parametrize("measured", [True, False])
def test_a_way_that_is_wrong_only_at_full_size_is_refused_by_name(monkeypatch, attribute, measured):
    monkeypatch.setattr(Outer, "_gram", wrong_above(learn.MOST, Outer._gram, attribute))
    model, batch = nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 20)), torch.randn(64, 5, 40)
    engine = Engine(measured=measured)
    if measured:
        with pytest.raises(RuntimeError, match=r"parameter '2.weight' differ between 'direct' and 'gram'"):
            batch_norms(model, energy, batch, engine=engine)
        assert "gram" not in engine.plan.chosen.values()
    else:  # never takes it
        rows = loop_gradients(model, energy, batch)["0.weight"]
        found = batch_norms(model, energy, batch, engine=engine)
        assert torch.allclose(found.total["0.weight"], rows.sum(0), atol=1e-3)


def test_a_wrong_convolution_is_refused_by_name(monkeypatch):
    honest = Convolution._grouped_rows
    monkeypatch.setattr(
        Convolution, "_grouped_rows", lambda self, i, j: honest(self, i, j) * (1.01 if self.count > 7 else 1)
    )
    with pytest.raises(RuntimeError, match=r"parameter '0.weight' differ between .* and 'grouped × "):
        batch_norms(nn.Sequential(nn.Conv2d(3, 4, 3)), energy, torch.randn(64, 3, 8, 8))
    with pytest.raises(RuntimeError, match=r"differ between"):
        batch_norms(nn.Sequential(nn.Conv2d(3, 4, 3)), energy, torch.randn(64, 3, 8, 8), l1=True)


@pytest.mark.parametrize("measured", [True, False])
def test_a_sole_way_that_was_not_met_before_is_compared_with_a_slower_one(monkeypatch, measured):
    # Sequences are learnt first; single rows have a rule of their own, which the check never saw.
    monkeypatch.setattr(
        Outer, "_rank_one", lambda self, total: Summed(torch.ones(self.count).double(), self._whole().t())
    )
    model, engine = nn.Linear(6, 3), Engine(measured=measured)
    engine.known.clear()
    batch_norms(model, energy, torch.randn(64, 5, 6), engine=engine)
    with pytest.raises(RuntimeError, match=r"'rank one' and 'formed'"):
        batch_norms(model, energy, torch.randn(64, 1, 6), engine=engine)


def test_some_examples_and_all_have_choices_of_their_own():
    model, engine, batch = nn.Linear(40, 30), Engine(), torch.randn(64, 5, 40)
    for examples in (None, [0, 1], range(9)):
        batch_norms(model, energy, batch, engine=engine, examples=examples)
    compared = {name for rule, name in engine.plan.agreed if rule == "outer"}
    assert set(engine.plan.chosen.values()) <= compared
    full = {(asked, sizes[0]) for ((rule, *_), asked), sizes in engine.plan.chosen if rule == "outer"}
    assert full >= {(True, TRIED), (False, 9), (False, 2)}


def test_sums_that_agree_say_nothing_of_rows_nor_rows_of_sums(monkeypatch):
    model, batch = nn.Linear(6, 3), torch.randn(3, 5, 6)  # too few to learn from some of them
    model_of_rows = copy.deepcopy(model)
    batch_norms(model, energy, batch)
    next(example_gradients(model_of_rows, energy, batch))
    rows = Outer.rows
    monkeypatch.setattr(Outer, "rows", lambda self, i, j: rows(self, i, j) * 1.01)
    with pytest.raises(RuntimeError, match="differ from the loop"):
        batch_norms(model, energy, batch, l1=True)
    with pytest.raises(RuntimeError, match="differ from the loop"):
        next(example_gradients(model, energy, batch))
    for name in ("_formed", "_gram"):
        honest = getattr(Outer, name)
        monkeypatch.setattr(Outer, name, wrong_above(0, honest, "sq_norms"))
    with pytest.raises(RuntimeError, match="differ"):
        batch_norms(model_of_rows, energy, batch)


def test_rounding_is_forgiven_and_more_is_not():
    left, right = torch.randn(16, 9, 5), torch.randn(16, 9, 4)
    for dtype, much in ((torch.float64, 1e-6), (torch.float32, 0.01), (torch.bfloat16, 1.0)):
        part = Outer(left.to(dtype), right.to(dtype))
        one, rows = part._one_by_one(True), part.rows(0, 16)
        bound = part.bound()
        for way in part.variants().values():
            assert sums_apart(one, way(part), bound, dtype) <= 1
        for other in (Summed(one.sq_norms * (1 + much), one.total), Summed(one.sq_norms, one.total * (1 + much))):
            assert sums_apart(one, other, bound, dtype) > 1
        assert rows_apart(rows, rows.clone(), bound) == 0
        assert rows_apart(rows, rows * (1 + much), bound) > 1


def test_gradients_that_are_nothing_but_rounding_agree():
    left = torch.ones(16, 9, 5)
    right = torch.randn(16, 9, 4)
    right -= right.mean(1, keepdim=True)  # Σ_t δ_t = 0
    part = Outer(left, right)
    for one in part.variants().values():
        for other in part.variants().values():
            assert part._apart(one(part), other(part)) <= 1


def test_infinite_gradients_agree_with_themselves_only():
    one = Summed(torch.tensor([1.0, torch.inf]).double(), torch.tensor([torch.inf]))
    same = Summed(torch.tensor([1.0, torch.nan]).double(), torch.tensor([torch.nan]))
    other = Summed(torch.tensor([1.0, 2.0]).double(), torch.tensor([3.0]))
    bound = torch.ones(2).double()
    assert sums_apart(one, same, bound, torch.float32) == 0
    assert sums_apart(one, other, bound, torch.float32) == torch.inf


def test_products_that_overflow_are_formed():
    part = Outer(torch.full((3, 2, 5), 1e12), torch.full((3, 2, 4), 1e9))
    assert torch.allclose(part.mended(part._gram(True)).sq_norms, part._one_by_one(True).sq_norms, rtol=1e-6)


def test_a_long_sum_in_sixteen_bits_does_not_stop_growing():
    rows = torch.ones(2048, 3, dtype=torch.bfloat16)
    found = by_tiles(lambda start, stop: rows[start:stop], [(i, i + 1) for i in range(2048)])
    assert torch.equal(found.total, rows.float().sum(0).bfloat16())


@dataclass(frozen=True)
class Item:
    """Something with two ways."""

    count: int = 8
    length: int = 1

    family = ("sum",)

    @property
    def sizes(self):
        return (self.length,)

    def first(self, count):
        return Item(min(count, self.count), self.length)


def test_choose_keeps_nothing_that_disagreed():
    plan = Plan()
    with following(plan), pytest.raises(Disagreement, match=r"'a' and 'b', two ways of the rule 'sum'"):
        choose(Item(), {"a": lambda _: 1.0, "b": lambda _: 2.0}, lambda _, a, b: abs(a - b) * 10)
    assert not plan.chosen
    assert not plan.agreed


def test_ways_are_tried_on_a_few_examples_and_not_again_for_sizes_nearby():
    plan, seen = Plan(), []
    ways = {"a": lambda item: seen.append(item.count) or 1.0, "b": lambda item: seen.append(item.count) or 1.0}

    def tried(item):
        seen.clear()
        with following(plan):
            choose(item, ways, lambda *_: 0.0)
        return seen[:]

    assert max(tried(Item(1000, 100))[:-1]) == TRIED  # and the last one is the whole
    assert tried(Item(1000, 100)) == [1000]
    for item in (Item(500, 51), Item(TRIED, 199), Item(TRIED // 2, 100)):
        assert tried(item) == [item.count]
    for item in (Item(1000, 201), Item(1000, 40), Item(TRIED // 2 - 1, 100)):
        assert len(tried(item)) > 1
    assert len(plan.seconds) == 4


def test_choices_are_bounded(monkeypatch):
    monkeypatch.setattr(plan_module, "REMEMBERED", 3)
    plan = Plan()
    with following(plan):
        for k in range(10):
            choose(Item(8, 3**k), {"a": lambda _: 1.0, "b": lambda _: 1.0}, lambda *_: 0.0)
    assert len(plan.chosen) <= 3
