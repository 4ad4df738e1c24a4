"""Weights from a file into a problem's model: what `--weights` reads.

Nothing in a file is executed: safetensors holds numbers alone, and torch's own format is read with `weights_only`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from variegrad.data_root import check_regular

OF_A_RUN = "weights.safetensors"


def load_weights(model: nn.Module, path: Path) -> None:
    """Load the weights from a file into a model, in place.

    Args:
        model: takes them, by name.
        path: a folder that `variegrad train --out` wrote, a checkpoint's folder in it, a `.safetensors` file, or a
            state dict saved by `torch.save` (also under the key "state_dict" or "model").

    Raises:
        ValueError: if the file is none of these, or belongs to another model.
    """
    file = _file(path)
    tensors = _read(file)
    own = model.state_dict()
    # A checkpoint stores tied weights once: a name is there if any tensor of the same memory is.
    memory = {name: (tensor.data_ptr(), tensor.shape) for name, tensor in own.items()}
    stored = {memory[name]: tensor for name, tensor in tensors.items() if name in own and own[name].numel()}
    tensors = {name: stored[memory[name]] for name in own if memory[name] in stored} | dict(tensors)
    missing, odd = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shaped = [
        f"{name} has shape {tuple(tensors[name].shape)}, the model's {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if missing or odd or shaped:
        wrong = [f"lacks {', '.join(missing[:3])}"] if missing else []
        wrong += [f"holds {', '.join(odd[:3])}, which the model does not have"] if odd else []
        raise ValueError(f"--weights {path}: belongs to another model: {'; '.join([*wrong, *shaped[:3]])}.")
    model.load_state_dict(dict(tensors))


def _file(path: Path) -> Path:
    check_regular(path)
    if not path.is_dir():
        return path
    if (path / OF_A_RUN).is_file():
        return path / OF_A_RUN
    found = [
        file
        for pattern in ("*.safetensors", "*/*.safetensors", "checkpoints/*/*.safetensors")
        for file in sorted(path.glob(pattern))
        if not file.parent.name.startswith((".", "damaged-"))
    ]
    if not found:
        raise ValueError(f"--weights {path}: the folder has no {OF_A_RUN}, as `variegrad train --out` writes it.")
    return found[-1]  # of several checkpoints the newest


def _read(file: Path) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError  # noqa: PLC0415 - only if weights are read
    from safetensors.torch import load_file  # noqa: PLC0415

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        found: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"--weights {file}: cannot be read ({_first_line(error)}).") from error
    except Exception as error:  # torch raises its unpickler's own classes
        raise ValueError(
            f"--weights {file}: not a state dict of tensors. Save it by torch.save(model.state_dict(), FILE) or as "
            ".safetensors."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ValueError(
            f"--weights {file}: must contain a state dict, name → tensor; it contains a {type(found).__name__}."
        )
    return found


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0][:200].rstrip(".")
