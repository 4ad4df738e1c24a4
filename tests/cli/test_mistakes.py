"""Every wrong or awkward invocation, made from the options that the commands have: one line, code 2, nothing lost.

The table grows by itself: an option that is added to a command is tried without its value, with bad numbers, with
places that cannot be written into, and so on.
"""

import inspect
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import typer

from variegrad.cli.app import app

GROUP = typer.main.get_command(app)
COMMANDS = {name: GROUP.commands[name] for name in GROUP.commands}
VALUED = [
    (name, option)
    for name, command in COMMANDS.items()
    for option in command.params
    if option.param_type_name == "option" and not option.is_flag
]
FOLDERS = {"report", "out", "tensorboard", "scratch"}
WORDS = {"mechanism", "data_root", "profile", "cluster", "weights", "optimizer", "rule", "ledger", *FOLDERS}
NUMBERS = [(name, option) for name, option in VALUED if option.name not in WORDS]


def flag(option):
    return max(option.opts, key=len)


def positional(name):
    """Arguments that a command needs, good ones."""
    return {"bound": ["a.svm"], "monitor": ["log.jsonl"], "experiment": ["theorem-6"], "report": ["."]}.get(name, [])


def ids(cases):
    return [" ".join(map(str, case[:1])) + " " + flag(case[1]) + " " + " ".join(map(str, case[2:])) for case in cases]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder with a good file for each command, in which nothing may appear or change."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "a.svm").write_text("1 1:1\n-1 2:1\n")
    (folder / "log.jsonl").write_text("")
    (folder / "file").write_text("kept")
    (folder / "leaves_when_called.py").write_text("import sys\n\ndef problem():\n    sys.exit(3)\n")
    (folder / "leaves_at_once.py").write_text("import sys\nsys.exit('bye')\n")
    (folder / "gives_nothing.py").write_text("def problem():\n    pass\n")
    (folder / "empty").mkdir()
    (folder / "other").mkdir()
    (folder / "other/experiment.json").write_text("{}")
    np.save(folder / "table.npy", np.eye(3))
    np.save(folder / "objects.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    (folder / "archive.pt").write_bytes(b"PK\x03\x04")
    (folder / "own.py").write_text("def problem():\n    pass\n")
    (folder / "damaged").mkdir()
    (folder / "damaged/experiment.json").write_text("not json")
    (folder / "dangling").symlink_to("gone")
    os.mkfifo(folder / "pipe")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("VARIEGRAD_DATA", os.environ.get("VARIEGRAD_DATA", ""))  # `experiment --data-root` sets it
    monkeypatch.setattr("variegrad.along.measure_along", _never)
    monkeypatch.setattr("variegrad.theory.glm_bound", _never)
    monkeypatch.setattr("variegrad.theory.sparse_bound", _never)
    monkeypatch.setattr("variegrad.experiments.sweep.sweep", _never)
    monkeypatch.setattr("variegrad.cli.train.train", _never)
    before = snapshot(folder)
    yield folder
    assert snapshot(folder) == before


def _never(*_arguments, **_options):
    raise AssertionError("computed although the command line is wrong")


def snapshot(folder):
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.name != "__pycache__" and path.suffix != ".pyc"
    }


def one_line(said, *names):
    assert said.code == 2, said.err
    assert said.out == ""
    assert said.err.startswith("variegrad: ")
    assert said.err.count("\n") == 1
    assert said.err.endswith("\n")
    assert len(said.err) < 800  # the names of the files of CIFAR-10 among it
    for name in names:
        assert name in said.err
    for symptom in (
        "Traceback",
        "AssertionError",
        "NoneType",
        "object at 0x",
        "[Errno",
        "Value error",
        "VARIEGRAD_TRACEBACK",
    ):
        assert symptom not in said.err


# --- an option and its value ---


@pytest.mark.parametrize(("name", "option"), VALUED, ids=ids(VALUED))
def test_an_option_without_its_value(variegrad, here, name, option):
    one_line(variegrad(name, *positional(name), flag(option)), flag(option))


@pytest.mark.parametrize(("name", "option"), VALUED, ids=ids(VALUED))
def test_an_option_followed_by_another(variegrad, here, name, option):
    one_line(variegrad(name, *positional(name), flag(option), "--json"), flag(option))


@pytest.mark.parametrize(("name", "option"), VALUED, ids=ids(VALUED))
def test_an_empty_value(variegrad, here, name, option):
    one_line(variegrad(name, *positional(name), flag(option), ""), flag(option))


BAD_NUMBERS = [(*case, bad) for case in NUMBERS for bad in ("many", "nan", "inf", "-inf", "-1", "1e400", "--", "0x10")]


@pytest.mark.parametrize(("name", "option", "bad"), BAD_NUMBERS, ids=ids(BAD_NUMBERS))
def test_a_number_that_is_none_or_out_of_range(variegrad, here, name, option, bad):
    one_line(variegrad(name, *positional(name), flag(option), bad), flag(option))


AT_LEAST_ONE = {"batch_size", "points", "max_examples", "workers", "jobs", "bound_every", "checkpoint_every"}
POSITIVE = {"step_size", "learning_rate", "accuracy", "delta", "tolerance", "seconds_per_example", "timeout",
            "evaluate_every", "target_accuracy", "window", "windows", "budget"}  # fmt: skip
ZERO = [(name, option) for name, option in NUMBERS if option.name in AT_LEAST_ONE | POSITIVE]


@pytest.mark.parametrize(("name", "option"), ZERO, ids=ids(ZERO))
def test_a_zero_where_none_is_allowed(variegrad, here, name, option):
    one_line(variegrad(name, *positional(name), flag(option), "0"), flag(option), "got 0")


def test_fractions_are_no_counts(variegrad, here):
    for name, option in NUMBERS:
        if option.name in AT_LEAST_ONE | {"seed", "seed_offset", "skip_not_finite"}:
            one_line(variegrad(name, *positional(name), flag(option), "2.5"), flag(option))


@pytest.mark.parametrize("name", COMMANDS)
def test_options_and_arguments_that_do_not_exist(variegrad, here, name):
    one_line(variegrad(name, *positional(name), "--no-such-option", "1"), "--no-such-option")
    one_line(variegrad(name, *positional(name), "--json=1"), "--json")
    one_line(variegrad(name, ".", "b", "c"), "unexpected extra argument")


def test_an_unknown_command(variegrad, here):
    one_line(variegrad("mesure"), "mesure")


# --- places to write into ---

OUTPUTS = [(name, option) for name, option in VALUED if option.name in FOLDERS]
NOWHERE = ["file", "file/below", "/proc/x", "/proc/x/y", "/dev/null", "/dev/null/x", "pipe", "n\0l", "x" * 300]
UNWRITABLE = [(*case, place) for case in OUTPUTS for place in NOWHERE]


@pytest.mark.parametrize(("name", "option", "place"), UNWRITABLE, ids=ids([(*c[:2], c[2][:12]) for c in UNWRITABLE]))
def test_a_place_that_cannot_be_written_into_is_found_before_the_work(variegrad, here, name, option, place):
    one_line(variegrad(name, *positional(name), flag(option), place), flag(option))


@pytest.mark.parametrize(
    ("command", "results"),
    [
        (("measure", "digits", "--report"), ["measure.json"]),
        (("measure", "digits", "--report"), ["report.html"]),
        (("train", "digits", "--out"), ["train.json", "weights.safetensors"]),
    ],
)
def test_a_folder_with_results_is_not_written_into(variegrad, tmp_path, here, command, results):
    used = tmp_path / "used"
    used.mkdir()
    for name in results:
        (used / name).write_text("{}")
    before = snapshot(used)
    one_line(variegrad(*command, used), str(used))
    assert snapshot(used) == before


# --- things to read ---

READ = [
    (("measure", "absent.svm"), "absent.svm"),
    (("measure", "sparse/a9a.svm.gz", "--data-root", "nowhere"), "fetch('a9a'"),
    (("measure", "mnist", "--data-root", "nowhere"), "--data-root"),
    (("measure", "."), "is a folder"),
    (("measure", "digit"), "did you mean 'digits'"),
    (("measure", "absent.py:problem"), "no such file: absent.py"),
    (("measure", "absent:problem"), "absent"),
    (("measure", "file.py"), "name the function in it"),
    (("measure", "--weights", "absent"), "--weights"),
    (("measure", "--weights", "file"), "--weights"),
    (("measure", "--weights", "."), "--weights"),
    (("measure", "--batch-size", "9999"), "--batch-size"),
    (("measure", "--step-size", "1", "--learning-rate", "1"), "--learning-rate"),
    (("measure", "--mechanism", "drop"), "--mechanism"),
    (("measure", "--mechanism", "dropconnect:2"), "must lie in [0, 1)"),
    (("measure", "--mechanism", "dropconnect:0.5,quantize"), "Repeat --mechanism"),
    (("plan", "--weights", "absent"), "--weights"),
    (("plan", "digit"), "did you mean 'digits'"),
    (("train", "--weights", "absent"), "--weights"),
    (("train", "--mechanism", "quantize", "--mechanism", "langevin:1"), "--mechanism"),
    (("train", "digit"), "did you mean 'digits'"),
    (("bound",), "Missing argument"),
    (("bound", "absent.svm"), "absent.svm"),
    (("bound", "file"), "the label must be a number"),
    (("bound", "."), "is a folder"),
    (("bound", "a.svm", "--scratch", "nowhere"), "--scratch"),
    (("bound", "a9a", "--data-root", "nowhere"), "--data-root"),
    (("monitor",), "Missing argument"),
    (("monitor", "absent"), "absent"),
    (("monitor", "."), "folder"),
    (("monitor", "file"), "file"),
    (("report", "absent"), "absent"),
    (("report", "empty"), "variegrad experiment theorem-6"),
    (("report", "file"), "FOLDER"),
    (("report", "pipe"), "FOLDER"),
    (("monitor", "pipe"), "pipe or device"),
    (("bound", "pipe"), "pipe or device"),
    (("bound", "/dev/zero"), "pipe or device"),
    (("bound", "/dev/null"), "pipe or device"),
    (("measure", "pipe"), "pipe"),
    (("measure", "table.npy"), "is not text"),
    (("measure", "--weights", "pipe"), "--weights"),
    (("branch", "--ledger", "pipe"), "--ledger"),
    (("measure", "--data-root", "file"), "--data-root"),
    (("experiment", "figure-1b", "--data-root", "nowhere"), "--data-root"),
    (("experiment", "theorem-6", "--out", "other"), "other"),
    (("measure", "leaves_when_called.py:problem"), "SystemExit"),
    (("measure", "gives_nothing.py:problem"), "it returned None"),
    (("measure", "leaves_at_once.py:problem"), "SystemExit"),
    (("measure", "--seed", "1" + "0" * 25), "--seed"),
    (("measure", "--points", "1" + "0" * 12), "--points"),
    (("plan", "--accuracy", "1e-300"), "--accuracy"),
    (("experiment", "theorem-6", "--jobs", "1" + "0" * 25), "--jobs"),
    (("experiment", "theorem-6", "--seed-offset", "1" + "0" * 25), "--seed-offset"),
    (("measure", "--mechanism", "langevin:nan"), "--mechanism 'langevin:nan'"),
    (("measure", "--mechanism", "dropconnect:-1"), "--mechanism 'dropconnect:-1'"),
    (("measure", "--passes", "3,5"), "must be a number; got '3,5'"),
    (("measure", "--batch-size", "1e3"), "must be a whole number; got '1e3'"),
    (("measure", "--step-size", "1", "--step-size", "x"), "--step-size"),
    (("branch", "--ledger", "."), "--ledger"),
    (("branch", "--ledger", "file/x"), "--ledger"),
    (("branch", "--ledger", "/proc/x/y"), "--ledger"),
    (("branch", "--optimizer", "adagrad"), "--optimizer"),
    (("branch", "--rule", "cubic"), "--rule"),
    (("branch", "--weights", "absent"), "--weights"),
    (("experiment",), "Missing argument"),
    (("experiment", "figure-9"), "figure-9"),
    (("experiment", "theorem-6", "--profile", "tiny"), "--profile"),
    (("experiment", "theorem-6", "--cluster", "slurm"), "--cluster"),
    (("plan", "digits", "--schedule", "nemo"), "--schedule"),
    (("branch", "--ledger", "a.svm"), "was not written by `variegrad branch`"),
    (("branch", "--ledger", "file"), "--ledger"),
    (("measure", "--step-size", "1e-400"), "must be more than 0; got 0.0."),
    (("measure", "own.py:problem:more"), "write your own function as mine.py:function"),
    (("measure", "DIGITS"), "did you mean 'digits'"),
    (("measure", "--weights", "archive.pt"), "archive.pt: cannot be read"),
    (("measure", "os.path:join"), "the function raised TypeError"),
    (("measure", "os:getcwd"), "it returned a str"),
    (("measure", "--passes", "1/2"), "must be a number; got '1/2'"),
    (("measure", "--learning-rate", "0,1"), "must be a number; got '0,1'"),
    (("measure", "--mechanism", "dropconnect"), "dropconnect:P"),
    (("measure", "--mechanism", "dropconnect:0.4+langevin:1"), "choose one of"),
    (("train", "--target-accuracy", "95%"), "must be a number; got '95%'"),
    (("train", "--resume"), "--out"),
    (("train", "--per-worker"), "--mechanism"),
    (("plan", "--mechanism", "quantize"), "--mechanism: a plan has a model of the time with DropConnect only"),
    (("plan", "--mechanism", "langevin:1"), "--mechanism: a plan has a model of the time with DropConnect only"),
    (("plan", "--link", "1Gb"), "1Gbit/s"),
    (("plan", "--link", "0Mbit/s"), "--link"),
    (("branch", "--window", "100", "--batch-size", "64"), "--window"),
    (("branch", "--momentum", "1"), "less than 1"),
    (("bound", "dangling"), "no such file"),
    (("bound", "http://example.org/a.svm"), "no such file"),
    (("bound", "objects.npy"), "real numbers"),
    (("bound", "table.npy", "table.npy"), "unexpected extra argument"),
    (("report", "damaged"), "not the record of an experiment"),
    (("help",), "No such command"),
]


@pytest.mark.parametrize(("arguments", "named"), READ, ids=[" ".join(case[0]) for case in READ])
def test_something_that_cannot_be_read(variegrad, here, arguments, named):
    one_line(variegrad(*arguments), named)


def test_the_options_of_train_are_those_of_the_work():
    from variegrad.cli.train import train_command
    from variegrad.cli.train_options import train

    outer, inner = (set(inspect.signature(function).parameters) for function in (train, train_command))
    assert outer - {"learning_rate"} == inner


def test_the_table_is_large():
    assert 3 * len(VALUED) + len(BAD_NUMBERS) + len(ZERO) + len(UNWRITABLE) + len(READ) > 400
    assert os.environ.get("RANK") is None


def test_help_of_every_command(variegrad):
    for name, command in COMMANDS.items():
        said = variegrad(name, "--help")
        assert said.code == 0
        for option in command.params:
            if option.param_type_name == "option":
                assert option.help, option.name


# --- terminals and encodings ---


def measured(bound):
    from variegrad.along import Point
    from variegrad.moments import Diversity

    diversity = Diversity(count=60_000, dimension=3, sum_sq_norms=1.0, sq_norm_of_sum=60_000 / bound)
    return Point(updates=0, passes=bound / 7, loss=1 / bound, accuracy=0.98765, test_loss=1.0, test_accuracy=0.5,
                 diversity=diversity)  # fmt: skip


@pytest.mark.parametrize("width", [40, 44, 60, 79, 80, 100, 120, 200])
def test_no_number_is_cut_at_any_width(width, capsys):
    from rich.console import Console

    from variegrad.cli.table import examples, percent, print_table
    from variegrad.mechanisms import DropConnect, Langevin

    points = [measured(bound) for bound in (1.5, 86.21, 999.96, 12_345.6, 9_876_543.2)]
    mechanisms = [DropConnect(0.4), DropConnect(0.5, rescale=False), Langevin(0.001)]
    print_table("a name that is longer than forty columns of text, as they may be", points, mechanisms,
                Console(width=width, force_terminal=True, color_system=None))  # fmt: skip
    out = capsys.readouterr().out
    words = out.split()
    for point in points:
        d = point.diversity
        for value in (d.batch_size_bound, d.diversity, *(d.effective_bound_with(m) for m in mechanisms)):
            assert examples(value) in words
        assert f"{point.passes:.2f}" in words
        assert f"{point.loss:.4g}" in words
        assert percent(point.accuracy).split()[0] in words
    assert "…" not in out
    heads = re.findall(r"[A-Za-z_Δ]+", out)
    assert {"B_D", "B_wor", "Δ_D", "loss", "accuracy", "test", "DropConnect", "Langevin"} <= set(heads)
    if width >= 60:
        assert max(len(line.rstrip()) for line in out.splitlines()[1:]) <= width


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437", "utf-8", "utf-16"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("measure", "digits", "--max-examples", "40", "--points", "2", "--passes", "1"),
        ("measure", "digits", "--max-examples", "40", "--points", "2", "--passes", "1", "--json"),
        ("measure", "--batch-size", "0"),
        ("list",),
        ("--help",),
        ("bound", "a.svm"),
    ],
    ids=lambda arguments: " ".join(arguments)[:24],
)
def test_any_encoding_of_the_output(encoding, arguments, tmp_path, monkeypatch):
    import sys

    from variegrad.cli import main

    (tmp_path / "a.svm").write_text("1 1:1\n-1 2:1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["variegrad", *arguments])
    with (tmp_path / "out").open("w", encoding=encoding) as out, (tmp_path / "err").open("w", encoding=encoding) as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as ended:
            main()
    text = Path(tmp_path / "out").read_text(encoding=encoding)
    assert ended.value.code == (2 if "0" in arguments else 0)
    assert "codec" not in Path(tmp_path / "err").read_text(encoding=encoding)
    if "--json" in arguments:
        assert json.loads(text)["problem"]["name"] == "digits"
    elif arguments[0] == "measure" and ended.value.code == 0:
        assert "B_D" in text
        assert ("Δ_D" if encoding.startswith("utf") else "Delta_D") in text


# --- Ctrl-C before the work ---


@pytest.mark.parametrize("error", [KeyboardInterrupt, ImportError])
def test_an_interrupt_while_modules_load_ends_in_one_line(variegrad, monkeypatch, error):
    def loading(*_arguments, **_options):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as cause:
            if error is KeyboardInterrupt:
                raise
            raise error("half a module") from cause  # as an extension module that is interrupted in its making

    monkeypatch.setattr("variegrad.cli.options.loaded", loading)
    said = variegrad("measure", "digits")
    assert (said.code, said.err) == (130, "variegrad: interrupted\n")
