"""The Python of each page runs as one program and prints the text below it; the commands of the first page run."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from variegrad.cli import main

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT / "docs")): path.read_text()
    for path in [ROOT / "docs/get-started.md", *sorted((ROOT / "docs/how-to").glob("*.md"))]
}
ELSEWHERE = {"how-to/integrations.md", "how-to/mechanisms.md", "how-to/monitor.md", "how-to/training.md"}  # own tests
MINE = "# mine.py"


def blocks(kind, page):
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ELSEWHERE and blocks("python", page)])
def test_the_blocks_of_a_page_run_and_print_what_is_shown(page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = "\n".join(block for block in blocks("python", page) if not block.startswith(MINE))
    exec(compile(program, page, "exec"), {"__name__": "page"})
    assert capsys.readouterr().out == "".join(blocks("text", page))


@pytest.mark.parametrize("command", re.findall(r"^\$ variegrad (.*)$", PAGES["get-started.md"], re.MULTILINE))
def test_each_command_of_the_first_page_runs(command, tmp_path, data_root, monkeypatch, capfd):
    (tmp_path / "data").symlink_to(data_root)
    (tmp_path / "mine.py").write_text(next(b for b in blocks("python", "get-started.md") if b.startswith(MINE)))
    small = ["--passes", "0.1", "--points", "2", "--max-examples", "60"] if command.startswith("measure") else []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["variegrad", *shlex.split(command), *small])
    with pytest.raises(SystemExit) as stopped:
        main()
    sys.modules.pop("mine", None)
    said = capfd.readouterr()
    assert not stopped.value.code, said.err
    assert said.out
