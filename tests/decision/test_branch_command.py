"""`variegrad branch`: an interval of the critical batch size for a problem, resumable, with errors before the work."""

import json

import pytest
from typer.testing import CliRunner

from variegrad.cli.app import app

SMALL = ["branch", "digits", "--learning-rate", "0.1", "--window", "512", "--windows", "4", "--after", "0.2"]


def test_it_prints_the_interval_and_resumes(tmp_path):
    ledger = str(tmp_path / "windows.jsonl")
    first = CliRunner().invoke(app, [*SMALL, "--json", "--ledger", ledger])
    assert first.exit_code == 0, first.output
    found = json.loads(first.stdout)
    assert found["low"] >= 16
    assert found["examples"] % 512 == 0
    assert {tested["verdict"] for tested in found["tested"]} <= {"accepted", "refused", "undecided"}
    lines = len((tmp_path / "windows.jsonl").read_text().splitlines())
    again = CliRunner().invoke(app, [*SMALL, "--json", "--ledger", ledger])
    assert json.loads(again.stdout) == found
    assert len((tmp_path / "windows.jsonl").read_text().splitlines()) == lines


@pytest.mark.parametrize("other", [["--learning-rate", "0.2"], ["--momentum", "0.5"], ["--optimizer", "adamw"]])
def test_windows_of_another_optimizer_are_not_taken_over(tmp_path, other):
    # Without training to a checkpoint both begin at the same loss.
    begin = [*SMALL, "--after", "0", "--budget", "1024", "--ledger", str(tmp_path / "windows.jsonl")]
    assert CliRunner().invoke(app, begin).exit_code == 0
    found = CliRunner().invoke(app, [*begin, *other])
    assert found.exit_code != 0
    assert "does not contain windows of this call" in str(found.exception)


def test_adam_with_half_lives():
    found = CliRunner().invoke(app, [*SMALL, "--optimizer", "adamw", "--rule", "square-root", "--half-lives"])
    assert found.exit_code == 0, found.output
    assert "critical batch size" in found.stdout


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--batch-size", "0"], "batch"),
        (["--learning-rate", "-1"], "learning-rate"),
        (["--momentum", "1"], "momentum"),
        (["--after", "-1"], "after"),
        (["--tolerance", "2"], "tolerance"),
        (["--windows", "1"], "windows"),
        (["--window", "7"], "window"),
    ],
)
def test_bad_options_are_named(options, named):
    found = CliRunner().invoke(app, ["branch", "digits", *options])
    assert found.exit_code != 0
    assert named in str(found.exception) + found.output
