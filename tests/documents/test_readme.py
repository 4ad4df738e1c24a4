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
        [sys.executable, "-W", "error", "pasted.py"],
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


def table(report):
    """{model: {method: ratio}} of a report's first table."""
    paragraphs = (ROOT / f"benchmarks/reports/{report}.md").read_text().split("\n\n")
    first = next(paragraph for paragraph in paragraphs if paragraph.startswith("| model"))
    names, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in first.splitlines())
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows}


def linked(kind):
    return re.findall(rf"benchmarks/reports/({kind}-[\d-]+)\.md", README)


def test_the_table_of_overheads_is_that_of_the_linked_reports():
    ours, latest, before = (table(report) for report in linked("overhead"))
    columns = {
        "variegrad": (ours, "variegrad exact"),
        "Opacus ghost": (latest, "Opacus ghost"),
        "BackPACK": (latest, "BackPACK BatchL2Grad"),
        "torch.func": (before, "torch.func"),
    }
    models = {"MNIST CNN": "mnist-cnn", "ResNet-20 (GroupNorm)": "resnet-20", "GPT": "gpt", "MLP": "mlp"}
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in README.splitlines()
        if line.startswith(tuple(f"| {name} |" for name in models))
    ]
    assert len(rows) == len(models)
    for name, *cells in rows:
        for cell, (report, method) in zip(cells, columns.values(), strict=True):
            ratio = report[models[name]][method]
            assert ratio.split()[0] == {"fails": "no:"}.get(cell, cell), (name, method)


def test_the_monitor_s_cost_is_that_of_the_linked_report():
    (report,) = linked("monitor")
    text = (ROOT / f"benchmarks/reports/{report}.md").read_text()
    mean, largest = (float(number) for number in re.search(r"\*\*([\d.]+)\*\*, largest (\d+\.\d+)", text).groups())
    said = re.search(r"([\d.]+) times a plain loop, geometric mean of 6 models; ([\d.]+) for", README).groups()
    assert said == (f"{mean:.2f}", f"{largest:.2f}")
    assert "over 6 models" in text


def test_the_coverage_is_that_of_the_linked_report():
    (report,) = linked("pooled-bias")
    text = (ROOT / f"benchmarks/reports/{report}.md").read_text()
    found = re.findall(r"\| 200 \| ([\d.]+)% \|", text)
    assert re.search(r"in ([\d.]+) %, ([\d.]+) % and ([\d.]+) % of\s+200 runs", README).groups() == tuple(found)


def test_as_many_models_are_compared_with_the_loop_as_is_said():
    assert len(CASES) > int(re.search(r"more than (\d+) test models", README)[1])
