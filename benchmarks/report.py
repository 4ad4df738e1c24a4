"""Dated reports beside the benchmarks: a table to read and the numbers it was made of."""

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

FOLDER = Path(__file__).parent / "reports"


def head(name, host):
    """What a report begins with: when, on what, by which command."""
    load = os.getloadavg()[0]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join([f"python benchmarks/{name}.py", *sys.argv[1:]]),
        "machine": host,
        "load": round(load, 1),
    }


def first_lines(title, document):
    """The same in words."""
    host = document["machine"]
    return [
        f"# {title}, {document['date']}",
        "",
        f"{host['cpu']}, {host['cores']} cores, {host['threads']} threads; torch {host['versions']['torch']}; Python "
        f"{host['python']}; commit {host['commit']}; load {document['load']} before; `{document['command']}`.",
        "",
    ]


def write(name, document, markdown):
    """Both files, each written whole or not at all."""
    stem = FOLDER / f"{name}-{document['date']}"
    for suffix, text in ((".json", json.dumps(document, indent=1) + "\n"), (".md", markdown.rstrip() + "\n")):
        partial = stem.with_suffix(suffix + ".partial")
        partial.write_text(text)
        partial.replace(stem.with_suffix(suffix))
    print(f"report: {stem}.md")
