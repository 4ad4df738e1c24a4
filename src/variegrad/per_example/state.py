"""Looking at a model without leaving a trace: its modes, buffers, attributes, gradients and generators come back."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Generators:
    """The global generators of torch (of the CPU and of the models' devices), numpy and Python, as they are now."""

    def __init__(self, *models: nn.Module) -> None:
        self._found: list[tuple[Callable[[Any], object], Any]] = [
            (torch.set_rng_state, torch.get_rng_state()),
            (np.random.set_state, np.random.get_state()),  # noqa: NPY002
            (random.setstate, random.getstate()),
        ]
        tensors = (t for model in models for t in (*model.parameters(), *model.buffers()))
        for device in {t.device for t in tensors if t.device.type not in ("cpu", "meta")}:
            module = torch.get_device_module(device)
            at = {"device": device} if module.device_count() > 1 else {}  # not every kind of device takes an index
            self._found.append((partial(module.set_rng_state, **at), module.get_rng_state(**at)))

    def restore(self) -> None:
        """Rewind them."""
        for set_state, value in self._found:
            set_state(value)


class Snapshot:
    """A model's modes, buffers (values and bindings), plain attributes, and every generator, as they are now."""

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self._attributes = [(module, {**vars(module)}) for module in modules]
        self._bindings = [(module, {**module._buffers}) for module in modules]
        buffers = {id(b): b for _, found in self._bindings for b in found.values() if b is not None}
        self._values = [(b, b.detach().clone()) for b in buffers.values()]
        self._generators = Generators(model)

    def restore(self) -> None:
        """Give all of it back."""
        for module, found in self._attributes:
            for name in vars(module).keys() - found.keys():
                del vars(module)[name]
            vars(module).update(found)
        for module, buffers in self._bindings:
            module._buffers.clear()
            module._buffers.update(buffers)
        with torch.no_grad():
            for buffer, before in self._values:
                if not torch.equal(buffer, before):  # else a graph that has saved it would be spoiled
                    buffer.copy_(before)
        self._generators.restore()


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Give back a model's state and every generator, whatever happens inside."""
    before = Snapshot(model)
    try:
        yield
    finally:
        before.restore()


@contextmanager
def on_copies_of_buffers(model: nn.Module) -> Iterator[None]:
    """Let the model read and write copies of its buffers: a graph that exists keeps what it has saved of them."""
    found = [(m, name, b) for m in model.modules() for name, b in m._buffers.items() if b is not None]
    copies = {id(buffer): buffer.detach().clone() for _, _, buffer in found}
    try:
        for module, name, buffer in found:
            module._buffers[name] = copies[id(buffer)]
        yield
    finally:
        for module, name, buffer in found:
            module._buffers[name] = buffer


class aside:  # noqa: N801 - entered at every call: a generator would cost more
    """Backward passes inside run no hook of the user on these parameters and meet no `.grad`; both come back.

    A custom Function may differentiate inside its backward and accumulate into `.grad`: `touched` tells.

    Args:
        parameters: the trained parameters.
        hooks: whether the hooks that change a gradient are kept (post-accumulate hooks never are).
    """

    def __init__(self, parameters: Iterable[Tensor], *, hooks: bool = False) -> None:
        self._parameters, self._hooks = list(parameters), hooks
        self._found: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._gradients: list[Tensor | None] = []

    def __enter__(self) -> aside:
        self._gradients = [p.grad for p in self._parameters]
        for p, gradient in zip(self._parameters, self._gradients, strict=True):
            if gradient is not None:
                p.grad = None
            for hooks in (
                (None if self._hooks else p._backward_hooks),
                getattr(p, "_post_accumulate_grad_hooks", None),
            ):
                if hooks:
                    self._found.append((hooks, {**hooks}))
                    hooks.clear()
        return self

    @property
    def touched(self) -> bool:
        """Whether a pass has accumulated into some `.grad`."""
        return any(p.grad is not None for p in self._parameters)

    def __exit__(self, *_: object) -> None:
        for p, gradient in zip(self._parameters, self._gradients, strict=True):
            if p.grad is not gradient:
                p.grad = gradient
        for hooks, found in self._found:
            hooks.update(found)


def hooked(parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """The parameters with hooks that may change their gradient."""
    return [name for name, p in parameters.items() if p._backward_hooks]


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Rules compute in the types that they are given."""
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()
