"""Is the pooled reading of a `Monitor` right? Its interval against `measure`, at fixed weights and while they move.

    python benchmarks/pooled_bias.py                       # all problems; goes on where it was interrupted
    python benchmarks/pooled_bias.py --problems --moving 20   # only while `digits` is trained, in 20 runs each
    python benchmarks/pooled_bias.py --problems digits --runs 20 --out bias.json --moments bias-moments.json

Each problem is trained for a while, then its weights stay as they are. A run watches some dozens of batches, each drawn
without replacement, and asks whether the last interval contains B_D of the whole data set, by `measure`. The share of
200 nominal 95 % intervals has a standard error of 1.5 points.

What the Monitor measured in each run, (pairs, Û, M̂²) of every batch, is kept; intervals are made from it anew each
time, so that another way to make them is compared on the very same runs. Delete the file after a change of the
engine or of the monitor.
"""

import argparse
import json
import math
import os
import statistics
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch
from models import GPT, next_token
from overhead import machine
from rich.progress import track
from torch.utils.data import TensorDataset

from variegrad import Monitor, measure
from variegrad.keys import generator
from variegrad.monitor.window import KEPT, Window
from variegrad.problems.registry import load
from variegrad.training import WithReplacement

HERE = Path(__file__).parent
WATCHED = 64  # batches of a run at fixed weights, all pooled
LEARNING_RATES = (0.1, 0.5)
WINDOWS = (8, 16, 64)  # the default first
MOVING_STEPS = 800
FIRST_SEED = 5000  # of moving runs: the settings were chosen on others


def digits():
    """The built-in problem."""
    problem = load("digits")
    return problem.model, problem.losses, problem.train.tensors, 64, 100


def mnist():
    """The convolutional network on 4,096 images."""
    problem = load("mnist", data_root=os.environ["VARIEGRAD_DATA"], max_examples=4096)
    columns = [problem.train[i] for i in range(len(problem.train))]
    return problem.model, problem.losses, tuple(map(torch.stack, zip(*columns, strict=True))), 32, 60


def gpt():
    """A small language model on sequences of a Markov chain."""
    vocabulary, length, count = 32, 24, 2048
    draw = torch.Generator().manual_seed(0)
    table = torch.distributions.Dirichlet(torch.full((vocabulary,), 0.1)).sample((vocabulary,))
    tokens = [torch.randint(0, vocabulary, (count,), generator=draw)]
    for _ in range(length):
        tokens.append(torch.multinomial(table[tokens[-1]], 1, generator=draw).squeeze(1))
    tokens = torch.stack(tokens, 1)
    model = GPT(vocabulary=vocabulary, width=32, length=length, layers=2)
    return model, next_token, (tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()), 16, 150


PROBLEMS = {"digits": digits, "gpt": gpt, "mnist": mnist}


def trained(name):
    """A problem after some training, and its B_D over all examples."""
    torch.manual_seed(0)
    model, losses, columns, size, steps = PROBLEMS[name]()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(steps):
        at = WithReplacement().batch(0, step * size, size, len(columns[0]))
        optimizer.zero_grad()
        losses(model, tuple(c[at] for c in columns)).mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    truth = measure(model, losses, TensorDataset(*columns), batch_size=128).batch_size_bound
    return model, losses, columns, size, truth


def interval(moments, population):
    """The reading that a Monitor makes of these batches."""
    window = Window(WATCHED)
    window.load(moments)
    found = window.estimate(population=population, confidence=0.95)
    return [found.batch_size_bound, found.low, found.high, found.lower_confidence_bound]


def run(model, losses, columns, size, monitor, seed):
    """One run: (pairs, Û, M̂²) of `WATCHED` batches, as the Monitor saw them."""
    draw = generator(seed, "pooled bias")
    for _ in range(WATCHED):
        at = torch.from_numpy(draw.choice(len(columns[0]), size, replace=False))
        per_example = losses(model, tuple(c[at] for c in columns))
        monitor.watch(per_example)
        per_example.mean().backward()
        model.zero_grad(set_to_none=True)
    latest, moments = monitor.latest, monitor.state_dict()["window"]
    read = [latest.batch_size_bound, latest.low, latest.high, latest.lower_confidence_bound]
    if read != interval(moments, len(columns[0])):
        raise SystemExit(f"run {seed}: the kept moments do not give the Monitor's own reading {read}.")
    return moments


def moving(learning_rate, seed):
    """One training of `digits` with a Monitor as it is by default: (reading's step, moments, B_D then) per reading."""
    torch.manual_seed(seed)
    problem = load("digits")
    for layer in problem.model.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    columns, draw = problem.train.tensors, generator(seed, "moving weights")
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=learning_rate)
    monitor, order, found = Monitor(problem.model, population=len(columns[0])), [], []
    for _ in range(MOVING_STEPS):
        if len(order) < 64:
            order = list(draw.permutation(len(columns[0])))
        at, order = torch.as_tensor(order[:64]), order[64:]
        per_example = problem.losses(problem.model, tuple(c[at] for c in columns))
        before = len(monitor.history)
        monitor.watch(per_example)
        per_example.mean().backward()
        if len(monitor.history) > before:
            gradients = [p.grad.clone() for p in problem.model.parameters()]
            there = measure(problem.model, problem.losses, problem.train, batch_size=len(columns[0]))
            truth = [there.batch_size_bound, there.sum_sq_norms / len(columns[0])]
            for p, g in zip(problem.model.parameters(), gradients, strict=True):
                p.grad = g
            found.append([monitor.state_dict()["window"][-1], truth])
        optimizer.step()
        optimizer.zero_grad()
    return found


def moving_summary(runs, window, population):
    """Of the readings of all runs, from the eighth on: whose interval holds B_D at their last step, or on average.

    On average over the same steps B_D is ΣM²/Σ‖∇F‖²; `Monitor.average` reads it from up to 64 of them.
    """
    now, average = [], []
    for run_of in runs:
        for k in range(8, len(run_of) + 1):
            pool, truths = Window(window), [truth for _, truth in run_of[max(0, k - KEPT) : k]]
            pool.load([moments for moments, _ in run_of[max(0, k - KEPT) : k]])
            found = pool.estimate(population=population, confidence=0.95)
            bound = truths[-1][0]
            now.append((
                found.low <= bound <= found.high, found.lower_confidence_bound <= bound, found.unbounded_above,
                found.lower_confidence_bound / bound,
            ))  # fmt: skip
            found = pool.estimate(population=population, confidence=0.95, steps=pool.kept)
            bound = sum(norm for _, norm in truths) / sum(norm / one for one, norm in truths)
            average.append(
                (found.low <= bound <= found.high, found.lower_confidence_bound <= bound, found.unbounded_above)
            )

    def share(rows, column):
        return statistics.fmean(row[column] for row in rows)

    return {
        "readings": len(now), "inside": share(now, 0), "bound_holds": share(now, 1), "open": share(now, 2),
        "bound_over_truth": statistics.median(row[3] for row in now),
        "average": {"inside": share(average, 0), "bound_holds": share(average, 1), "open": share(average, 2)},
    }  # fmt: skip


def summary(found):
    """What the runs of one problem say."""
    truth, runs = found["truth"], list(found["runs"].values())
    inside = sum(low <= truth <= high for _, low, high, _ in runs)
    return {
        "truth": truth, "runs": len(runs), "inside": inside / len(runs),
        "bound_holds": sum(bound <= truth for *_, bound in runs) / len(runs),
        # 1/B̂ is what is nearly unbiased
        "inverse_bias": statistics.fmean(truth / point for point, *_ in runs) - 1,
        "median_low": statistics.median(low for _, low, _, _ in runs) / truth,
        "median_high": statistics.median(high for _, _, high, _ in runs) / truth,
    }  # fmt: skip


def markdown(document):
    """The table."""
    host = document["machine"]
    versions = ", ".join(f"{k} {host['versions'][k]}" for k in ("variegrad", "torch"))
    lines = [
        f"# Pooled readings against `measure`, {document['date']}", "",
        f"{host['cores']} CPU cores, {host['threads']} threads; {versions}; Python {host['python']}; commit "
        f"{host['commit']}; `{document['command']}`.",
    ]  # fmt: skip
    lines += [] if not document["problems"] else [
        "",
        "Each run pools so many watched batches at fixed weights, and looks at 16 examples (or half a batch) of each; "
        "95 % intervals.", "",
        "| problem | B_D by `measure` | batches | runs | B_D inside the interval | lower bound holds | "
        "mean of B_D/B̂ − 1 | median interval ÷ B_D |", "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for name, found in document["problems"].items():
        if found["runs"]:
            s = summary(found)
            high = "∞" if math.isinf(s["median_high"]) else f"{s['median_high']:.2f}"
            lines.append(
                f"| {name} | {s['truth']:.4g} | {WATCHED} | {s['runs']} | {s['inside']:.1%} | "
                f"{s['bound_holds']:.1%} | {s['inverse_bias']:+.2%} | {s['median_low']:.2f}–{high} |"
            )
    if document.get("moving"):
        lines += [
            "", "## While training moves", "",
            f"`digits`, SGD, batches of 64, {MOVING_STEPS} steps, the default schedule of `Monitor`; B_D by `measure` "
            "at the weights of each reading's last step.", "",
            "| learning rate | window | readings | B_D inside the interval | lower bound holds | no upper end | "
            "median of lower bound ÷ B_D |", "|---:|---:|---:|---:|---:|---:|---:|",
        ]  # fmt: skip
        lines += [
            f"| {e['learning_rate']} | {e['window']} | {e['readings']} | {e['inside']:.1%} | {e['bound_holds']:.1%} | "
            f"{e['open']:.0%} | {e['bound_over_truth']:.2f} |"
            for e in document["moving"]
        ]
        lines += [
            "", "`Monitor.average()`: B_D on average over the steps of the last 64 readings, ΣM²/Σ‖∇F‖².", "",
            "| learning rate | inside the interval | lower bound holds | no upper end |", "|---:|---:|---:|---:|",
        ]  # fmt: skip
        lines += [
            f"| {e['learning_rate']} | {e['average']['inside']:.1%} | {e['average']['bound_holds']:.1%} | "
            f"{e['average']['open']:.0%} |"
            for e in document["moving"] if e["window"] == WINDOWS[0]
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


def write(path, text):
    """To a temporary name, then renamed."""
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(text)
    partial.replace(path)


def main():
    """Run what is missing, write after every few runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="*", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--moving", type=int, default=0, help="runs while training moves, per learning rate")
    parser.add_argument("--out", type=Path, help="report; by default that of today")
    parser.add_argument(
        "--moments", type=Path, default=HERE.parent / "runs" / "pooled-bias.json", help="what was measured; is kept"
    )
    arguments = parser.parse_args()
    date = datetime.now(UTC).date().isoformat()
    out = arguments.out or HERE / "reports" / f"pooled-bias-{date}.json"
    document = {
        "date": date, "machine": machine(), "problems": {},
        "command": " ".join(["python benchmarks/pooled_bias.py", *sys.argv[1:]]),
    }  # fmt: skip
    arguments.moments.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(arguments.moments.read_text()) if arguments.moments.exists() else {}
    runs = {rate: [] for rate in LEARNING_RATES}
    for rate in LEARNING_RATES:
        for seed in track(
            range(FIRST_SEED, FIRST_SEED + arguments.moving), description=f"digits, learning rate {rate}"
        ):
            runs[rate].append(moving(rate, seed))
    document["moving"] = [
        {"learning_rate": rate, "window": window}
        | moving_summary(runs[rate], window, len(load("digits").train.tensors[0]))
        for rate in LEARNING_RATES
        for window in WINDOWS
        if arguments.moving
    ]
    write(out, json.dumps(document) + "\n")
    write(out.with_suffix(".md"), markdown(document))
    for name in arguments.problems:
        model, losses, columns, size, truth = trained(name)
        measured = kept.setdefault(name, {"truth": truth, "population": len(columns[0]), "runs": {}})
        if not math.isclose(measured["truth"], truth, rel_tol=1e-4):
            raise SystemExit(f"{arguments.moments} holds {name} at other weights: move it away first.")
        monitor = Monitor(model, every=1, window=WATCHED, population=len(columns[0]))
        fresh = monitor.state_dict()
        missing = [seed for seed in range(arguments.runs) if str(seed) not in measured["runs"]]
        for k, seed in enumerate(track(missing, description=name)):
            monitor.load_state_dict(fresh)
            measured["runs"][str(seed)] = run(model, losses, columns, size, monitor, seed)
            if k % 10 == 9 or seed == missing[-1]:
                write(arguments.moments, json.dumps(kept) + "\n")
        document["problems"] = {
            name: {
                "truth": one["truth"],
                "runs": {seed: interval(moments, one["population"]) for seed, moments in one["runs"].items()},
            }
            for name, one in kept.items()
        }
        write(out, json.dumps(document) + "\n")
        write(out.with_suffix(".md"), markdown(document))
    print(markdown(document))


if __name__ == "__main__":
    main()
