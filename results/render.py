"""Findings of every committed run again from its records: experiment.json, the pages' tables and pictures.

python results/render.py        after new records, or after a change of the rules that lead from records to verdicts

It writes the tables of results/*/README.md and docs/results/reproduction.md, and the counts of paper.md. A run that an
earlier version of its experiment computed keeps its findings and its picture.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from variegrad.experiments import experiment, names
from variegrad.experiments.intervals import Interval
from variegrad.experiments.run_folder import FILE, Run, finish, runs_below
from variegrad.experiments.verdict import Check, Finding, counted, percent
from variegrad.reports.style import render

ROOT = Path(__file__).parents[1]
EARLIER = (
    "*These records are of an earlier version of the experiment, which tuned and measured in another way (see\n"
    "[what changed](../../docs/results/reproduction.md#how-step-sizes-are-tuned)).*\n\n"
)
BEGIN, END = "<!-- findings -->\n", "<!-- end of findings -->\n"
LAW_BEGIN, LAW_END = "<!-- law -->\n", "<!-- end of law -->\n"


def main() -> None:
    """Write what changed."""
    paper, overview = ROOT / "docs/understand/paper.md", ROOT / "docs/results/reproduction.md"
    text = paper.read_text(encoding="utf-8")
    runs = {folder.name: finish(folder) for folder in runs_below(ROOT / "results")}
    for name, run in runs.items():
        folder = ROOT / "results" / name
        page = folder / "README.md"
        said = page.read_text(encoding="utf-8").replace(EARLIER, "")
        page.write_text(with_tables(said, run), encoding="utf-8")
        if run.figure is not None:
            for kind in ("png", "svg"):
                (folder / f"{name}.{kind}").write_bytes(render(run.figure, kind))
        text = re.sub(rf"\[[^\]]*\](\(../../results/{name}/)", rf"[{counted(_findings(name))}]\1", text)
    paper.write_text(text, encoding="utf-8")
    page = between(overview.read_text(encoding="utf-8"), findings_of_all(runs))
    overview.write_text(between(page, law_of(runs["figure-1b"]), LAW_BEGIN, LAW_END), encoding="utf-8")


def with_tables(page: str, run: Run) -> str:
    """A run's page with its findings; with a note instead, if an earlier version of the experiment computed it."""
    return page.replace("\n\n", f"\n\n{EARLIER}", 1) if run.outdated else between(page, tables(run))


def tables(run: Run) -> str:
    """The findings of a run: a row per claim, then a row per configuration, intervals apart."""
    lines = ["| | claim | found | verdict |", "|---|---|---|---|"]
    for number, one in enumerate(run.findings, 1):
        found = one.outcome if isinstance(one, Finding) else one.found
        lines.append(f"| {number} | {one.claim} | {found} | {one.verdict} |")
    details = [row for number, one in enumerate(run.findings, 1) for row in _rows(number, one)]
    if details:
        lines += ["", "| claim | configuration | mean | 95 % interval |", "|---|---|---|---|", *details]
    return "\n".join(lines) + "\n"


def _rows(number: int, finding: Finding | Check) -> Iterator[str]:
    numbers = {"": finding.numbers} if isinstance(finding.numbers, str) else finding.numbers
    for name, value in numbers.items():
        if isinstance(value, Interval):
            yield f"| {number} | {name} | {value.mean:.4g} | {value.low:.4g} to {value.high:.4g} |"
        else:
            yield f"| {number} | {name} | {value} | |"


def findings_of_all(runs: Mapping[str, Run]) -> str:
    """The table of docs/results/reproduction.md: every claim of every run, with what the run cost."""
    lines = ["| experiment | claim | found | verdict | cost |", "|---|---|---|---|---|"]
    for name in [*names(), *(name for name in runs if name not in names())]:
        if name not in runs:
            lines.append(f"| `{name}` | {experiment(name).claim} | not computed yet | – | – |")
            continue
        run = runs[name]
        first = f"[`{name}`](../../results/{name}/README.md){' (earlier version)' if run.outdated else ''}"
        cost = f"{run.seconds / 60:.3g} min" if run.seconds >= 60 else f"{run.seconds:.3g} s"
        for one in run.findings:
            if not isinstance(one, Check) and one.plain()["log_ratio"] is not None:
                found = one.found.split("; ")[0]
                lines.append(f"| {first} | {one.claim} | {found} | {one.verdict} | {cost} |")
                first = cost = ""
    return "\n".join(lines) + "\n"


def law_of(run: Run) -> str:
    """The efficiency law against figure 1b: predicted and measured passes at each batch size."""
    lines = ["| optimizer | B | predicted passes | measured passes | measured / predicted | the law |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for one in run.findings:
        if isinstance(one, Finding) and "predicted passes" in one.numbers:
            predicted, found = one.numbers["predicted passes"], one.numbers["passes"]
            arm = re.match(r"(?:with (\w+), )?B = (\d+) ", one.claim)
            assert arm is not None
            row = [arm[1] or "SGD", arm[2], predicted, found, str(one.primary).split(": ")[1], _of_the_law(one)]
            lines.append(f"| {' | '.join(map(str, row))} |")
    return "\n".join(lines) + "\n"


def _of_the_law(finding: Finding) -> str:
    """The verdict of "takes more passes than predicted", said of the law."""
    few = f", by less than {percent(finding.primary.margin)}" if finding.primary.within_margin else ""
    said = {"holds": f"predicts too few passes{few}", "reversed": f"predicts too many passes{few}",
            "no effect": f"right within {percent(finding.primary.margin)}"}  # fmt: skip
    return said.get(finding.primary.word, finding.verdict) if finding.learned else finding.verdict


def _findings(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((ROOT / "results" / name / FILE).read_text(encoding="utf-8"))["findings"]
    return found


def between(page: str, table: str, begin: str = BEGIN, end: str = END) -> str:
    """The page with another table between two marks."""
    if page.count(begin) != 1 or page.count(end) != 1:
        sys.exit(f"no place for a table: {begin.strip()} and {end.strip()} must each be on the page once:\n{page[:80]}")
    return page[: page.index(begin) + len(begin)] + table + page[page.index(end) :]


if __name__ == "__main__":
    main()
