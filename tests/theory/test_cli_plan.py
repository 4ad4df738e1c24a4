"""`variegrad plan`: every constant with its standing, the theorems, and a recommendation by its own formula."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import typer
from sklearn.datasets import dump_svmlight_file
from typer.testing import CliRunner

from variegrad.cli.plan import plan

app = typer.Typer()
app.command()(plan)

SMALL = ["--max-examples", "150", "--passes", "1", "--points", "3"]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments, *SMALL], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_a_network_gets_estimates_theorems_and_a_recommendation() -> None:
    text = run("digits")
    for label in ("inf B_D = ", "β = ", "M² = ", "μ = ", "F₀ − F* = ", "Theorem 2", "Theorem 3", "Recommended", "γ = "):
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
    bound = found["constants"]["inf B_D"]["value"]
    assert found["seconds_per_step"] == pytest.approx(0.01)
    assert found["seconds_per_example"] == pytest.approx(1e-4)
    assert found["choice"]["continuous"] == pytest.approx(math.sqrt(0.01 * (bound - 1) / 1e-4))
    assert abs(found["choice"]["batch_size"] - found["choice"]["continuous"]) < 1


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
