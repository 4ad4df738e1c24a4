"""`variegrad experiment` and `variegrad report`: from a name to a page, and every mistake in one line."""

import json
import re

import pytest


@pytest.fixture
def small(variegrad, tmp_path):
    """The cheapest experiment, finished."""
    said = variegrad("experiment", "theorem-6", "--profile", "smoke", "--out", tmp_path / "run", "--jobs", 1)
    assert said.code == 0, said.err
    return said, tmp_path / "run"


def test_an_experiment_ends_in_findings_pictures_and_a_page(small):
    said, folder = small
    assert "12 cells computed, 0 finished before" in said.out
    assert "δ = 2" in said.out
    assert {p.name for p in folder.iterdir()} == {
        "experiment.json", "records.jsonl", "report.html", "theorem-6.png", "theorem-6.svg",
    }  # fmt: skip
    page = (folder / "report.html").read_text()
    assert "Theorem 6" in page
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)


def test_the_same_command_again_computes_nothing(small, variegrad):
    _, folder = small
    said = variegrad("experiment", "theorem-6", "--profile", "smoke", "--out", folder, "--jobs", 1)
    assert "0 cells computed, 12 finished before" in said.out


def test_other_seeds_are_other_cells(small, variegrad):
    _, folder = small
    other = ("experiment", "theorem-6", "--profile", "smoke", "--out", folder, "--jobs", 1, "--seed-offset", 50)
    before = (folder / "experiment.json").read_bytes()
    refused = variegrad(*other)
    assert refused.code == 2
    assert "holds a run of profile smoke with other settings" in refused.err
    assert (folder / "experiment.json").read_bytes() == before
    assert "12 cells computed" in variegrad(*other, "--overwrite").out


def test_the_report_gathers_every_run_below_a_folder_and_is_the_same_each_time(small, variegrad):
    _, folder = small
    said = variegrad("report", folder.parent)
    assert said.code == 0
    page = folder.parent / "report.html"
    first = page.read_bytes()
    assert str(page) in said.out
    variegrad("report", folder.parent)
    assert page.read_bytes() == first
    assert json.loads((folder / "experiment.json").read_text())["profile"] == "smoke"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["figure-9"], "unknown experiment 'figure-9'"),
        (["theorem-6", "--profile", "tiny"], "--profile must be one of smoke, small, paper; got 'tiny'"),
        (["theorem-6", "--seed-offset", "-1"], "--seed-offset: must be at least 0 and at most 2147483648; got -1"),
        (["theorem-6", "--profile", "smoke", "--jobs", "0"], "--jobs: must be at least 1 and at most 1024; got 0"),
        (["theorem-6", "--profile", "smoke", "--cluster", "slurm"], "--cluster must be 'ray'; got 'slurm'"),
        (["figure-1b", "--device", "toaster"], "--device must be cpu, cuda, cuda:N or mps; got 'toaster'"),
        (["theorem-6", "--device", "cuda"], "--device cuda: theorem-6 is computed by processes on the CPU"),
        (
            ["critical-batch", "--dry-run"],
            "--dry-run: which cells critical-batch has follows from the results of earlier",
        ),
    ],
)
def test_mistakes_are_one_line(variegrad, tmp_path, arguments, message):
    said = variegrad("experiment", *arguments, "--out", tmp_path / "run")
    assert said.code == 2
    assert message in said.err
    assert "Traceback" not in said.err


def test_a_dry_run_prints_the_cost_and_starts_nothing(variegrad, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = variegrad("experiment", "figure-3c", "--profile", "smoke", "--dry-run")
    assert said.code == 0, said.err
    assert "figure-3bc: cost" in said.out
    assert re.search(r"batch_size 32 +\d+ +16", said.out)
    assert "affordable on one GPU in an hour" in said.out
    assert list(tmp_path.iterdir()) == []


def test_a_report_of_nothing_says_what_to_do(variegrad, tmp_path):
    said = variegrad("report", tmp_path)
    assert said.code == 2
    assert "Run an experiment first" in said.err


def test_ctrl_c_keeps_what_is_finished(variegrad, tmp_path, monkeypatch):
    from variegrad.experiments import theorem_6

    chosen, made = theorem_6.EXPERIMENT, []

    def interrupted(group):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(group)
        return theorem_6.run(group)

    monkeypatch.setattr(theorem_6, "EXPERIMENT", type(chosen)(**{**vars(chosen), "run": interrupted}))
    said = variegrad("experiment", "theorem-6", "--profile", "smoke", "--out", tmp_path / "run", "--jobs", 1)
    assert said.code == 130
    assert "finished cells are kept" in said.err
    monkeypatch.undo()
    said = variegrad("experiment", "theorem-6", "--profile", "smoke", "--out", tmp_path / "run", "--jobs", 1)
    assert "9 cells computed, 3 finished before" in said.out


def test_the_list_names_experiments_and_profiles(variegrad):
    said = variegrad("list").out
    assert "figure-2a" in said
    assert "smoke, small, paper" in said
