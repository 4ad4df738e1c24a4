"""A lab's report: rows that are written as they come, so that an interrupted lab goes on where it was."""

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import torch

from variegrad.files import write_whole

REPORTS = Path(__file__).parent / "reports"


def machine():
    return (
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.system()} {platform.release()}, "
        f"{os.cpu_count()} cores, gloo"
    )


class Table:
    """Rows by name, kept in `folder/LAB-DATE.json`, and read from there.

    Attributes:
        rows: name → what came out.
    """

    def __init__(self, lab, folder=None, *, again=False):
        folder = REPORTS if folder is None else Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.date = f"{datetime.now(UTC):%Y-%m-%d}"
        self.path = folder / f"{lab}-{self.date}.json"
        kept = json.loads(self.path.read_text()) if self.path.exists() and not again else {}
        self.rows = kept.get("rows", {}) if kept.get("machine") == machine() else {}

    def add(self, name, row):
        self.rows[name] = row
        content = {"date": self.date, "machine": machine(), "rows": self.rows}
        write_whole(self.path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())

    def write(self, markdown):
        write_whole(self.path.with_suffix(".md"), markdown.encode())
        return self.path.with_suffix(".md")


def markdown(header, rows):
    """A table of text."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
