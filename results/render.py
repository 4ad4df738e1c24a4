"""Findings of every committed run again from its records: experiment.json, the README's table, the counts of paper.md.

python results/render.py        after new records, or after a change of the rules that lead from records to verdicts
"""

import json
import re
from pathlib import Path

from variegrad.experiments.run_folder import FILE, Run, finish, runs_below
from variegrad.experiments.verdict import counted
from variegrad.reports.style import render

ROOT = Path(__file__).parents[1]
EARLIER = (
    "*These records are of an earlier version of the experiment, which tuned and measured in another way (see\n"
    "[what changed](../../docs/results/reproduction.md#how-step-sizes-are-tuned)).*\n\n"
)
HEAD = "| claim | found | verdict |\n|---|---|---|\n"


def main() -> None:
    """Write what changed."""
    paper = ROOT / "docs/understand/paper.md"
    text = paper.read_text(encoding="utf-8")
    for folder in runs_below(ROOT / "results"):
        run = finish(folder)
        page = folder / "README.md"
        said = page.read_text(encoding="utf-8").replace(EARLIER, "")
        if run.outdated:
            page.write_text(said.replace("\n\n", f"\n\n{EARLIER}", 1), encoding="utf-8")
        else:
            page.write_text(_with_table(said, run), encoding="utf-8")
        if run.figure is not None:
            for kind in ("png", "svg"):
                (folder / f"{folder.name}.{kind}").write_bytes(render(run.figure, kind))
        findings = json.loads((folder / FILE).read_text(encoding="utf-8"))["findings"]
        text = re.sub(rf"\[[^\]]*\](\(../../results/{folder.name}/)", rf"[{counted(findings)}]\1", text)
    paper.write_text(text, encoding="utf-8")


def _with_table(page: str, run: Run) -> str:
    rows = "".join(f"| {one.claim} | {one.found} | {one.verdict} |\n" for one in run.findings)
    return re.sub(re.escape(HEAD) + r"(?:\|.*\n)*", lambda _: HEAD + rows, page)


if __name__ == "__main__":
    main()
