"""`variegrad measure`: the table, one strict JSON document, one line for bad input, and what Ctrl-C keeps."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from variegrad import DropConnect, measure
from variegrad.cli import main
from variegrad.cli.table import examples
from variegrad.problems import load

SMALL = ("--passes", "1", "--points", "3", "--max-examples", "100", "--batch-size", "20")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a user's module, as the current one."""
    shutil.copy(Path(__file__).parent / "own_problem.py", tmp_path / "own_problem.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("own_problem", None)


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def one_line(said):
    assert said.code == 2
    assert said.out == ""
    assert said.err.startswith("variegrad: ")
    assert said.err.count("\n") == 1
    assert said.err.endswith("\n")
    return said.err


# --- what it prints ---


def test_the_table_shows_what_measure_finds(variegrad):
    said = variegrad("measure", "digits", *SMALL, "--mechanism", "dropconnect:0.4", "--mechanism", "quantize")
    assert said.code == 0
    lines = [line.rstrip() for line in said.out.splitlines()]
    assert lines[0] == "Gradient diversity along digits"
    heads = ["pass", "B_D", "B_wor", "(0.4)", "()", "Δ_D", "loss", "accuracy", "test"]
    assert f"{lines[1]} {lines[2]}".split() == ["DropConnect", "Quantize", *heads]
    assert [line.split()[0] for line in lines[3:6]] == ["0.00", "0.20", "1.00"]
    problem = load("digits", max_examples=100)
    start = measure(problem.model, problem.losses, problem.train)
    first = lines[3].replace(" %", "%").split()
    assert first[1] == f"{start.batch_size_bound:#.3g}"
    assert first[3] == examples(start.effective_bound_with(DropConnect(0.4)))
    assert "harmonic mean over the run" in lines[-1]
    assert "Your batch of 20 is" in lines[-1]


def test_the_json_is_one_strict_document_with_progress_on_standard_error(variegrad):
    said = variegrad("measure", "digits", *SMALL, "--json", "--seed", 3)
    assert said.code == 0
    found = strict(said.out)
    assert found["schema"] == "variegrad.measure/1"
    assert found["problem"]["name"] == "digits"
    assert found["problem"]["examples"] == 100
    assert found["settings"]["seed"] == 3
    assert found["interrupted"] is False
    assert len(found["points"]) == 3
    assert said.err.count("measurement") == 3
    for point in found["points"]:
        bound = point["count"] * point["sum_sq_norms"] / point["sq_norm_of_sum"]
        assert point["batch_size_bound"] == pytest.approx(bound)
        assert point["mechanisms"]["DropConnect(0.4)"]["effective_bound"] == pytest.approx(bound / 0.6)
        parts = point["per_parameter"].values()
        assert sum(part["share"] for part in parts) == pytest.approx(1)
        harmonic = sum(p["sum_sq_norms"] / point["sum_sq_norms"] / p["batch_size_bound"] for p in parts)
        assert harmonic == pytest.approx(1 / bound)
    again = strict(variegrad("measure", "digits", *SMALL, "--json", "--seed", 3).out)
    assert again["points"] == found["points"]


def test_a_batch_holds_all_examples_where_there_are_fewer_than_usual(variegrad):
    said = variegrad("measure", "digits", "--max-examples", 30, "--passes", 2, "--points", 2, "--json")
    found = strict(said.out)
    assert found["settings"]["batch_size"] == 30
    assert found["points"][-1]["updates"] == 2
    assert "Your batch of 30 is" in found["advice"]


def test_zero_gradients_are_said_in_words_and_stay_json(variegrad, own):
    said = variegrad("measure", "own_problem:flat", "--points", 2, "--json")
    found = strict(said.out)
    assert found["points"][0]["batch_size_bound"] is None
    assert found["points"][0]["flags"] == ["undefined"]
    assert found["advice"].startswith("No advice on batch sizes: every gradient was zero")
    assert "undefined: all gradients are zero" in variegrad("measure", "own_problem:flat", "--points", 2).out


def test_a_problem_of_one_s_own_from_the_current_directory(variegrad, own):
    said = variegrad("measure", "own_problem:problem", "--points", 2)
    assert said.code == 0
    assert "Gradient diversity along own" in said.out


def test_names_are_printed_as_they_are(variegrad, own):
    said = variegrad("measure", "own_problem:bracketed", "--points", 2, "--report", "[red]runs")
    assert said.code == 0
    assert "along [bold]mine[/x]" in said.out
    assert "report: [red]runs/report.html" in said.out


def test_the_report_is_written_and_named(variegrad, tmp_path):
    said = variegrad("measure", "digits", *SMALL, "--report", tmp_path / "runs" / "a", "--json")
    assert f"report: {tmp_path}/runs/a/report.html" in said.err
    assert strict((tmp_path / "runs" / "a" / "measure.json").read_text()) == strict(said.out)
    assert (tmp_path / "runs" / "a" / "bound-along-run.png").exists()


# --- bad input ---

BAD = {
    "unknown problem": (["digit"], "unknown problem 'digit'; did you mean 'digits'?"),
    "unknown file": (["absent.svm"], "absent.svm: no such file"),
    "missing data": (["mnist", "--data-root", "/nowhere"], "mnist needs the files train-images-idx3-ubyte.gz"),
    "batch size 0": (["digits", "--batch-size", "0"], "--batch-size: must be at least 1; got 0"),
    "points 0": (["digits", "--points", "0"], "--points: must be at least 1 and at most 100000; got 0"),
    "negative passes": (["digits", "--passes", "-1"], "--passes: must be at least 0; got -1.0"),
    "infinite passes": (["digits", "--passes", "inf"], "--passes: must be at least 0; got inf"),
    "step size that is none": (["digits", "--step-size", "nan"], "--step-size: must be more than 0; got nan"),
    "no examples": (["digits", "--max-examples", "0"], "--max-examples: must be at least 1; got 0"),
    "unknown mechanism": (
        ["digits", "--mechanism", "drop"],
        "--mechanism: unknown 'drop'; choose one of dropconnect:P",
    ),
    "mechanism without number": (["digits", "--mechanism", "langevin:x"], "'x' is not a number"),
    "probability 1": (["digits", "--mechanism", "dropconnect:1"], "p must lie in [0, 1); got 1.0"),
    "data smaller than a batch": (
        ["digits", "--max-examples", "9", "--batch-size", "10"],
        "--batch-size must be at most the number of examples, each of which is drawn once per pass; got 10 for 9",
    ),
    "a word for a number": (
        ["digits", "--batch-size", "many"],
        "--batch-size: must be a whole number; got 'many'",
    ),
    "unknown option": (["digits", "--bach-size", "3"], "No such option: --bach-size"),
    "unknown module": (["nosuchmodule:f"], "importing nosuchmodule failed"),
    "unknown function": (["own_problem:f"], "module own_problem has no attribute 'f'"),
    "not a function": (["own_problem:os"], "must be a function that returns a Problem"),
    "empty training set": (["own_problem:empty"], "own: the training set has no examples"),
    "scalar loss": (["own_problem:scalar"], "got a scalar. Compute the loss with reduction='none'"),
    "input that is none": (["own_problem:not_finite"], "the loss of example 7 of the batch is nan"),
    "a defect in losses": (["own_problem:broken"], "KeyError: 'nothing' (where: set VARIEGRAD_TRACEBACK=1)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_two(case, variegrad, own):
    arguments, message = BAD[case]
    assert message in one_line(variegrad("measure", *arguments))


def test_a_report_cannot_be_written_into_a_file(variegrad, tmp_path):
    (tmp_path / "file").write_text("kept")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "is not a folder" in one_line(variegrad("measure", "digits", "--report", folder))
    assert (tmp_path / "file").read_text() == "kept"


def test_an_unknown_command_is_one_line(variegrad):
    assert "No such command 'mesure'" in one_line(variegrad("mesure"))


def test_the_traceback_is_there_for_who_asks(monkeypatch, own):
    monkeypatch.setenv("VARIEGRAD_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["variegrad", "measure", "own_problem:broken"])
    with pytest.raises(KeyError, match="nothing"):
        main()


# --- runs that end early ---


def test_a_run_that_diverges_keeps_what_was_measured(variegrad, tmp_path):
    said = variegrad("measure", "digits", *SMALL, "--step-size", "1e30", "--json", "--report", tmp_path / "r")
    assert said.code == 2
    found = strict(said.out)
    assert found["interrupted"] is True
    assert 1 <= len(found["points"]) < 3
    assert (tmp_path / "r" / "report.html").exists()
    last = said.err.splitlines()[-1]
    assert last.startswith("variegrad: stopped after 1 of 3 measurements: at update ")
    assert "with step size 1e+30 of the summed gradient" in last
    assert "Traceback" not in said.err


def test_ctrl_c_keeps_what_was_measured(variegrad, own):
    said = variegrad("measure", "own_problem:interrupting", "--json", "--batch-size", 5, "--report", "runs")
    assert said.code == 130
    found = strict(said.out)
    assert found["interrupted"] is True
    assert 1 <= len(found["points"]) < 12
    assert strict(Path("runs/measure.json").read_text()) == found
    assert said.err.splitlines()[-1] == f"variegrad: interrupted after {len(found['points'])} of 12 measurements"


# --- the real thing ---


def process(*arguments, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "variegrad", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment, **options)


def test_as_a_process_of_its_own(own):
    good = process("measure", "own_problem:problem", "--points", "2", cwd=own)
    assert (good.returncode, good.stderr.count("\n")) == (0, 2)
    assert "Gradient diversity along own" in good.stdout
    bad = process("measure", "own_problem:interrupting", "--batch-size", "5", cwd=own)
    assert bad.returncode == 130
    assert "Gradient diversity along own" in bad.stdout
    assert "Traceback" not in bad.stderr


# --- real data ---


@pytest.mark.parametrize(
    ("name", "mechanism"),
    [("mnist", "dropconnect:0.4"), ("a9a", "quantize"), ("sparse/a9a.svm.gz", "langevin:0.1")],
)
def test_real_data_end_to_end(variegrad, data_root, name, mechanism):
    said = variegrad(
        "measure", name, "--data-root", data_root, "--max-examples", 64, "--passes", 1, "--points", 2, "--json",
        "--mechanism", mechanism, "--batch-size", 16,
    )  # fmt: skip
    assert said.code == 0, said.err
    found = strict(said.out)
    assert [point["updates"] for point in found["points"]] == [0, 4]
    assert all(point["count"] == 64 and point["batch_size_bound"] >= 1 for point in found["points"])
