"""A stop that was requested, and numbers that are not finite, beside estimates, searches and twins."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import variegrad as vg
from variegrad.distributed.world import World
from variegrad.training import Cadence, Skip, twin_runs
from variegrad.training.tuning import Stopped


def losses(model, batch):
    return (model(batch[0]).squeeze(1) - batch[1]) ** 2


def data(spoiled=None, n=24):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(n, 3, generator=generator)
    if spoiled is not None:
        x[spoiled] = torch.nan
    return TensorDataset(x, torch.randn(n, generator=generator))


def net():
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def config(**changes):
    return vg.TrainConfig(**{"batch_size": 6, "step_size": 0.01, "passes": 3, "seed": 4, **changes})


def test_skip_also_skips_where_the_bound_is_estimated_from_the_example_that_is_not_finite():
    settings = config(when_not_finite=Skip(99))
    plain = list(vg.train(net(), losses, data(spoiled=5), settings))
    found = list(vg.train(net(), losses, data(spoiled=5), settings, bound_every=Cadence(updates=1)))
    assert [u.left_out for u in found] == [u.left_out for u in plain]
    assert found[-1].left_out > 0
    skipped = [after.left_out > before for before, after in zip([0, *[u.left_out for u in found]], found, strict=False)]
    assert [u.bound is None for u in found] == skipped


def test_stop_ends_the_run_with_the_example_also_where_a_bound_is_estimated():
    with pytest.raises(ValueError, match="the loss of example"):
        list(vg.train(net(), losses, data(spoiled=5), config(), bound_every=Cadence(updates=1)))


def test_a_stop_that_was_obeyed_does_not_stop_the_next_run():
    world = World()
    run = vg.train(net(), losses, data(), config(), world)
    assert next(run).updates == 1
    world.request_stop()
    assert [u.updates for u in run] == [2]
    assert not world.stop_requested
    assert len(list(vg.train(net(), losses, data(), config(), world))) == 12


@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "one by one"])
@pytest.mark.parametrize("when", ["before", "under way"])
def test_a_search_that_is_stopped_says_so_and_has_no_answer(stacked, when):
    world, calls = World(), 0

    def interrupted(model, batch):
        nonlocal calls
        calls += 1
        if when == "under way" and calls == 8:
            world.request_stop()
        return losses(model, batch)

    if when == "before":
        world.request_stop()
    settings = config() if stacked else config(mechanism=vg.DropConnect(0.2))
    with pytest.raises(Stopped, match="stopped on request before a step size was found"):
        vg.tune(net(), interrupted, data(), settings, world, repeats=2)
    assert not world.stop_requested


def test_twins_that_are_stopped_give_what_was_measured_until_then():
    world = World()
    neighbour = data()
    neighbour.tensors[1][3] += 1.0
    calls = 0

    def interrupted(model, batch):
        nonlocal calls
        calls += 1
        if calls == 9:
            world.request_stop()
        return losses(model, batch)

    found = twin_runs(
        net(), interrupted, data(), neighbour, config(), world, every=Cadence(updates=2), bounds=False
    )  # fmt: skip
    whole = twin_runs(net(), losses, data(), neighbour, config(), every=Cadence(updates=1), bounds=False)
    assert found.updates == (2, 4, 5)
    assert found.distances == tuple(whole.distances[update - 1] for update in found.updates)
