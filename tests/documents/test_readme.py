"""README: each block runs alone and prints what is shown; each measured number is in the report that is linked."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cases import CASES
from variegrad.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line[2:] for kind, text in BLOCKS if kind == "console" for line in text.splitlines()]
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
DIFF = [text for kind, text in BLOCKS if kind == "diff"]
TEXT = [text for kind, text in BLOCKS if kind == "text"]


def run(monkeypatch, capfd, *arguments):
    monkeypatch.setattr(sys, "argv", ["variegrad", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capfd.readouterr()
    assert not stopped.value.code, said.err
    return said.out


def said_by(folder, program):
    (folder / "pasted.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:Implicitly cleaning up", "pasted.py"],
        cwd=folder, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout


def test_it_fits_on_few_screens():
    assert len(README.splitlines()) <= 150


def test_the_loop_with_the_added_lines_prints_what_is_shown(tmp_path):
    (loop,) = DIFF
    assert all(line[:2] in {"  ", "+ ", ""} for line in loop.splitlines())
    said = said_by(tmp_path, "\n".join(line[2:] for line in loop.splitlines()))

    def shape(text):
        return re.sub(r"\d[\d.,]*", "N", text)

    assert shape(said) == shape(TEXT[0])  # numbers differ between processors
    found, shown = (float(re.search(r"B_D = ([\d.]+)", text)[1]) for text in (said, TEXT[0]))
    assert found == pytest.approx(shown, rel=0.3)  # shown with two digits


def test_each_python_block_runs_alone_and_prints_what_is_shown(tmp_path):
    assert [said_by(tmp_path, block) for block in PYTHON] == TEXT[1:]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("variegrad")])
def test_each_command_runs(command, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    small = ["--passes", "0.1", "--points", "2", "--max-examples", "60"]
    assert run(monkeypatch, capfd, *shlex.split(command)[1:], *small)


def test_every_command_is_one_of_these():
    assert COMMANDS
    assert all(c.startswith(("pip install ", "variegrad ")) for c in COMMANDS)


def test_the_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([\w-]+)`", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_measured_facts_are_those_of_the_newest_reports():
    """`make facts` writes them; here they are only compared."""
    done = subprocess.run(
        [sys.executable, ROOT / "labs/readme_facts.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_each_cell_is_from_the_newest_report_that_measured_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "labs")
    import readme_facts

    head = "# Cost\n\n| model | plain, ms | variegrad exact | Opacus ghost |\n|---|---:|---:|---:|\n"
    for day, row in (
        ("01", "1.50 (1.4-1.6) | 2.00 (1-3)"),
        ("02", "1.20 (1.1-1.3) | no: not run"),
        ("03", "no: Boom | "),
    ):
        (tmp_path / f"overhead-2030-01-{day}.md").write_text(f"{head}| gpt | 10 | {row} |\n\nmore\n")
    monkeypatch.setattr(readme_facts, "REPORTS", tmp_path)
    assert readme_facts.measured("gpt", "variegrad exact") == ("fails", tmp_path / "overhead-2030-01-03.md")
    assert readme_facts.measured("gpt", "Opacus ghost") == ("2.00", tmp_path / "overhead-2030-01-01.md")
    (tmp_path / "overhead-2030-01-03.md").unlink()
    assert readme_facts.measured("gpt", "variegrad exact") == ("1.20", tmp_path / "overhead-2030-01-02.md")
    with pytest.raises(SystemExit, match=r"torch\.func on gpt"):
        readme_facts.measured("gpt", "torch.func")


def test_as_many_models_are_compared_with_the_loop_as_is_said():
    assert len(CASES) > int(re.search(r"more than (\d+) models", README)[1])
