"""`variegrad bound`: numbers, words, JSON, and one line for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from variegrad.cli import main
from variegrad.cli.bound import bound
from variegrad.theory import glm_bound, sparse_bound

app = typer.Typer()
app.command()(bound)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data.svm"
    path.write_bytes(b"1 1:1 2:2\n-1 1:1 3:1\n1 4:3\n")
    return path


def test_it_prints_both_bounds_with_intervals_time_and_memory(file: Path) -> None:
    result = CliRunner().invoke(app, [str(file)])
    assert result.exit_code == 0
    assert "3 examples, 4 columns, 5 non-zeros" in result.stdout
    assert "B_D(w) ≥ 1.5 examples for every w (n over the largest column count 2" in result.stdout
    assert "the exact infimum lies in [" in result.stdout
    assert "Remark 1 as printed" in result.stdout
    assert "Remark 2 as printed" in result.stdout
    assert "peak memory" in result.stdout


def test_the_json_holds_what_the_functions_return(file: Path) -> None:
    found = json.loads(CliRunner().invoke(app, [str(file), "--json"]).stdout)
    assert found["glm"]["bound"] == glm_bound(file).bound
    assert found["sparse"]["paper_bound"] == sparse_bound(file, paper_bound=True).paper_bound
    assert found["bound"] == max(found["glm"]["bound"], found["sparse"]["bound"])
    assert found["seconds"] > 0
    assert found["peak_memory_bytes"] > 1e6


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "the file is empty"), (b"1 2:1\n1 2:nan\n", "data.svm, line 2: a value must be finite; found '2:nan'")],
)
def test_bad_input_is_one_line_and_exit_code_two(
    file: Path, content: bytes, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_bytes(content)
    monkeypatch.setattr("sys.argv", ["variegrad", "bound", str(file)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.parametrize(
    ("name", "message"),
    [("absent.npy", "no such file, neither here"), ("sparse/a9a.svm.gz", "fetch('a9a'"), (".", "is a folder")],
)
def test_a_file_that_is_not_there_is_bad_input_and_says_how_to_get_it(tmp_path: Path, name: str, message: str) -> None:
    result = CliRunner().invoke(app, [str(tmp_path / name), "--data-root", str(tmp_path)])
    assert isinstance(result.exception, FileNotFoundError | ValueError)
    assert message in str(result.exception)


def test_labels_are_not_needed(tmp_path: Path) -> None:
    (tmp_path / "headed").write_bytes(b"3 6 4\n1,3 0:1 5:0.5\n 1:1 2:2\n2 1:1\n")
    assert "3 examples, 6 columns, 5 non-zeros" in CliRunner().invoke(app, [str(tmp_path / "headed")]).stdout


def test_an_array_file_works_too(tmp_path: Path) -> None:
    np.save(tmp_path / "eye.npy", np.eye(3))
    assert "B_D(w) ≥ 3 examples" in CliRunner().invoke(app, [str(tmp_path / "eye.npy")]).stdout
