"""Looking at a model without leaving a trace: its modes, buffers, attributes, gradients and generators come back."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Give back modes, buffers (values and bindings), plain attributes and every generator, whatever happens inside.

    Args:
        model: the model to protect.

    Yields:
        Nothing.
    """
    attributes = [(module, {**vars(module)}) for module in model.modules()]
    bindings = [(module, {**module._buffers}) for module in model.modules()]
    values = [(b, b.detach().clone()) for _, found in bindings for b in found.values() if b is not None]
    with generators_rewound(model):
        try:
            yield
        finally:
            for module, found in attributes:
                for name in vars(module).keys() - found.keys():
                    del vars(module)[name]
                vars(module).update(found)
            for module, buffers in bindings:
                module._buffers.clear()
                module._buffers.update(buffers)
            with torch.no_grad():
                for buffer, before in values:
                    if not torch.equal(buffer, before):
                        buffer.copy_(before)


@contextmanager
def generators_rewound(model: nn.Module) -> Iterator[None]:
    """Draws inside the block leave the global generators of torch, numpy and Python as they were.

    Args:
        model: whose devices have generators, too.

    Yields:
        Nothing.
    """
    devices = {t.device.index or 0 for t in (*model.parameters(), *model.buffers()) if t.device.type == "cuda"}
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=sorted(devices)):
            yield
    finally:
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)


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
