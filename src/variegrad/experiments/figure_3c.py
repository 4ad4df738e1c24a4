"""Figure 3c: generalisation at B = 1024, cuda-convnet on CIFAR-10."""

from __future__ import annotations

from variegrad.experiments.figure_3b import CHOICES
from variegrad.experiments.figure_3b import PROFILES as OF_3B
from variegrad.experiments.generalisation import generalisation

PROFILES = {
    "smoke": {**OF_3B["smoke"], "batch_sizes": [4, 64]},
    "small": {**OF_3B["small"], "batch_sizes": [32, 1024]},
    "paper": {**OF_3B["paper"], "batch_sizes": [32, 1024]},
}

EXPERIMENT = generalisation(
    name="figure-3c", title="Figure 3c: generalisation at B = 1024", choices=CHOICES, profiles=PROFILES
)
