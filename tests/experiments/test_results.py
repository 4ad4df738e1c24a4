"""What is committed under results/, and docs/results/reproduction.md, follow from the committed records."""

import importlib.util
import json
import math
import re
from pathlib import Path

import pytest

from variegrad.experiments import experiment, names
from variegrad.experiments.records import read_records
from variegrad.experiments.run_folder import open_run
from variegrad.experiments.verdict import NOT_TESTED, counted

ROOT = Path(__file__).parents[2]
RUNS = sorted(path.parent for path in (ROOT / "results").glob("*/experiment.json"))
specification = importlib.util.spec_from_file_location("render", ROOT / "results/render.py")
render = importlib.util.module_from_spec(specification)
specification.loader.exec_module(render)


@pytest.mark.parametrize("folder", RUNS, ids=lambda path: path.name)
def test_findings_are_those_of_the_records(folder, monkeypatch, tmp_path):
    written = json.loads((folder / "experiment.json").read_text())
    monkeypatch.setenv("VARIEGRAD_DATA", str(tmp_path))  # finished records are read without the data
    run = open_run(folder)
    assert [(f.claim, f.found, f.verdict) for f in run.findings] == [
        (f["claim"], f["found"], f["verdict"]) for f in written["findings"]
    ]
    assert read_records(folder).damaged == ()
    page = (folder / "README.md").read_text()
    assert render.with_tables(page.replace(render.EARLIER, ""), run) == page
    for kind in ("png", "svg"):
        assert (folder / f"{folder.name}.{kind}").is_file()


def test_the_overview_is_that_of_the_runs():
    page = (ROOT / "docs/results/reproduction.md").read_text()
    assert render.between(page, render.findings_of_all({folder.name: open_run(folder) for folder in RUNS})) == page
    assert all(f"`{name}`" in page for name in names())
    law = render.law_of(open_run(ROOT / "results/figure-1b"))
    assert law.count("\n") == 2 + 4 + 2 * 2  # SGD at B = 32 to 256; momentum and Adam at 64 and 256
    assert render.between(page, law, render.LAW_BEGIN, render.LAW_END) == page


@pytest.mark.parametrize("folder", RUNS, ids=lambda path: path.name)
def test_the_words_are_those_of_the_intervals(folder):
    for found in json.loads((folder / "experiment.json").read_text())["findings"]:
        one, verdict = found["log_ratio"], found["verdict"]
        if one is None or verdict == NOT_TESTED:
            continue
        low, high = (math.inf * sign if one[end] is None else one[end] for end, sign in (("low", -1), ("high", 1)))
        within = max(-low, high) < one["margin"]
        word = "holds" if low > 0 else "reversed" if high < 0 else "no effect above" if within else "undecided"
        assert verdict.startswith(word)


def test_the_counts_of_the_paper_s_table_are_those_of_the_verdicts():
    rows = re.findall(r"\[([^\]]*)\]\(\.\./\.\./results/([\w-]+)/", (ROOT / "docs/understand/paper.md").read_text())
    assert rows
    for said, name in rows:
        assert said == counted(json.loads((ROOT / "results" / name / "experiment.json").read_text())["findings"])


@pytest.mark.parametrize("folder", [path for path in RUNS if not open_run(path).outdated], ids=lambda path: path.name)
def test_what_is_committed_has_the_settings_of_its_profile(folder):
    written = json.loads((folder / "experiment.json").read_text())
    profile = experiment(written["experiment"]).profiles[written["profile"]]
    assert {k: v for k, v in profile.items() if k != "without_data"}.items() <= written["settings"].items()
