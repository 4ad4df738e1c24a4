"""What norms of packed sequences cost beside a plain step: python benchmarks/sequences.py [--rounds 9] [--examples 300]

LSTM and GRU of 300 sequences of 5 to 30 tokens, packed, a new batch and a new longest sequence in each round. The plain
step uses torch's fused kernels. Rounds are interleaved; a ratio is that of one round to its own plain step.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import variegrad as vg


class Classifier(nn.Module):
    """The class of a sequence from the last state of a recurrent layer."""

    def __init__(self, core: type[nn.RNNBase], vocabulary: int = 2000) -> None:
        super().__init__()
        self.table, self.core, self.head = (
            nn.Embedding(vocabulary, 64),
            core(64, 128, batch_first=True),
            nn.Linear(128, 4),
        )

    def forward(self, tokens, lengths):
        packed = pack_padded_sequence(self.table(tokens), lengths, batch_first=True, enforce_sorted=False)
        state = self.core(packed)[1]
        return self.head((state[0] if isinstance(state, tuple) else state)[-1])


def losses(model, batch):
    """Cross entropy, one value for each sequence."""
    return F.cross_entropy(model(*batch[:2]), batch[2], reduction="none")


def batch_of(count):
    """Tokens, lengths and classes."""
    lengths = torch.randint(5, 31, (count,))
    return torch.randint(2000, (count, int(lengths.max()))), lengths, torch.randint(4, (count,))


def seconds(function):
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--examples", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for core in (nn.LSTM, nn.GRU):
        torch.manual_seed(0)
        model = Classifier(core)
        for _ in range(5):  # learned, and checked at the first four
            vg.example_sq_norms(model, losses, batch_of(options.examples))
        plain, ratios = [], []
        for _ in range(options.rounds):
            batch = batch_of(options.examples)
            model.zero_grad()
            plain.append(seconds(lambda model=model, batch=batch: losses(model, batch).sum().backward()))
            model.zero_grad()
            ratios.append(
                seconds(lambda model=model, batch=batch: vg.example_sq_norms(model, losses, batch)) / plain[-1]
            )
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"packed {core.__name__}, {options.examples} examples: plain {1e3 * statistics.median(plain):.0f} ms, "
            f"norms {middle:.2f} times (quartiles {low:.2f} and {high:.2f}, {options.rounds} rounds)"
        )


if __name__ == "__main__":
    main()
