"""Figure 3b: generalisation at B = 512, cuda-convnet on CIFAR-10."""

from __future__ import annotations

from typing import Any

from variegrad.experiments.generalisation import generalisation

SMALL: dict[str, Any] = {
    "problem": "cifar10", "without_data": "digits", "max_examples": 512, "network": "convnet:8",
    "batch_sizes": [32, 512], "grid": [-14, -12, -10, -8, -6], "passes": 12, "points": 6, "seeds": 5, "tuning": 1,
}  # fmt: skip
PROFILES = {
    "smoke": {**SMALL, "problem": "digits", "max_examples": 64, "network": "mlp:8:relu", "batch_sizes": [4, 32],
              "grid": [-8, -6], "passes": 2, "points": 1, "seeds": 2},
    "small": SMALL,
    "paper": {**SMALL, "max_examples": 50_000, "network": "convnet:64", "passes": 100, "points": 100},
}  # fmt: skip
CHOICES = (
    "The small profile has 512 training and 512 test images and an eighth of the network's channels; five repeats "
    "where the paper has three. The small batch is our control: the paper compares the two large ones by eye."
)

EXPERIMENT = generalisation(
    name="figure-3b", title="Figure 3b: generalisation at B = 512", choices=CHOICES, profiles=PROFILES
)
