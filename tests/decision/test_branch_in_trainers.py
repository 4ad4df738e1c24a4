"""The guide's branches in Lightning and in Hugging Face's Trainer train what its plain loop trains."""

import contextlib
import io
import re
import warnings
from pathlib import Path

import pytest

from variegrad.decision import LearningRateRule, Trial

GUIDE = (Path(__file__).parents[2] / "docs/how-to/critical-batch.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
PLAIN = next(block for block in BLOCKS if "def run(trial)" in block)


def names_of(word):
    """What the plain loop and one trainer's block define; the check at the end of the plain block is left out."""
    code = PLAIN.split("found = vg.branch")[0] + next(block for block in BLOCKS if f"def {word}(trial)" in block)
    names = {}
    exec(compile(code, "critical-batch.md", "exec"), names)
    return names


@pytest.mark.parametrize(("package", "word", "same_order"), [
    ("lightning", "run_lightning", True),
    ("transformers", "run_trainer", False),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore")  # of the trainers
def test_a_trainer_trains_the_window(package, word, same_order, monkeypatch):
    pytest.importorskip(package)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = names_of(word)
        for k in (1, 4):
            trial = Trial(batch_size=16 * k, k=k, examples=128, seed=3, rule=LearningRateRule.LINEAR, half_lives=False)
            plain, other = names["run"](trial), names[word](trial)
            start = names["loss"](names["WithLoss"]().model) if word == "run_trainer" else None
            # Trainer visits the same examples in another order.
            assert other == pytest.approx(plain, rel=1e-6 if same_order else 2e-3)
            assert start is None or other < start
