"""What becomes of a run when something goes wrong: injects it, looks at what came out, and writes a table.

    python labs/faults.py                        # everything, some minutes; finished rows are kept and not repeated
    python labs/faults.py --short                # one kill at each point and a few of the rest: a minute
    python labs/faults.py --only cable --again   # rows whose name contains it, anew

Two gloo workers under torchrun train a tiny network (labs/tiny.py) by `variegrad train … --resume`. A fault is done
to them once; what must come out is the weights of an undisturbed run, bit for bit, or a refusal that says why and
loses nothing. The exit code is 1 if anything did not come out so.
"""

import argparse
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

import damages
import kills
import troubles
from runs import Undisturbed
from tables import Table, machine, markdown


def cases(short):
    if short:
        return (
            kills.cases(1, timeout=5, spawned=0)[:-1]
            + damages.cases(5, short=True)
            + troubles.cases(timeout=5, short=True)
        )
    return kills.cases(10, timeout=10) + damages.cases(100) + troubles.cases(timeout=10)


def page(table):
    rows = [
        (row["fault"], row["injected"], row["came out"], {True: "pass", False: "FAIL", None: "skipped"}[row["passed"]])
        for row in table.rows.values()
    ]
    killed = [row["passed"] for row in table.rows.values() if row["fault"].startswith("SIGKILL")]
    outcome = [row["passed"] for row in table.rows.values()]
    return (
        f"# Faults, {table.date}\n\n{machine()}. Made by `python labs/faults.py`.\n\n"
        f"{sum(map(bool, killed))} of {len(killed)} killed runs finished with the weights of an undisturbed one, "
        "bit for bit. "
        f"{outcome.count(True)} rows passed, {outcome.count(False)} failed, {outcome.count(None)} were skipped.\n\n"
        f"{markdown(('fault', 'injected', 'what came out', ''), rows)}\n"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a minute's worth, without a report in labs/reports")
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    parser.add_argument("--again", action="store_true", help="repeat what is finished")
    parser.add_argument("--reports", type=Path, help="folder of the report")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: what was started is ended
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="faults-") as work:
        table = Table("faults", chosen.reports or (work if chosen.short else None))
        undisturbed = Undisturbed(work)
        for number, (name, case) in enumerate(cases(chosen.short)):
            if chosen.only not in name or (name in table.rows and table.rows[name]["passed"] and not chosen.again):
                continue
            began, folder = time.perf_counter(), Path(work) / f"case-{number}"
            folder.mkdir()
            try:
                row = case(undisturbed, folder)
            except Exception as error:
                traceback.print_exc()
                row = {"fault": name, "injected": "", "came out": f"{type(error).__name__}: {error}", "passed": False}
            took = time.perf_counter() - began
            table.add(name, {**row, "seconds": round(took, 1)})
            mark = {True: "pass", False: "FAIL", None: "skip"}[row["passed"]]
            print(f"{mark}  {row['fault']} ({row['injected']}): {row['came out']} [{took:.0f} s]", flush=True)
            if row["passed"] is False:
                for log in sorted(folder.glob("*.txt")):
                    said = [line for line in log.read_text(errors="replace").splitlines() if "torch/" not in line]
                    print("\n".join([f"--- {log.name}", *said[:30]]), flush=True)
        print(f"report: {table.write(page(table))}")
    failed = [name for name, row in table.rows.items() if row["passed"] is False]
    print(f"{len(table.rows)} rows, {len(failed)} failed{': ' + ', '.join(failed) if failed else ''}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
