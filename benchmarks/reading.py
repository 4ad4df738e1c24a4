"""Reading beside torch's own DataLoader: a map-style data set that takes 2 ms per example, with 8 reader processes.

    python benchmarks/reading.py                 # a dated report beside the others
    python benchmarks/reading.py --readers 2 --decode 0 --rounds 4 --no-report

Both read the same batches in turn, in an order that changes from round to round. `train` is whole steps of
`vg.train(..., readers=)` with a linear model beside a DataLoader with the same step by hand. Examples per second are
those of a round from its first batch on: starting the processes is the same for both and is given apart.
"""

import argparse
import statistics
import time

import torch
from overhead import machine
from torch import nn
from torch.utils.data import DataLoader, Dataset

import report
import variegrad as vg
from variegrad.training.reading import readers as reader_processes
from variegrad.training.sampling import WithReplacement

N, BATCH, BAR = 4096, 64, 0.95


class Decoded(Dataset):
    """Each example takes a while, as an image does."""

    def __init__(self, milliseconds):
        self.x, self.milliseconds = torch.randn(N, 32), milliseconds

    def __len__(self):
        return N

    def __getitem__(self, i):
        if self.milliseconds:
            time.sleep(self.milliseconds / 1e3)
        return self.x[i], i % 10


def losses(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def timed(batches):
    """Seconds until the first, and examples per second from then on."""
    began = time.perf_counter()
    iterator = iter(batches)
    next(iterator)
    first = time.perf_counter()
    count = sum(1 for _ in iterator)
    return first - began, count * BATCH / (time.perf_counter() - first)


def loader(data, chosen, count):
    return DataLoader(data, batch_sampler=[part.tolist() for part, _ in chosen], num_workers=count)


def ours(data, chosen, count):
    with reader_processes(data, 0, iter(chosen), count) as read:
        for part in chosen:
            yield read(*part)


def stepped(batches):
    model = nn.Linear(32, 10)
    for batch in batches:
        model.zero_grad()
        losses(model, batch).sum().backward()
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(p.grad, alpha=1e-4)
        yield batch


def trained(data, number, count):
    config = vg.TrainConfig(batch_size=BATCH, step_size=1e-4, passes=number * BATCH / N)
    return vg.train(nn.Linear(32, 10), losses, data, config, readers=count)


def markdown(document):
    """The report."""
    settings, found = document["settings"], document["found"]
    rates = {kind: [rate for _, rate in rounds] for kind, rounds in found.items()}
    lines = [
        *report.first_lines("Reading beside a DataLoader", document),
        f"{settings['readers']} reader processes, {settings['decode']:g} ms per example, batches of {BATCH}, "
        f"{settings['batches']} of them in each of {settings['rounds']} rounds.",
        "",
        "| | until the first batch, s | examples/s, median (least–most) |",
        "|---|---:|---:|",
    ]
    for kind, rounds in found.items():
        each, start = rates[kind], statistics.median(seconds for seconds, _ in rounds)
        lines.append(f"| {kind} | {start:.2f} | {statistics.median(each):,.0f} ({min(each):,.0f}–{max(each):,.0f}) |")
    lines += ["", f"Bar: {BAR} of a DataLoader.", ""]
    for first, second in (("readers", "DataLoader"), ("vg.train(readers=)", "DataLoader, a step by hand")):
        ratios = [a / b for a, b in zip(rates[first], rates[second], strict=True)]
        lines.append(f"* {first} / {second}: {statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", type=int, default=8)
    parser.add_argument("--decode", type=float, default=2.0, help="milliseconds per example")
    parser.add_argument("--batches", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--no-report", action="store_true", help="print only")
    chosen = parser.parse_args()
    data, sampling = Decoded(chosen.decode), WithReplacement()
    parts = [(sampling.batch(0, BATCH * k, BATCH, N), BATCH * k) for k in range(chosen.batches)]
    kinds = {
        "DataLoader": lambda: loader(data, parts, chosen.readers),
        "readers": lambda: ours(data, parts, chosen.readers),
        "DataLoader, a step by hand": lambda: stepped(loader(data, parts, chosen.readers)),
        "vg.train(readers=)": lambda: trained(data, chosen.batches, chosen.readers),
    }
    found = {kind: [] for kind in kinds}
    for number in range(chosen.rounds):
        for kind in list(kinds)[:: 1 if number % 2 else -1]:
            found[kind].append(timed(kinds[kind]()))
    document = report.head("reading", machine()) | {
        "settings": {key: getattr(chosen, key) for key in ("readers", "decode", "batches", "rounds")},
        "found": found,
    }
    print(markdown(document))
    if not chosen.no_report:
        report.write("reading", document, markdown(document))


if __name__ == "__main__":
    main()
