"""What a training step costs on a slow network, and whether a model of two numbers foretells it.

    python labs/netlab.py            # 100 Mbit/s and 1 Gbit/s, some minutes, a dated report; finished links are kept
    python labs/netlab.py --short    # one link, few steps, no report
    python labs/netlab.py --link 100 # one link only (Mbit/s)

Two workers in network namespaces, joined by a bridge and slowed by token buckets (labs/link.py), take DDP steps of a
network of about 10⁶ weights. The model is that of the design,

    T(B) = (n/B)·(t_c(B/P) + α·messages + bytes/β),

here for one step: t_c of a method (its computing and coding, at B/P examples a worker) is its step on the same cable
without a limit, measured by turns with the limited one, less its bytes at that cable's own rate; messages are counted
from the method, bytes by the interface; β is what a plain connection was measured to reach. A bucket lets through
what it holds at once: bytes are those beyond it, as far as it can fill up between two steps. Only α is fitted, one
number for a link; each cell is foretold with the α of the other cells.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import steps
from launch import FORK, Running
from link import Link, burst_bytes, left_behind, not_here
from steps import METHODS, dimension
from tables import Table, machine, markdown

BATCHES = (16, 64)  # examples of a worker
SPEEDS = (100, 1000)  # Mbit/s
SECONDS = 0.4  # of each round, without and with the limit
MEGABYTES = {100: 12, 1000: 120}
BAR_TIME, BAR_BYTES, BAR_MODEL = 0.2, 1 / 500, 0.15


def measure(speed, *, batches, seconds, megabytes, work):
    """What both workers see on one link."""
    cells = [(method, batch) for batch in batches for method in METHODS]
    asked, ask = FORK.Pipe()
    with Link() as between:
        between.shape(speed * 1e6)
        started = [
            Running(
                lambda rank=rank: steps.work(
                    rank, between, cells, seconds, speed * 1e6, megabytes, ask, work / f"{rank}.json"
                ),
                log=work / f"worker-{rank}.txt", namespace=between.namespaces[rank],
                environment={"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"},
            )
            for rank in range(2)
        ]  # fmt: skip
        try:
            end = time.monotonic() + 900
            while None in (codes := [each.wait(0) for each in started]) and not any(codes) and time.monotonic() < end:
                if asked.poll(0.1):
                    between.shape(asked.recv())
                    asked.send(None)
        finally:
            for each in started:
                each.end()
    if codes != [0, 0]:
        raise RuntimeError(f"workers ended with {codes}: " + "; ".join(each.said()[-1500:] for each in started))
    both = [json.loads((work / f"{rank}.json").read_text()) for rank in range(2)]
    for cell, other in zip(both[0]["cells"], both[1]["cells"], strict=True):
        cell["bytes"] = max(cell["bytes"], other["bytes"])
    return {"speed": speed, **both[0]}


def foretold(row):
    """Each cell of a link with its predicted seconds."""
    beta = row["bytes per second"] * row["interface bytes per byte"]  # cells count their headers, too
    held = burst_bytes(row["speed"] * 1e6)
    cells = []
    for cell in row["cells"]:
        # Between two steps the bucket gains what the link could have sent meanwhile, up to what it holds.
        t_c = cell["free"] - cell["bytes"] / row["free bytes per second"]
        sent = max(0.0, cell["bytes"] - min(held, beta * t_c))
        cells.append({**cell, "t_c": t_c, "messages": METHODS[cell["method"]][1], "wire": sent / beta})
    for number, cell in enumerate(cells):
        alpha = latency([other for place, other in enumerate(cells) if place != number])
        cell["predicted"] = cell["t_c"] + alpha * cell["messages"] + cell["wire"]
        cell["error"] = cell["predicted"] / cell["seconds"] - 1
    return cells


def latency(cells):
    """α ≥ 0 with the least squared relative error."""
    scale = np.array([cell["seconds"] for cell in cells])
    messages = np.array([cell["messages"] for cell in cells]) / scale
    left = (scale - [cell["t_c"] + cell["wire"] for cell in cells]) / scale
    return max(0.0, float(messages @ left / (messages @ messages)))


def bars(cells):
    """The quantised step against DDP's own, at the smallest batch; and the worst prediction."""
    by = {cell["method"]: cell for cell in cells if cell["batch"] == min(c["batch"] for c in cells)}
    mine, dense = by["Quantize per worker"], by["vanilla"]
    return {
        "time": mine["seconds"] / dense["seconds"],
        "bytes": mine["bytes"] / dense["bytes"],
        "model": max(abs(cell["error"]) for cell in cells),
    }


def page(table):
    parts = [
        f"# A slow network, {table.date}\n\n{machine()}, {dimension():,} weights, P = 2. "
        "Made by `python labs/netlab.py`."
    ]
    verdicts = []
    for row in table.rows.values():
        cells = foretold(row)
        alpha = latency(cells)
        fewest, most = (pick(cell["steps"] for cell in cells) for pick in (min, max))
        parts.append(
            f"## {row['speed']} Mbit/s\n\nAchieved: {row['bytes per second'] * 8e-6:.1f} Mbit/s by a plain connection; "
            f"α = {1e6 * alpha:.0f} µs. "
            f"Milliseconds a step, medians of {fewest} to {most} steps; bytes as the interface counts them, a worker."
        )  # fmt: skip
        lines = [
            (cell["method"], 2 * cell["batch"], f"{cell['bytes']:,.0f}", f"{1e3 * cell['t_c']:.1f}",
             f"{1e3 * cell['seconds']:.1f}", f"{1e3 * cell['predicted']:.1f}", f"{100 * cell['error']:+.1f} %")
            for cell in cells
        ]  # fmt: skip
        parts.append(markdown(("method", "B", "bytes sent", "t_c", "measured", "predicted", "error"), lines))
        found = bars(cells)
        if row["speed"] == 100:
            time_ok, bytes_ok = found["time"] <= BAR_TIME, found["bytes"] <= BAR_BYTES
            what = "Quantize per worker, 100 Mbit/s"
            verdicts += [
                (f"{what}: step time of vanilla's", f"{found['time']:.3f}", f"≤ {BAR_TIME}", time_ok),
                (f"{what}: bytes of vanilla's", f"1/{1 / found['bytes']:.0f}", "≤ 1/500", bytes_ok),
            ]
        what, close = f"α-β model, {row['speed']} Mbit/s: largest error", found["model"] <= BAR_MODEL
        verdicts.append((what, f"{100 * found['model']:.1f} %", "≤ 15 %", close))
    lines = [(*verdict[:3], "pass" if verdict[3] else "FAIL") for verdict in verdicts]
    parts.insert(1, markdown(("bar", "found", "must be", ""), lines))
    return "\n\n".join(parts) + "\n", all(verdict[3] for verdict in verdicts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="one link, few steps, nothing judged")
    parser.add_argument("--link", type=int, choices=SPEEDS, help="only this one, Mbit/s")
    parser.add_argument("--again", action="store_true", help="repeat what is finished")
    parser.add_argument("--reports", type=Path, help="folder of the report")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: the namespaces are taken down
    if (reason := not_here()) is not None:
        print(f"skipped: {reason}")
        return
    with tempfile.TemporaryDirectory(prefix="netlab-") as work:
        table = Table("netlab", chosen.reports or (work if chosen.short else None))
        for speed in SPEEDS[:1] if chosen.short else SPEEDS:
            name = f"{speed} Mbit/s"
            if (name in table.rows and not chosen.again) or chosen.link not in (None, speed):
                continue
            size = (
                {"seconds": 0, "megabytes": 2} if chosen.short else {"seconds": SECONDS, "megabytes": MEGABYTES[speed]}
            )
            found = measure(speed, batches=BATCHES[:1] if chosen.short else BATCHES, work=Path(work), **size)
            table.add(name, found)
            print(f"{name}: achieved {found['bytes per second'] * 8e-6:.1f} Mbit/s", flush=True)
            for cell in found["cells"]:
                line = f"{1e3 * cell['seconds']:.1f} ms, {cell['bytes']:,.0f} bytes"
                print(f"  {cell['method']}, B = {2 * cell['batch']}: {line}", flush=True)
        assert not left_behind()
        text, passed = page(table)
        print(f"\n{text}\nreport: {table.write(text)}")
    sys.exit(0 if passed or chosen.short else 1)


if __name__ == "__main__":
    main()
