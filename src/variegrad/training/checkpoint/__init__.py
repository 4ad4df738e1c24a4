"""Verified checkpoints: whole and of this run, or refused (docs/developers/reliability.md).

A folder holds one folder per kept step, with tensors in safetensors and everything else in a JSON manifest, which
states size and SHA-256 of what it speaks for. Nothing is pickled.
"""

import warnings

from variegrad.training.checkpoint.load import Checkpoint, NoneUsable, Unusable, empty, load, steps
from variegrad.training.checkpoint.lock import FolderInUse, lock
from variegrad.training.checkpoint.manifest import Progress
from variegrad.training.checkpoint.run import Run
from variegrad.training.checkpoint.save import NotSaved, save
from variegrad.training.checkpoint.settings import check_settings

__all__ = [
    "Checkpoint",
    "FolderInUse",
    "NoneUsable",
    "NotSaved",
    "Progress",
    "Run",
    "Unusable",
    "check_settings",
    "empty",
    "load",
    "lock",
    "save",
    "steps",
]


def __getattr__(name: str) -> object:
    if name != "Skipped":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("variegrad.training.checkpoint.Skipped is now Unusable.", DeprecationWarning, stacklevel=2)
    return Unusable
