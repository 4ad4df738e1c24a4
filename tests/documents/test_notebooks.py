"""The notebooks run, and print what is stored in them up to the digits."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs/notebooks"
SLOW = {"check-the-prediction", "monitor-a-training"}


def shape(text):
    return re.sub(r"\s+", " ", re.sub(r"\d[\d.,]*", "N", text)).strip()


@pytest.mark.parametrize(
    "notebook",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in SLOW))
        for path in sorted(FOLDER.glob("*.ipynb"))
    ],
)
def test_a_notebook_prints_what_is_stored_in_it(notebook, tmp_path):
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    (tmp_path / "cells.py").write_text("\n".join("".join(cell["source"]) for cell in cells))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:FigureCanvasAgg", "cells.py"],
        cwd=tmp_path, env=os.environ | {"MPLBACKEND": "Agg"}, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    stored = [output for cell in cells for output in cell["outputs"] if output["output_type"] == "stream"]
    # Numbers, and the word for an efficiency near a border, differ between processors.
    assert len(done.stdout.splitlines()) == len("".join("".join(output["text"]) for output in stored).splitlines())
    shown = "".join("".join(output["text"]) for output in stored).splitlines()
    for printed, kept in zip(done.stdout.splitlines(), shown, strict=True):
        assert shape(printed)[:12] == shape(kept)[:12]


def test_there_are_three():
    assert len(list(FOLDER.glob("*.ipynb"))) >= 3
