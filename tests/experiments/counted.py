"""An experiment that writes down every cell it computes; run as a program, so that it can be killed.

python counted.py FOLDER LOG JOBS
"""

import sys
import time
from pathlib import Path

from matplotlib.figure import Figure

from variegrad.experiments.experiment import Experiment
from variegrad.experiments.records import Cell
from variegrad.experiments.verdict import Check


def cells(settings, records):
    """Twice as many in the second round as in the first, which it depends on."""
    first = [cell_of(settings, number) for number in range(settings["cells"])]
    if any(cell.key not in records for cell in first):
        return first
    offset = int(sum(records[cell.key]["square"] for cell in first))
    return first + [cell_of(settings, offset + number) for number in range(settings["cells"])]


def cell_of(settings, number):
    return Cell(
        experiment="counted", version=1, values={"number": number, "log": settings["log"], "pause": settings["pause"]}
    )


def run(group):
    found = []
    for cell in group:
        time.sleep(cell["pause"])
        with Path(cell["log"]).open("a") as log:
            log.write(f"{cell.key}\n")
        found.append({"square": cell["number"] ** 2})
    return found


def experiment(group=lambda cell: cell.key, alone=lambda _: False):
    return Experiment(
        name="counted", version=1, title="", claim="", choices="", profiles={}, cells=cells, run=run,
        plot=lambda settings, records: Figure(), group=group, alone=alone,
        summary=lambda settings, records: [Check(claim="", found="", met=True)],
    )  # fmt: skip


def settings_of(log, cells=6, pause=0.0):
    return {"cells": cells, "log": str(log), "pause": pause}


if __name__ == "__main__":
    from variegrad.experiments.sweep import sweep

    sweep(experiment(), settings_of(sys.argv[2], cells=12, pause=0.1), Path(sys.argv[1]), jobs=int(sys.argv[3]))
