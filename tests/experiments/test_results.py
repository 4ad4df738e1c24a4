"""What is committed under results/, and docs/results/reproduction.md, follow from the committed records."""

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
ROWS = {
    re.search(r"`([\w-]+)`", line)[1]: [cell.strip() for cell in line.strip("| \n").split(" | ")]
    for line in (ROOT / "docs/results/reproduction.md").read_text().splitlines()
    if re.match(r"\| \[?`", line)
}


def numbers(text):
    return set(re.findall(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?", text))


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
    if run.outdated:
        assert "an earlier version of the experiment" in page
    for finding in run.findings:
        assert f"| {finding.claim} | {finding.found} | {finding.verdict} |" in page
    for kind in ("png", "svg"):
        assert (folder / f"{folder.name}.{kind}").is_file()


def test_every_experiment_has_a_row():
    assert set(ROWS) == {*names(), *(path.name for path in RUNS)}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_what_the_records_say(name):
    folder = ROOT / "results" / name
    _, _, found, verdict, seconds = ROWS[name]
    if not (folder / "experiment.json").is_file():
        assert (found, verdict, seconds) == ("not computed yet", "–", "–")
        return
    findings = json.loads((folder / "experiment.json").read_text())["findings"]
    assert numbers(found) <= numbers(" ".join(f["found"] + f["claim"] for f in findings))
    assert set(verdict.split("; ")) <= {f["verdict"] for f in findings}
    total = sum(record.seconds for record in read_records(folder).records.values())
    amount, unit = seconds.split()
    assert float(amount) == pytest.approx(total / {"s": 1, "min": 60}[unit], rel=0.05)


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
