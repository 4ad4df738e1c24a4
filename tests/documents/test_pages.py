"""The Python of each page runs as one program and prints the text below it; each command of a page is one of ours."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT / "docs")): path.read_text()
    for path in [ROOT / "docs/get-started.md", *sorted((ROOT / "docs/how-to").glob("*.md"))]
}
ELSEWHERE = {"how-to/integrations.md", "how-to/mechanisms.md", "how-to/monitor.md", "how-to/training.md"}  # own tests


def blocks(kind, text):
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [name for name in PAGES if name not in ELSEWHERE and blocks("python", PAGES[name])])
def test_the_blocks_of_a_page_run_and_print_what_is_shown(page, tmp_path):
    program = [block for block in blocks("python", PAGES[page]) if not block.startswith("# mine.py")]
    (tmp_path / "page.py").write_text("\n".join(program))
    done = subprocess.run(
        [sys.executable, "-W", "error", "page.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout == "".join(blocks("text", PAGES[page]))


@pytest.mark.parametrize("command", re.findall(r"^\$ variegrad (.*)$", PAGES["get-started.md"], re.MULTILINE))
def test_each_command_of_the_first_page_runs(command, tmp_path, data_root):
    (tmp_path / "data").symlink_to(data_root)
    (tmp_path / "mine.py").write_text(
        next(block for block in blocks("python", PAGES["get-started.md"]) if block.startswith("# mine.py"))
    )
    arguments = shlex.split(command)
    if arguments[0] == "measure":
        arguments += ["--passes", "0.1", "--points", "2", "--max-examples", "60"]
    done = subprocess.run(
        [sys.executable, "-m", "variegrad", *arguments],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout
