"""The cost of a profile before it is started: counted from its cells and from updates that are timed now."""

import json

import pytest
import torch

from variegrad.experiments import cost, data, experiment, figure_1b, names
from variegrad.experiments.records import Record
from variegrad.experiments.sweep import runner, sweep


def settled(name, **more):
    chosen = experiment(name)
    settings, _ = data.settled({**chosen.profiles["smoke"], "seed_offset": 0, **more})
    return chosen, settings


def test_runs_and_updates_are_those_of_a_search_that_stays_in_its_grid():
    chosen, settings = settled("figure-1b", grid=[-16, -12, -8], optimizers={})
    found = list(cost.rows(chosen, settings))
    assert [row.name for row in found] == ["batch_size 4", "batch_size 16"]
    assert [row.updates for row in found] == [64 * 6 // 4, 64 * 8 // 16]
    grid, seeds = len(settings["grid"]), settings["seeds"]
    assert [row.runs for row in found] == [(grid + 4) * settings["tuning"] + seeds] * 2
    records = {}
    while missing := [c for c in chosen.cells(settings, records) if c.key not in records]:
        for cell in missing:  # best in the middle of the grid
            octaves = abs(3 + torch.tensor(cell["step_size"] * cell["batch_size"]).log2().item())
            records[cell.key] = Record(cell=cell, values={"diverged": False, "needed": 1 + octaves}, seconds=0)
    assert len(chosen.cells(settings, records)) == sum(row.runs for row in found)


def test_each_optimizer_has_rows_of_its_own():
    chosen, settings = settled("figure-1b", optimizers={"Adam": [-32, -28]}, optimizer_batch_sizes=[16])
    *_, adam = cost.rows(chosen, settings)
    assert adam.name == "batch_size 16, optimizer Adam"
    assert adam.runs == (2 + 4) * settings["tuning"] + settings["seeds"]


def test_operations_are_those_of_a_perceptron():
    """Two per weight and example forward; backward again as many for the weights, and for all layers but the first."""
    chosen, settings = settled("figure-1b", batch_sizes=[8], passes=[6], optimizers={})
    (row,) = cost.rows(chosen, settings)
    first, second = 64 * 16, 16 * 10
    assert row.flops == row.runs * row.updates * 8 * 2 * (2 * first + 3 * second)
    assert row.seconds > 0
    assert row.gpu_seconds == max(row.flops / cost.GPU_FLOPS, row.runs * row.updates * cost.GPU_UPDATE)


def test_a_batch_larger_than_the_data_is_counted_in_full():
    chosen, settings = settled("figure-1b", batch_sizes=[64, 128], passes=[6, 6], optimizers={})
    one, other = cost.rows(chosen, settings)
    assert other.flops / other.updates / other.runs == 2 * one.flops / one.updates / one.runs


def test_runs_to_a_target_are_counted_as_long_as_they_are_expected_to_take_and_timed_cells_are_not():
    chosen, settings = settled("table-1")
    found = list(cost.rows(chosen, settings))
    assert len(found) == 3 * len(settings["batch_sizes"])  # plain, a mask per example, a mask per worker
    grid, seeds, tuning = 3, settings["seeds"], settings["tuning"]
    assert {row.runs for row in found} == {(grid + settings["refinements"]) * tuning + seeds}
    plain = next(row for row in found if "drop 0.0" in row.name and "batch_size 8" in row.name)
    assert plain.updates == int(120 * (8 + settings["expected_bound"] - 1) / 8 * 8) // 8


def test_sums_are_those_of_the_rows():
    chosen, settings = settled("structure")
    found = list(cost.rows(chosen, settings))
    assert len(found) == 4
    assert len({row.name for row in found}) == 4
    assert cost.totals(found)["runs"] == sum(row.runs for row in found)


@pytest.mark.parametrize("name", ["figure-2a", "theorem-6"])
def test_cells_that_train_no_network_are_timed_whole_and_counted_as_they_will_be_computed(name, tmp_path):
    chosen, settings = settled(name)
    found = list(cost.rows(chosen, settings))
    assert all(row.seconds > 0 and row.flops is row.updates is row.gpu_seconds is None for row in found)
    assert cost.totals(found)["gpu_seconds"] is None
    swept = sweep(chosen, settings, tmp_path)
    extensions = 0.5 if name == "figure-2a" else 0  # a grid of the smoke profile is extended
    assert abs(len(swept.records) - sum(row.runs for row in found)) <= extensions * len(swept.records)


def test_cells_that_follow_from_the_results_of_others_are_refused():
    chosen = experiment("critical-batch")
    with pytest.raises(ValueError, match="follows from the results of earlier ones"):
        list(cost.rows(chosen, chosen.profiles["smoke"]))


@pytest.mark.parametrize("name", names())
def test_a_device_is_used_or_refused(name):
    chosen = experiment(name)
    assert runner(chosen, data.CPU) is chosen.run
    message = "it cannot be used here" if chosen.on_device else "is computed by processes on the CPU"
    with pytest.raises(ValueError, match=message):
        runner(chosen, torch.device("cuda", 7))


def test_data_and_model_are_on_the_device_that_was_asked_for(monkeypatch, tmp_path):
    """Nothing assumes the CPU: every tensor is moved to the device that `run` is given."""
    chosen, settings = settled("figure-1b")
    asked = []
    moved = data._moved
    monkeypatch.setattr(data, "_moved", lambda dataset, device: asked.append(device) or moved(dataset, device))
    data.on_device.cache_clear()
    data.replicated.cache_clear()
    device = torch.device("cpu", 0)
    chosen.run([figure_1b.RUNS.cell(settings, {"batch_size": 4}, -8, 0)], device)
    assert asked
    assert set(asked) == {device}
    swept = sweep(
        chosen,
        {**settings, "batch_sizes": [16], "passes": [8], "optimizer_batch_sizes": [16]},
        tmp_path,
        device=data.CPU,
    )
    assert swept.computed == len(swept.records)
    json.dumps([dict(record.cell.values) for record in swept.records.values()])
