"""What README shows is what happens: its Python is run from its source, its commands and its table are checked."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from variegrad.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line[2:] for kind, text in BLOCKS if kind == "console" for line in text.splitlines()]
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
TEXT = [text for kind, text in BLOCKS if kind == "text"]


def run(monkeypatch, capfd, *arguments):
    monkeypatch.setattr(sys, "argv", ["variegrad", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capfd.readouterr()
    assert not stopped.value.code, said.err
    return said.out


def said_by(folder, *blocks):
    (folder / "pasted.py").write_text("\n".join(blocks))
    done = subprocess.run(
        [sys.executable, "-W", "error", "pasted.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.stderr == ""
    return done.stdout


def test_the_example_pasted_into_a_file_prints_what_is_shown(tmp_path):
    assert said_by(tmp_path, PYTHON[0]) == TEXT[0]
    assert sum(bool(line.strip()) for line in PYTHON[0].splitlines()) <= 13  # short enough to be read


def test_the_estimate_pasted_below_it_prints_what_is_shown_and_an_account(tmp_path):
    first, sentence, account = said_by(tmp_path, *PYTHON[:2]).partition(TEXT[2])
    assert first == TEXT[0]
    assert sentence
    assert "0.weight" in account


def test_the_bounds_of_a9a_are_those_in_the_text(monkeypatch, capfd, data_root):
    said = run(monkeypatch, capfd, "bound", str(data_root / "sparse/a9a.svm.gz"))
    spectrum, centred, columns = re.search(r"\((\S+) for a9a; about (\S+) if.*?\((\S+)\)", README, re.DOTALL).groups()
    found = [float(number) for number in re.findall(r"(?:B_D\(w\) ≥|columns: about) ([\d.]+)", said)]
    assert found == pytest.approx([float(spectrum), float(centred), float(columns)], rel=5e-3)


def test_the_table_is_the_demo_s(monkeypatch, capfd):
    def numbers(line):
        return [float(cell.replace(",", "")) for cell in line.replace("%", "").split()]

    found = {
        line.split()[0]: line for line in run(monkeypatch, capfd, "measure", "digits").splitlines() if line.strip()
    }
    shown = [line for line in TEXT[1].splitlines() if re.match(r" ?\d", line)]
    assert len(shown) == 5
    for line in shown:
        # Rounding differs between processors and grows over 230 updates.
        assert numbers(found[line.split()[0]]) == pytest.approx(numbers(line), rel=0.02)
    sentence = " ".join(TEXT[1].splitlines()[-2:])
    assert re.sub(r"\d+", "N", found["Up"]) == re.sub(r"\d+", "N", sentence)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("variegrad")])
def test_each_command_runs(command, tmp_path, monkeypatch, capfd, request):
    arguments = shlex.split(command)[1:]
    if "mnist" in arguments:
        arguments[arguments.index("--data-root") + 1] = str(request.getfixturevalue("data_root"))
    if "bound" in arguments:
        arguments[1] = str(request.getfixturevalue("data_root") / arguments[1].removeprefix("data/"))
    (tmp_path / "mine.py").write_text(next(text for text in PYTHON if text.startswith("# mine.py")))
    if arguments[0] == "report":
        shutil.copytree(ROOT / arguments[1] / "theorem-6", tmp_path / arguments[1] / "theorem-6")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    trains = arguments[0] in {"measure", "plan"}
    small = ["--passes", "0.1", "--points", "2", "--max-examples", "60"] if trains else []
    if arguments[0] == "train":
        small = ["--passes", "0.1", "--max-examples", "300"]
    assert run(monkeypatch, capfd, *arguments, *small)
    sys.modules.pop("mine", None)


def test_the_monitor_and_the_training_pasted_below_run(tmp_path):
    said = said_by(tmp_path, PYTHON[0], *PYTHON[2:4]).splitlines()
    assert any("B_D" in line for line in said)
    assert any(line.startswith("batch 128: ") for line in said)
    assert said[-1].startswith("Update(")


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("torchrun")])
def test_each_command_of_several_workers_runs(command, tmp_path, data_root):
    arguments = shlex.split(command)[1:]
    arguments[arguments.index("--data-root") + 1] = str(data_root)
    small = ["--passes", "0.5", "--max-examples", "600", "--step-size", "1e-3"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", *arguments, *small],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode in {0, 1}, done.stderr  # 1: so few examples do not reach the target
    assert list((tmp_path / "runs/b").glob("*.json"))


def test_each_make_target_exists():
    targets = {c.split()[1] for c in COMMANDS if c.startswith("make")} | {"picture"}
    assert {"demo", "test"} <= targets
    makefile = (ROOT / "Makefile").read_text()
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_command_is_one_of_these():
    assert COMMANDS
    assert all(c.startswith(("make ", "variegrad ", "torchrun ")) for c in COMMANDS)
