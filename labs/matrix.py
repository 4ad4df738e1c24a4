"""Run the test suite on the lowest declared versions, on the lock, and on the newest, with every supported Python.

    python labs/matrix.py [lowest|lock|newest ...] [3.11 3.12 ...] [-- pytest arguments]

Each cell (versions × Python) has its own environment, log and result in build/matrix. A cell that passed is not run
again until the commit, the files or the pytest arguments change. A missing interpreter is reported as "not run".
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
CELLS = ROOT / "build/matrix"
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
KINDS = ("lowest", "lock", "newest")
TOOLS = ("beartype", "hypothesis", "jaxtyping", "pytest", "pytest-xdist", "joblib", "zstandard")
DEFAULT = ["-m", "not slow", "--ignore=tests/documents", "--ignore=tests/integrations"]


def pythons():
    """The versions that the package says it supports."""
    stated = (re.search(r"Python :: (3\.\d+)$", line) for line in SETTINGS["classifiers"])
    return [found[1] for found in stated if found]


def interpreter(version):
    """A working interpreter of that version, from PATH, pyenv or uv; None if there is none."""
    name, home = f"python{version}", Path.home()
    pyenv = Path(os.environ.get("PYENV_ROOT", home / ".pyenv")) / "versions"
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR", home / ".local/share/uv/python"))
    places = [Path(folder) / name for folder in os.get_exec_path()]
    places += [*sorted(pyenv.glob(f"{version}*/bin/{name}")), *sorted(uv.glob(f"cpython-{version}.*/bin/{name}"))]
    return next((str(place) for place in places if is_python(place, version)), None)


def is_python(path, version):
    """Whether the file runs as that Python: pyenv has a shim for each installed version, and most of them fail."""
    code = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0 and done.stdout.strip() == version


def lowest():
    return [re.sub(r">=", "==", each) + (".*" if each.count(".") == 1 else "") for each in SETTINGS["dependencies"]]


def environment(kind, python, cell, call):
    """Make the cell's environment once; install the project into it each time. Whether all of it succeeded."""
    pip = [cell / "venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # The lowest matplotlib warns of newer pyparsing, and a warning is an error in the tests.
    packages = {
        "lowest": [*lowest(), "pyparsing<3.1"],
        "lock": ["-c", ROOT / "constraints.txt", *SETTINGS["dependencies"]],
        "newest": SETTINGS["dependencies"],
    }[kind]
    if not (cell / "ready").exists():
        shutil.rmtree(cell / "venv", ignore_errors=True)
        if not (call(python, "-m", "venv", cell / "venv") and call(*pip, *packages, *TOOLS)):
            return False
        (cell / "ready").touch()
    return call(*pip, "--no-deps", "--force-reinstall", ROOT)


def state(arguments):
    """A digest of the commit, of the changes since, and of the pytest arguments."""
    git = [subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=True).stdout
           for words in (["rev-parse", "HEAD"], ["diff", "HEAD"])]  # fmt: skip
    return hashlib.sha256(b"\0".join([*git, *map(str.encode, arguments)])).hexdigest()


def run(kind, version, arguments):
    """The outcome of one cell in words; everything that its commands print goes into its log."""
    cell = CELLS / f"{kind}-{version}"
    result, log, now = cell / "result.json", cell / "log.txt", state(arguments)
    if result.exists() and (earlier := json.loads(result.read_text()))["state"] == now:
        return f"{earlier['outcome']} (run before)"
    if (python := interpreter(version)) is None:
        return "not run: no such interpreter here"
    cell.mkdir(parents=True, exist_ok=True)
    print(f"{kind} Python {version}: log in {log.relative_to(ROOT)}", flush=True)
    with log.open("w") as output:

        def call(*command):
            installed = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            done = subprocess.run(command, cwd=ROOT, stdout=output, stderr=output, check=False, env=installed)
            return done.returncode == 0

        if not environment(kind, python, cell, call):
            return f"FAILED: the environment could not be made, see {log.relative_to(ROOT)}"
        passed = call(cell / "venv/bin/python", "-m", "pytest", *arguments)
    last = log.read_text(errors="replace").strip().rpartition("\n")[2].strip("= ")
    if not passed:
        return f"FAILED: {last}"
    result.write_text(json.dumps({"state": now, "outcome": f"passed: {last}"}))
    return f"passed: {last}"


def main(words):
    words, arguments = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    kinds = [word for word in words if word in KINDS] or KINDS
    versions = [word for word in words if word in pythons()]
    if unknown := set(words) - {*KINDS, *pythons()}:
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join([*KINDS, *pythons()])}")
    outcomes = {}
    for kind in kinds:
        for version in versions or (pythons()[:1] if kind == "lowest" else pythons()):
            outcomes[kind, version] = run(kind, version, arguments or DEFAULT)
            print(f"{kind:8} Python {version}: {outcomes[kind, version]}", flush=True)
    counts = [
        sum(outcome.startswith(word) for outcome in outcomes.values()) for word in ("passed", "FAILED", "not run")
    ]
    print(f"{len(outcomes)} cells: {counts[0]} passed, {counts[1]} failed, {counts[2]} not run")
    return int(counts[1] > 0 or counts[0] == 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
