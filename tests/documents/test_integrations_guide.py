"""The guide of the integrations says what happens: its loop is run, its names exist, its keys are those logged."""

import re
import subprocess
import sys
from pathlib import Path

from monitor.readings import a_reading
from variegrad.integrations.scalars import scalars

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/how-to/integrations.md").read_text()
PYTHON = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
TEXT = re.findall(r"^```text\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^\$ variegrad (.*)$", GUIDE, re.MULTILINE)


def shape(text):
    return re.sub(r"\d[\d.,]*", "N", text)


def test_the_loop_pasted_into_a_file_prints_what_is_shown_and_its_log_can_be_drawn(tmp_path):
    (tmp_path / "pasted.py").write_text("\n".join(PYTHON[:2]))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:Implicitly cleaning up", "pasted.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.stderr == ""
    # Figures differ between processors and versions; what is said does not.
    assert shape(done.stdout.splitlines()[0]) == shape(TEXT[0].strip())
    assert len(COMMANDS) == 2
    for command in COMMANDS:
        subprocess.run(
            [sys.executable, "-m", "variegrad", *command.split()],
            cwd=tmp_path, capture_output=True, check=True, timeout=300,
        )  # fmt: skip
    assert (tmp_path / "runs/monitor/report.html").exists()


def test_the_logged_names_are_those_in_the_guide():
    for name in scalars(a_reading(), ""):
        assert re.search(rf"`(variegrad/)?{name}`", GUIDE), name


def test_the_integrations_that_are_imported_exist():
    for module, name in re.findall(r"from variegrad\.integrations\.(\w+) import (\w+)", GUIDE):
        source = (ROOT / f"src/variegrad/integrations/{module}.py").read_text()
        assert re.search(rf"^(class|def) {name}\b", source, re.MULTILINE)
