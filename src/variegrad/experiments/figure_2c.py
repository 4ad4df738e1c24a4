"""Figure 2c: the loss ratio under r-replication along the passes, ResNet-20 with group normalisation on CIFAR-10."""

from __future__ import annotations

from variegrad.experiments.figure_2b import PAPER, SMALL
from variegrad.experiments.loss_ratio import loss_ratio

PROFILES = {
    "smoke": {**SMALL, "problem": "digits", "max_examples": 64, "network": "mlp:8x8:relu", "replications": [1, 8],
              "batch_sizes": [4, 16], "grid": [-8, -4], "passes": 1, "points": 1, "seeds": 2},
    "small": {**SMALL, "network": "resnet8", "replications": [1, 32], "batch_sizes": [16, 128], "passes": 20,
              "points": 5, "seeds": 8},
    "paper": {**PAPER, "network": "resnet20"},
}  # fmt: skip

EXPERIMENT = loss_ratio(
    name="figure-2c",
    title="Figure 2c: replication and DropConnect, residual network",
    choices="Group normalisation, so that every example has a gradient of its own; ResNet-20 in the profile `paper` "
    "(the paper names He et al. 2016 and no depth), ResNet-8 (one block per stage) on 1,024 images of 16 × 16 pixels "
    "in the small profile, and a perceptron in the smoke profile. Otherwise as in Figure 2b.",
    profiles=PROFILES,
)
