"""`variegrad plan`: every constant with its standing, the theorems, and a recommendation by its own formula."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import typer
from sklearn.datasets import dump_svmlight_file
from typer.testing import CliRunner

from variegrad.cli.plan import plan
from variegrad.decision.timing import fitted

app = typer.Typer()
app.command()(plan)

SMALL = ["--max-examples", "150", "--passes", "1", "--points", "3"]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments, *SMALL], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_a_network_gets_estimates_theorems_and_a_recommendation() -> None:
    text = run("digits")
    for label in (
        "inf B_D = ",
        "β = ",
        "M² = ",
        "μ = ",
        "F₀ − F* = ",
        "Theorem 2",
        "Theorem 3",
        "batch size",
        "limited by",
    ):
        assert label in text
    assert "estimate" in text
    assert "Theorem 9" not in text  # not convex


def test_the_recommendation_follows_from_its_times_and_its_bound() -> None:
    times = [
        "--seconds-per-step",
        "0.001",
        "--seconds-per-example",
        "4e-4",
        "--communication",
        "0.009",
        "--workers",
        "4",
    ]
    found = json.loads(run("digits", "--json", *times))
    mean = found["harmonic_mean"]
    assert found["step_time"]["seconds_per_step"] == pytest.approx(0.001)
    assert found["time_limit"]["value"] == pytest.approx(math.sqrt(0.01 * (mean - 1) / 1e-4))
    assert found["limits"]["noise"] == pytest.approx(1 + mean)
    assert found["batch_size"] == math.floor(min(float(size) for size in found["limits"].values()))
    assert found["limited_by"] == min(found["limits"], key=lambda name: float(found["limits"][name]))
    assert found["learning_rate"] == pytest.approx(found["step_size"] * found["batch_size"])


def test_a_slow_step_never_recommends_a_batch_that_wastes_most_of_its_examples() -> None:
    found = json.loads(run("digits", "--json", "--seconds-per-step", "10", "--seconds-per-example", "1e-9"))
    assert found["efficiency"] >= 0.49
    assert found["limited_by"] in {"noise", "data"}


def test_the_same_batch_in_every_call() -> None:
    assert len({json.loads(run("digits", "--json"))["batch_size"] for _ in range(3)}) == 1


def test_the_learning_rate_of_adam_is_not_taken_for_that_of_the_measured_run() -> None:
    result = CliRunner().invoke(app, ["digits", "--optimizer", "adamw", "--learning-rate", "0.001"])
    assert result.exit_code != 0
    assert "one of plain SGD; omit it" in str(result.exception)


def test_a_link_adds_a_table_over_workers() -> None:
    times = ["--seconds-per-step", "0.001", "--seconds-per-example", "1e-4"]
    rows = json.loads(run("digits", "--json", "--link", "1Gbit/s", *times))["at_workers"]
    assert [row["workers"] for row in rows] == [4**k for k in range(9)]
    assert [row["measured"] for row in rows] == [True] + 8 * [False]
    assert rows[0]["speed_up"] == 1
    for row in rows:
        assert row["batch_size"] >= row["workers"]
        steps = row["seconds_per_step"]
        bits = 8 * 4 * 2410 * 2 * (row["workers"] - 1) / row["workers"]
        latency = 2 * 5e-5 * math.ceil(math.log2(row["workers"]))
        assert steps == pytest.approx(0.001 + 1e-4 * row["batch_size"] / row["workers"] + bits / 1e9 + latency)


@pytest.mark.parametrize("link", ["1", "fast", "0Gbit/s", "1GB/s", "-1Gbit/s"])
def test_a_link_that_is_no_rate_is_refused_before_the_work(link: str) -> None:
    assert CliRunner().invoke(app, ["digits", "--link", link]).exit_code == 2


def test_sparse_data_stay_sparse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("variegrad.problems.libsvm.as_dataset.__kwdefaults__", {"dense_bytes": 0})
    X = scipy.sparse.random(150, 40, 0.1, random_state=0, format="csr")
    path = tmp_path / "data.svm"
    dump_svmlight_file(X, (np.arange(150) % 2), str(path), zero_based=False)
    found = json.loads(run(str(path), "--json"))
    assert found["constants"]["β"]["certified"]
    assert found["stability"]["theorem"].startswith("Theorem 9")


@pytest.mark.parametrize(
    ("slopes", "resolved"), [([1e-6] * 15, True), ([1e-6] * 11 + [-1e-6] * 4, False), ([0.0] * 15, False)]
)
def test_a_step_time_is_resolved_if_its_slope_is(slopes: list[float], resolved: bool) -> None:
    timed = fitted([16, 256], [[1e-3, 1e-3 + slope * 240] for slope in slopes])
    assert timed.resolved is resolved


def test_a_slow_round_does_not_move_the_fit() -> None:
    rounds = [[1e-3, 2e-3]] * 14 + [[5e-3, 1.0]]
    timed = fitted([16, 256], rounds)
    assert timed.seconds_per_example.value == pytest.approx(1e-3 / 240)
    assert timed.seconds_per_step == pytest.approx(1e-3 - 16e-3 / 240)


def test_a_linear_model_gets_certificates_and_its_stability(tmp_path: Path) -> None:
    X = np.random.default_rng(0).standard_normal((150, 5))
    path = tmp_path / "data.svm"
    dump_svmlight_file(X, (X[:, 0] > 0).astype(int), str(path), zero_based=False)
    found = json.loads(run(str(path), "--json"))
    for name in ("β", "M²", "inf B_D, any w"):
        assert found["constants"][name]["certified"]
    assert found["constants"]["inf B_D"]["value"] >= found["constants"]["inf B_D, any w"]["value"] >= 1
    assert found["stability"]["theorem"].startswith("Theorem 9")


def test_an_l2_term_brings_theorem_5_and_takes_the_certificates_away(tmp_path: Path) -> None:
    X = np.random.default_rng(0).standard_normal((150, 5))
    path = tmp_path / "data.svm"
    dump_svmlight_file(X, (X[:, 0] > 0).astype(int), str(path), zero_based=False)
    text = run(str(path), "--l2", "0.1")
    assert "Theorem 5" in text
    assert "any w" not in text
