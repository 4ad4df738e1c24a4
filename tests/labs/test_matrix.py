"""The version matrix: which interpreters it finds, and what it runs again."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

LABS = Path(__file__).parents[2] / "labs"
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def matrix(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("matrix", LABS / "matrix.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "CELLS", tmp_path / "cells")
    monkeypatch.setattr(module, "state", " ".join)
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path)
    monkeypatch.delenv("PYENV_ROOT", raising=False)
    monkeypatch.delenv("UV_PYTHON_INSTALL_DIR", raising=False)
    return module


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_a_shim_that_fails_is_no_interpreter(matrix, tmp_path, monkeypatch):
    shims = tmp_path / "shims"
    executable(shims / f"python{VERSION}", "#!/bin/sh\necho 'command not found' >&2\nexit 127\n")
    monkeypatch.setenv("PATH", str(shims))
    assert matrix.interpreter(VERSION) is None
    works = executable(
        tmp_path / f".pyenv/versions/{VERSION}.9/bin/python{VERSION}", f'#!/bin/sh\nexec {sys.executable} "$@"\n'
    )
    assert matrix.interpreter(VERSION) == str(works)


def test_an_interpreter_of_another_version_is_not_taken(matrix, tmp_path, monkeypatch):
    executable(tmp_path / "bin/python3.99", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert matrix.interpreter("3.99") is None
    assert matrix.run("newest", "3.99", []) == "not run: no such interpreter here"
    assert matrix.main(["newest", VERSION]) == 1  # nothing passed


def test_a_cell_that_passed_is_not_run_again_until_something_changes(matrix, monkeypatch):
    monkeypatch.setattr(matrix, "interpreter", lambda _version: None)
    cell = matrix.CELLS / f"lock-{VERSION}"
    cell.mkdir(parents=True)
    (cell / "result.json").write_text(json.dumps({"state": "-x", "outcome": "passed: 3 passed"}))
    assert matrix.run("lock", VERSION, ["-x"]) == "passed: 3 passed (run before)"
    assert matrix.run("lock", VERSION, ["-k", "other"]) == "not run: no such interpreter here"


def test_a_word_that_is_neither_is_refused(matrix):
    with pytest.raises(SystemExit, match=r"unknown: 3\.2, mid; choose from lowest, lock, newest"):
        matrix.main(["mid", "3.2"])
