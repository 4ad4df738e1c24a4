"""Dependency audit: what can be known without a network, and, where pip-audit and its list can be had, the known holes.

    python labs/audit.py

Refuses what the lock and the installed packages disagree on, and any package that is declared and not in the lock.
Then pip-audit compares the lock with the published advisories; where it is not installed or its list cannot be
reached, that is said and is no failure: an audit that did not happen must not look like one that found nothing.
"""

import importlib.util
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[1]
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)")


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def lock():
    """Package → version."""
    found = (PINNED.match(line) for line in (ROOT / "constraints.txt").read_text().splitlines())
    return {canonical(pin[1]): pin[2] for pin in found if pin}


def complaints(pinned):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for name in (canonical(re.split(r"[^A-Za-z0-9._-]", each)[0]) for each in declared):
        if name not in pinned:
            yield f"{name} is declared in pyproject.toml and not in constraints.txt"
    for name, wanted in pinned.items():
        try:
            here = version(name)
        except PackageNotFoundError:
            continue  # of an extra that is not installed here
        if here.split("+")[0] != wanted.split("+")[0]:
            yield f"{name} {here} is installed, constraints.txt says {wanted}"


def advisories():
    """The exit code of pip-audit; None, with the reason said, where it could not do its work."""
    if importlib.util.find_spec("pip_audit") is None:
        print("advisories: not compared, pip-audit is not installed (pip install pip-audit)")
        return None
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--requirement",
        ROOT / "constraints.txt",
        "--no-deps",
        "--disable-pip",
    ]
    done = subprocess.run([*command, "--timeout", "10"], capture_output=True, text=True, check=False)
    if done.returncode and "vulnerabilit" not in done.stdout + done.stderr.splitlines()[0]:
        print(f"advisories: not compared, the list cannot be reached ({done.stderr.strip().splitlines()[-1][:160]})")
        return None
    print(done.stdout or done.stderr)
    return done.returncode


def main():
    pinned = lock()
    found = list(complaints(pinned))
    print("\n".join(found) or f"lock: {len(pinned)} packages, each as it is installed here")
    sys.exit(1 if advisories() or found else 0)


if __name__ == "__main__":
    main()
