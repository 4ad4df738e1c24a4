"""Build the files that are published: the same commit gives the same bytes, and a bill of materials lies beside them.

python labs/distribution.py build [FOLDER]     # wheel, sdist
python labs/distribution.py reproducible       # build twice, compare the digests
python labs/distribution.py sbom [FOLDER]      # CycloneDX, from the lock and the licences that packages declare
"""

import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]


def epoch():
    """The time of the commit: file times come from it, not from the clock."""
    command = ["git", "log", "-1", "--format=%ct"]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def build(folder):
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch()), "PYTHONHASHSEED": "0"}
    with tempfile.TemporaryDirectory() as made:
        command = [sys.executable, "-m", "build", "--outdir", made, *sys.argv[3:]]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
        for file in Path(made).iterdir():
            content = file.read_bytes()
            (folder / file.name).write_bytes(plain(content) if file.name.endswith(".tar.gz") else content)
    return sorted([*folder.glob("*.whl"), *folder.glob("*.tar.gz")])


def plain(sdist):
    """An sdist without the clock, the user and the order of a directory in it."""
    out = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(sdist)) as source,
        gzip.GzipFile(fileobj=out, mode="wb", mtime=epoch(), filename="") as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as target,
    ):
        for member in sorted(source.getmembers(), key=lambda member: member.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch(), 0, 0, "", ""
            member.pax_headers = {}
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            target.addfile(member, source.extractfile(member) if member.isfile() else None)
    return out.getvalue()


def digests(files):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def reproducible():
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        one, other = digests(build(Path(first))), digests(build(Path(second)))
    if one != other:
        raise SystemExit(f"two builds differ: {one} and {other}")
    for name, digest in one.items():
        print(f"{digest}  {name}: the same twice")


def sbom(folder):
    version = re.search(r'__version__ = "(.*)"', (ROOT / "src/variegrad/versions.py").read_text())[1]
    pins = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    components = []
    for name, pinned in pins:
        component = {"type": "library", "name": name, "version": pinned, "purl": f"pkg:pypi/{name.lower()}@{pinned}"}
        try:
            said = metadata(name)
            expression = said.get("License-Expression")
            if expression:
                component["licenses"] = [{"expression": expression}]
            elif said.get("License") and "\n" not in said["License"]:
                component["licenses"] = [{"license": {"name": said["License"]}}]
        except PackageNotFoundError:
            pass
        components.append(component)
    document = {
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
        "metadata": {"component": {"type": "library", "name": "variegrad", "version": version,
                                   "licenses": [{"expression": "Apache-2.0"}]}},
        "components": components,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"variegrad-{version}.cdx.json"
    target.write_text(json.dumps(document, indent=1) + "\n")
    print(f"{target}: {len(components)} packages")


if __name__ == "__main__":
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    place = ROOT / (sys.argv[2] if len(sys.argv) > 2 else "dist")
    if wanted == "build":
        for built in build(place):
            print(built)
    elif wanted == "reproducible":
        reproducible()
    elif wanted == "sbom":
        sbom(place)
    else:
        raise SystemExit(__doc__)
