"""Run the test suite on the lowest declared versions, on the lock, and on the newest, with every Python that is here.

    python labs/matrix.py [lowest|lock|newest ...] [-- pytest arguments]

Each cell is an environment of its own in build/matrix, made once. An interpreter that is not installed is said and
skipped: a run that did not happen must not look like one that passed.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TOOLS = ("beartype", "hypothesis", "jaxtyping", "pytest", "pytest-xdist", "joblib", "zstandard")


def pythons():
    """The versions that the package says it supports."""
    stated = (re.search(r"Python :: (3\.\d+)$", line) for line in SETTINGS["classifiers"])
    return [found[1] for found in stated if found]


def lowest():
    return [re.sub(r">=", "==", each) + (".*" if each.count(".") == 1 else "") for each in SETTINGS["dependencies"]]


def install(kind, environment):
    pip = [str(environment / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if kind == "lowest":
        # The lowest matplotlib warns of newer pyparsing, and a warning is an error in the tests.
        subprocess.run([*pip, *lowest(), *TOOLS, "pyparsing<3.1"], check=True)
        subprocess.run([*pip, "--no-deps", str(ROOT)], check=True)
    else:
        lock = ["-c", str(ROOT / "constraints.txt")] if kind == "lock" else []
        subprocess.run([*pip, *lock, str(ROOT), *TOOLS], check=True)


def run(kind, version, arguments):
    interpreter = shutil.which(f"python{version}")
    if interpreter is None:
        return "not run: no such interpreter here"
    environment = ROOT / "build/matrix" / f"{kind}-{version}"
    if not (environment / "ready").exists():
        shutil.rmtree(environment, ignore_errors=True)
        subprocess.run([interpreter, "-m", "venv", str(environment)], check=True)
        install(kind, environment)
        (environment / "ready").touch()
    chosen = arguments or ["-m", "not slow", "--ignore=tests/documents", "--ignore=tests/integrations"]
    done = subprocess.run([str(environment / "bin/python"), "-m", "pytest", *chosen], cwd=ROOT, check=False)
    return "passed" if done.returncode == 0 else f"FAILED ({done.returncode})"


if __name__ == "__main__":
    words, _, pytest = " ".join(sys.argv[1:]).partition("--")
    kinds = words.split() or ["lowest", "lock", "newest"]
    found = {}
    for kind in kinds:
        for version in pythons() if kind != "lowest" else pythons()[:1]:
            found[kind, version] = run(kind, version, pytest.split())
    for (kind, version), outcome in found.items():
        print(f"{kind:8} Python {version}: {outcome}")
    raise SystemExit(any(outcome.startswith("FAILED") for outcome in found.values()))
