"""Every experiment runs in its smallest size, and says what its records say."""

import json
import math
import re
import shutil
from itertools import pairwise

import pytest
import torch
from matplotlib.figure import Figure
from torch.utils.data import TensorDataset

from variegrad.cli.report import write_page
from variegrad.experiments import data, experiment, names
from variegrad.experiments.experiment import tuning_seeds
from variegrad.experiments.networks import network
from variegrad.experiments.records import Cell, Record, pack, write_record
from variegrad.experiments.run_folder import begin, finish, open_run, runs_below
from variegrad.experiments.sweep import sweep
from variegrad.problems import Problem

VERDICT = r"holds|reversed|no effect above \d+(\.\d+)? %|undecided( \(.+\))?|not tested at this size|not met"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Each experiment's smoke run, made once."""
    made = {}

    def folder_of(name):
        if name not in made:
            folder = made[name] = tmp_path_factory.mktemp(name)
            chosen = experiment(name)
            settings, about = chosen.settled({**chosen.profiles["smoke"], "seed_offset": 0})
            begin(folder, chosen, "smoke", settings, data=about, command=f"variegrad experiment {name}")
            sweep(chosen, settings, folder)
            finish(folder)
        return made[name]

    return folder_of


@pytest.mark.parametrize("name", names())
def test_the_smoke_profile_computes_draws_and_finds(ran, name):
    run = open_run(ran(name))
    assert isinstance(run.figure, Figure)
    assert run.findings
    for finding in run.findings:
        assert finding.claim
        assert re.search(r"\d", finding.found)
        assert re.fullmatch(VERDICT, finding.verdict)
    written = json.loads((ran(name) / "experiment.json").read_text())
    assert [finding.found for finding in run.findings] == [found["found"] for found in written["findings"]]
    assert run.seconds > 0


@pytest.mark.parametrize("name", names())
def test_every_profile_is_there_and_asks_for_cells_of_its_own(name):
    chosen = experiment(name)
    assert {"smoke", "small", "paper"} == set(chosen.profiles)
    assert chosen.name == name
    for settings in chosen.profiles.values():
        assert settings["seeds"] >= 2
        json.dumps(settings, allow_nan=False)
    assert chosen.profiles["small"]["seeds"] >= (3 if name in ("figure-1a", "table-1", "critical-batch") else 8)


@pytest.mark.parametrize("name", names())
def test_the_same_settings_ask_for_the_same_cells_and_other_seeds_for_others(ran, name):
    run = open_run(ran(name))
    chosen = run.experiment
    again = {cell.key for cell in chosen.cells(run.settings, run.records)}
    assert again == run.records.keys()
    others = {cell for cell in chosen.cells({**run.settings, "seed_offset": 100}, {}) if not chosen.alone(cell)}
    assert not again & {cell.key for cell in others}  # the time of an update has no seed


def cells_of(run, *, tuning):
    return [r for r in run.records.values() if (r.cell["seed"] in tuning_seeds(run.settings)) is tuning]


@pytest.mark.parametrize("name", [name for name in names() if "grid" in experiment(name).profiles["smoke"]])
def test_every_configuration_is_tuned_to_quarter_octaves_and_says_so(ran, name):
    """Runs for tuning that differ in step size and seed alone are one configuration."""
    run = open_run(ran(name))
    tried = {}
    for record in cells_of(run, tuning=True):
        rest = {k: v for k, v in record.cell.values.items() if k not in ("step_size", "seed")}
        octaves = math.log2(record.cell["step_size"] * record.cell["batch_size"])
        tried.setdefault(json.dumps(rest, sort_keys=True), set()).add(round(4 * octaves))
    for steps in tried.values():
        assert len(steps) > len(run.settings["grid"])
        assert min(b - a for a, b in pairwise(sorted(steps))) <= run.settings.get("finest", 1)
    assert any("tuned step size" in finding.claim for finding in run.findings)


def test_an_unfinished_run_says_how_to_go_on(ran, tmp_path):
    folder = ran("theorem-6")
    (tmp_path / "experiment.json").write_text((folder / "experiment.json").read_text())
    lines = (folder / "records.jsonl").read_text().splitlines()
    (tmp_path / "records.jsonl").write_text("\n".join(lines[1:]))
    with pytest.raises(ValueError, match=r"1 of 12 records are missing\. Resume with: variegrad experiment theorem-6"):
        open_run(tmp_path)


def test_a_run_of_an_earlier_version_is_shown_as_it_was_written_down(ran, tmp_path):
    """Its records are no cells of today's experiment; a run of today that lacks records is still refused."""
    folder = shutil.copytree(ran("theorem-6"), tmp_path / "theorem-6")
    lines = (folder / "records.jsonl").read_text()
    today = open_run(folder)
    older = [Record(cell=Cell(experiment="theorem-6", version=0, values=r.cell.values), values=r.values, seconds=1.0)
             for r in today.records.values()]  # fmt: skip
    (folder / "records.jsonl").unlink()
    for record in older:
        write_record(folder, record)
    pack(folder)
    run = open_run(folder)
    assert run.outdated
    assert [f.plain() for f in run.findings] == [f.plain() for f in today.findings]
    assert len(run.records) == len(older)
    for kind in ("png", "svg"):
        (folder / f"theorem-6.{kind}").write_bytes(b"<svg/>")
    page = write_page([(folder, run)], tmp_path).read_text()
    assert "an earlier version of the experiment" in page
    assert (folder / "theorem-6.svg").read_bytes() == b"<svg/>"
    (folder / "records.jsonl").write_text(lines.splitlines(keepends=True)[0])
    with pytest.raises(ValueError, match="records are missing"):
        open_run(folder)


def test_a_folder_of_another_experiment_is_refused(ran):
    with pytest.raises(ValueError, match="it holds the records of theorem-6; name another folder for figure-2a"):
        begin(ran("theorem-6"), experiment("figure-2a"), "smoke", {}, data="", command="")


def test_runs_are_found_in_a_folder_or_below_it(ran, tmp_path):
    assert runs_below(ran("theorem-6")) == [ran("theorem-6")]
    with pytest.raises(ValueError, match=r"there is no experiment\.json here or one folder below"):
        runs_below(tmp_path)
    (tmp_path / "experiment.json").write_text("{")
    with pytest.raises(ValueError, match="not the record of an experiment"):
        open_run(tmp_path)


def test_an_unknown_experiment_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="unknown experiment 'figure2a'; did you mean 'figure-2a'"):
        experiment("figure2a")


def test_without_its_files_digits_stand_in_and_that_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("VARIEGRAD_DATA", str(tmp_path))
    data.problem.cache_clear()
    settings, said = data.settled({"problem": "cifar10-pair", "without_data": "digits", "max_examples": 50})
    assert settings["problem"] == "digits"
    assert said.startswith("The files of cifar10-pair are missing, so digits is used instead (")
    assert settings["examples"] == 50
    assert settings["data"] == data.digest("digits", 50)
    assert "without_data" not in settings


def test_other_data_make_other_cells():
    assert data.digest("digits", 50) != data.digest("digits", 51)


def test_images_of_fewer_pixels_are_means_of_squares(monkeypatch):
    images = torch.arange(2 * 1 * 4 * 4.0).reshape(2, 1, 4, 4)
    whole = TensorDataset(images, torch.tensor([0, 1]))
    loaded = Problem(name="tiny", model=torch.nn.Flatten(), losses=lambda m, b: b[0], train=whole, test=whole)
    monkeypatch.setattr(data, "load", lambda *_, **__: loaded)
    data._whole.cache_clear()
    found, _ = data.problem("tiny/2").train.tensors
    data._whole.cache_clear()
    data.problem.cache_clear()
    assert found.shape == (2, 1, 2, 2)
    assert found[1, 0].tolist() == [[16 + 2.5, 16 + 4.5], [16 + 10.5, 16 + 12.5]]


def test_replication_is_that_of_problems():
    copies = data.replicated("digits", 60, 4, 1)
    assert len(copies) == 60
    assert len(copies.tensors[0].unique(dim=0)) == 15


@pytest.mark.parametrize(
    ("word", "inputs", "parameters"),
    [
        ("mlp:8x4:relu", (6,), 8 * 7 + 4 * 9 + 3 * 5),
        ("convnet:64", (3, 32, 32), None),
        ("mnist-cnn:32", (1, 28, 28), None),
        ("convnet:4:tanh", (1, 8, 8), None),
        ("resnet8", (3, 16, 16), None),
    ],
)
def test_networks_by_their_words(word, inputs, parameters):
    from variegrad.problems import cuda_convnet, mnist_cnn

    found = network(word, inputs, 3 if parameters else 10, seed=1)
    total = sum(p.numel() for p in found.parameters())
    known = {"convnet:64": cuda_convnet, "mnist-cnn:32": mnist_cnn}
    expected = parameters or (sum(p.numel() for p in known[word]().parameters()) if word in known else total)
    assert total == expected
    assert found(torch.zeros(2, *inputs)).shape == (2, 3 if parameters else 10)
    again = network(word, inputs, 3 if parameters else 10, seed=1)
    assert all(map(torch.equal, found.parameters(), again.parameters()))


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match="network: unknown word 'transformer'"):
        network("transformer", (3,), 2, seed=0)
