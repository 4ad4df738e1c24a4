"""The folder of a run: its records, and experiment.json, which says what they belong to and what was found."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from variegrad.experiments.experiment import Experiment, Settings
from variegrad.experiments.records import Record, read_records
from variegrad.experiments.registry import experiment
from variegrad.experiments.verdict import Check, Finding
from variegrad.files import write_whole
from variegrad.versions import version

SCHEMA = "variegrad.experiment-run/1"
FILE = "experiment.json"


@dataclass(frozen=True, kw_only=True)
class Written:
    """A finding that an earlier version of an experiment drew from its records.

    Attributes:
        claim: what was tested.
        found: the numbers.
        verdict: what followed.
        log_ratio: the primary contrast, None for a check.
    """

    claim: str
    found: str
    verdict: str
    log_ratio: Mapping[str, Any] | None

    def plain(self) -> dict[str, Any]:
        """The finding as JSON."""
        return {"claim": self.claim, "found": self.found, "verdict": self.verdict, "log_ratio": self.log_ratio}


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run, read from its records.

    Attributes:
        name: of the experiment when it was begun, and of its pictures.
        experiment: which.
        profile: the name of its size.
        settings: that size, with the data and the seeds that were used.
        data: what the data are, in a sentence.
        command: as typed.
        records: all that the settings need, by key; all that are there, if an earlier version computed them.
        findings: drawn from them, or as an earlier version wrote them down.
        figure: drawn from them; None if an earlier version computed them: its picture is in the folder.
    """

    name: str
    experiment: Experiment
    profile: str
    settings: Settings
    data: str
    command: str
    records: Mapping[str, Record]
    findings: tuple[Finding | Check | Written, ...]
    figure: Figure | None

    @property
    def outdated(self) -> bool:
        """Whether an earlier version of the experiment computed it, with other cells than it has now."""
        return self.figure is None

    @property
    def seconds(self) -> float:
        """Computing time of all cells together."""
        return sum(record.seconds for record in self.records.values())


def begin(
    folder: Path,
    chosen: Experiment,
    profile: str,
    settings: Settings,
    *,
    data: str,
    command: str,
    overwrite: bool = False,
) -> None:
    """Say what the records of a folder belong to, before the first is written.

    Args:
        folder: of the run.
        chosen: the experiment.
        profile: the name of its size.
        settings: that size, with data and seeds.
        data: a sentence.
        command: as typed.
        overwrite: whether another size, data or seeds of this experiment may replace those of the folder.

    Raises:
        ValueError: if the folder belongs to another experiment, or to another run of this one.
    """
    standing = _read(folder) if (folder / FILE).is_file() else None
    if standing is not None and standing["experiment"] != chosen.name:
        raise ValueError(
            f"--out {folder}: it holds the records of {standing['experiment']}; name another folder for {chosen.name}."
        )
    if standing is not None and not overwrite and standing["settings"] != json.loads(json.dumps(dict(settings))):
        raise ValueError(
            f"--out {folder}: it holds a run of profile {standing['profile']} with other settings, whose page could no "
            "longer be drawn. Name another folder, or add --overwrite (its records stay)."
        )
    body = {
        "schema": SCHEMA, "experiment": chosen.name, "profile": profile, "settings": dict(settings), "data": data,
        "command": command, "versions": {name: version(name) for name in ("variegrad", "torch", "numpy")},
        "findings": None,
    }  # fmt: skip
    write_whole(folder / FILE, json.dumps(body, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def finish(folder: Path) -> Run:
    """Draw a finished run's findings and picture from its records, and write the findings beside them.

    Args:
        folder: of the run.

    Returns:
        The run.

    Raises:
        ValueError: if the run is not finished.
    """
    run = open_run(folder)
    body = {**_read(folder), "findings": [finding.plain() for finding in run.findings]}
    write_whole(folder / FILE, json.dumps(body, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    return run


def open_run(folder: Path) -> Run:
    """Read a finished run; nothing is computed but its findings and its picture.

    The findings of a run that an earlier version of the experiment finished are those that it wrote down.

    Args:
        folder: of the run.

    Returns:
        The run.

    Raises:
        ValueError: if experiment.json is missing or damaged, or records are missing.
    """
    body = _read(folder)
    chosen, settings = experiment(body["experiment"]), body["settings"]
    found = read_records(folder)
    if body["findings"] and (outdated := _outdated(chosen, body, found.records)):
        return outdated
    needed = {cell.key for cell in chosen.cells(settings, found.records)}
    if missing := needed - found.records.keys():
        damaged = f" ({len(found.damaged)} damaged: {found.damaged[0]})" if found.damaged else ""
        raise ValueError(
            f"{folder}: {len(missing)} of {len(needed)} records are missing{damaged}. Resume with: {body['command']}"
        )
    records = {key: found.records[key] for key in needed}
    return _run(body, chosen, records, tuple(chosen.summary(settings, records)), figure=chosen.plot(settings, records))


def _outdated(chosen: Experiment, body: Mapping[str, Any], records: Mapping[str, Record]) -> Run | None:
    """The run as it was written down, if no record is of the version that the experiment has now."""
    if not records or any(record.cell.version == chosen.version for record in records.values()):
        return None
    return _run(body, chosen, records, tuple(Written(**found) for found in body["findings"]), figure=None)


def _run(
    body: Mapping[str, Any],
    chosen: Experiment,
    records: Mapping[str, Record],
    findings: tuple[Finding | Check | Written, ...],
    figure: Figure | None,
) -> Run:
    return Run(
        name=body["experiment"], experiment=chosen, profile=body["profile"], settings=body["settings"],
        data=body["data"], command=body["command"], records=records, findings=findings, figure=figure,
    )  # fmt: skip


def runs_below(folder: Path) -> list[Path]:
    """The folders of runs: this one, or those in it.

    Args:
        folder: where to look.

    Returns:
        The folders in the order of the experiments, then of their names.

    Raises:
        ValueError: if there is none.
    """
    places = [path.parent for path in (folder / FILE, *sorted(folder.glob(f"*/{FILE}"))) if path.is_file()]
    if not places:
        raise ValueError(
            f"{folder}: there is no {FILE} here or one folder below. Run an experiment first: "
            f"variegrad experiment theorem-6 --out {shlex.quote(str(folder))}"
        )
    return places


def _read(folder: Path) -> dict[str, Any]:
    path = folder / FILE
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["schema"] != SCHEMA or not isinstance(body["settings"], dict):
            raise ValueError(f"its schema is {body['schema']!r}")
    except (OSError, ValueError, KeyError, TypeError) as problem:
        reason = f"it has no {problem}" if isinstance(problem, KeyError) else problem
        raise ValueError(f"{path}: not the record of an experiment ({reason}).") from problem
    return dict(body)
