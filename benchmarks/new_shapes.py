"""What changes from batch to batch, and its cost: a hand-written loss, a new length, a first use, packed sequences.

    python benchmarks/new_shapes.py [--rounds 15] [--no-report]

Ratios of interleaved rounds in one process; the dated report goes to `benchmarks/reports/`.
"""

import argparse
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F
from models import GPT, MODELS, next_token
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from variegrad import example_sq_norms

HERE = Path(__file__).parent
WARM_UP = 33  # past the checks of the first batches


def seconds(run):
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def plain(model, losses, batch):
    """A training step without its update."""
    model.zero_grad(set_to_none=True)
    losses(model, batch).sum().backward()


def ours(model, losses, batch):
    """The same with exact norms."""
    model.zero_grad(set_to_none=True)
    example_sq_norms(model, losses, batch)


def quartiles(ratios):
    """Median (lower quartile - upper quartile)."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def hand_written(rounds):
    """A negative log likelihood by `gather` or by an index, beside cross_entropy: exact norms, small CNN, b = 64."""

    def convolutional():
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 49, 10),
        )  # fmt: skip

    ways = {
        "cross_entropy": lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], reduction="none"),
        "gather": lambda model, batch: -F.log_softmax(model(batch[0]), 1).gather(1, batch[1][:, None])[:, 0],
        "index": lambda model, batch: -F.log_softmax(model(batch[0]), 1)[torch.arange(len(batch[1])), batch[1]],
    }
    batch = torch.randn(64, 1, 28, 28), torch.randint(10, (64,))
    models = {name: convolutional() for name in ways}
    for _ in range(WARM_UP):
        for name, losses in ways.items():
            ours(models[name], losses, batch)
    taken = [{n: seconds(lambda n=n: ours(models[n], ways[n], batch)) for n in ways} for _ in range(rounds)]
    for name in ("gather", "index"):
        yield f"loss by `{name}` beside cross_entropy", quartiles([t[name] / t["cross_entropy"] for t in taken])


def lengths():
    """The first call at a new length, after three other ones, beside later calls at the same length."""
    model = GPT(length=256)

    def tokens(length):
        drawn = torch.randint(512, (16, length + 1))
        return drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()

    for length in (100, 110, 120):
        batch = tokens(length)
        for _ in range(11):  # 33 batches of this structure
            ours(model, next_token, batch)
    ratios = []
    for length in (90, 105, 115, 125, 96, 128, 101, 113):
        batch = tokens(length)
        first = seconds(lambda batch=batch: ours(model, next_token, batch))
        again = min(seconds(lambda batch=batch: ours(model, next_token, batch)) for _ in range(2))
        ratios.append(first / again)
    yield "a new sequence length beside the same length again", quartiles(ratios)


def first_use(name):
    """The first call in this process, in plain steps."""
    torch.manual_seed(0)
    model, losses, batch = MODELS[name]()
    for _ in range(3):
        plain(model, losses, batch)
    step = statistics.median(seconds(lambda: plain(model, losses, batch)) for _ in range(5))
    return seconds(lambda: ours(model, losses, batch)) / step


class Classifier(nn.Module):
    """The class of a sequence from the last state of a recurrent layer."""

    def __init__(self, core):
        super().__init__()
        self.table, self.core, self.head = nn.Embedding(2000, 64), core(64, 128, batch_first=True), nn.Linear(128, 4)

    def forward(self, tokens, lengths):
        rows = pack_padded_sequence(self.table(tokens), lengths, batch_first=True, enforce_sorted=False)
        state = self.core(rows)[1]
        return self.head((state[0] if isinstance(state, tuple) else state)[-1])


def packed(rounds):
    """300 packed sequences of 5 to 30 tokens, other ones in each round, beside the plain step of the fused kernels."""

    def drawn():
        lengths = torch.randint(5, 31, (300,))
        return torch.randint(2000, (300, int(lengths.max()))), lengths, torch.randint(4, (300,))

    def losses(model, batch):
        return F.cross_entropy(model(*batch[:2]), batch[2], reduction="none")

    for core in (nn.LSTM, nn.GRU):
        model = Classifier(core)
        for _ in range(WARM_UP):
            ours(model, losses, drawn())
        ratios = []
        for _ in range(rounds):
            batch = drawn()
            step = seconds(lambda model=model, batch=batch: plain(model, losses, batch))
            ratios.append(seconds(lambda model=model, batch=batch: ours(model, losses, batch)) / step)
        yield f"packed {core.__name__}, 300 sequences, beside its plain step", quartiles(ratios)


def main():
    """Run, print, and write the dated report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-report", action="store_true", help="print only")
    parser.add_argument("--first", metavar="MODEL", help="print what a first use takes, and end")
    arguments = parser.parse_args()
    if arguments.first:
        print(first_use(arguments.first))
        return
    torch.manual_seed(0)
    rows = [*hand_written(arguments.rounds), *lengths(), *packed(arguments.rounds)]
    for name in ("mnist-cnn", "resnet-20", "gpt", "mlp"):
        command = [sys.executable, __file__, "--first", name]
        found = [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(3)]
        rows.append((f"first use of {name} in a fresh process, in plain steps", f"{statistics.median(found):.1f}"))
    date = datetime.now(UTC).date().isoformat()
    text = (
        f"# Shapes that change, {date}\n\n`python benchmarks/new_shapes.py {' '.join(sys.argv[1:])}`, torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads; wall time, medians (and quartiles) of "
        f"{arguments.rounds} rounds.\n\n| what | ratio |\n|---|---:|\n"
    ) + "".join(f"| {name} | {value} |\n" for name, value in rows)
    print(text)
    if not arguments.no_report:
        path = HERE / "reports" / f"new-shapes-{date}.md"
        partial = path.with_suffix(".partial")
        partial.write_text(text)
        partial.replace(path)


if __name__ == "__main__":
    main()
