"""LSTM, GRU and RNN as the products that they are made of, instead of one fused kernel whose inside no rule can see.

The same equations, step by step. Packed sequences are padded, and a step leaves the state of a sequence that has
ended as it is: every step then has a row for each example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

State = tuple[Any, ...]
"""Hidden state, and memory of an LSTM: tensors, or None for zeros."""
Cell = Callable[[Tensor, State, Sequence[Tensor], bool], State]


@contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """Evaluate recurrent layers inside step by step; costs nothing for models without any."""
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        with _StepByStep():
            yield
    else:
        yield


class _StepByStep(TorchFunctionMode):
    """Serves the recurrent functions, and remembers in which order a packing has sorted the examples.

    It also remembers which tensors were made as zeros: from such a state no product is taken.
    """

    def __init__(self) -> None:
        super().__init__()
        self.selected: tuple[Tensor, Tensor] | None = None
        self.orders: list[tuple[Tensor, Tensor]] = []
        self.zeros: list[tuple[Tensor, int]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.index_select and not kwargs:  # what precedes a packing of unsorted sequences
            result = func(*args)
            self.selected = result, args[2]
            if self.is_zero(args[0]):
                self.zeros.append((result, result._version))
            return result
        own = None if kwargs else _OWN.get(func)
        result = func(*args, **(kwargs or {})) if own is None else own(self, *args)
        if func is torch.zeros:
            self.zeros.append((result, result._version))
        return result

    def is_zero(self, tensor: Tensor) -> bool:
        """Whether a tensor was made as zeros and not written to since: no value is read."""
        return any(each is tensor and each._version == version for each, version in self.zeros)

    def packing(self, batch_sizes: Tensor, device: torch.device) -> _Packing:
        """Where the rows are, with the examples in the order that they had before they were sorted."""
        order = next((order for sizes, order in self.orders if sizes is batch_sizes), None)
        return _Packing.of(batch_sizes, device, order)


def _hidden(hidden: Tensor | None, weights: Sequence[Tensor], biases: bool) -> Tensor | None:
    """W·h + b; from a state of zeros the product is left out, so that every use of W has a gradient."""
    if hidden is None:
        return weights[3] if biases else None
    return F.linear(hidden, weights[1], weights[3] if biases else None)


def _lstm(gates: Tensor, state: State, weights: Sequence[Tensor], biases: bool) -> State:
    hidden, memory = state
    recurrent = _hidden(hidden, weights, biases)
    into, forget, new, out = (gates if recurrent is None else gates + recurrent).chunk(4, -1)
    gained = into.sigmoid() * new.tanh()
    memory = gained if memory is None else forget.sigmoid() * memory + gained
    hidden = out.sigmoid() * memory.tanh()
    projected = len(weights) == (5 if biases else 3)
    return (F.linear(hidden, weights[-1]) if projected else hidden), memory


def _gru(gates: Tensor, state: State, weights: Sequence[Tensor], biases: bool) -> State:
    (hidden,) = state
    reset, update, new = gates.chunk(3, -1)
    recurrent = _hidden(hidden, weights, biases)
    if recurrent is None:
        return (new.tanh() * (1 - update.sigmoid()),)
    reset_h, update_h, new_h = recurrent.chunk(3, -1)
    candidate = (new + (reset + reset_h).sigmoid() * new_h).tanh()
    kept = (update + update_h).sigmoid()
    return (candidate + kept * ((-candidate) if hidden is None else (hidden - candidate)),)


def _elman(activation: Callable[[Tensor], Tensor]) -> Cell:
    def cell(gates: Tensor, state: State, weights: Sequence[Tensor], biases: bool) -> State:
        recurrent = _hidden(state[0], weights, biases)
        return (activation(gates if recurrent is None else gates + recurrent),)

    return cell


@dataclass(frozen=True)
class _Packing:
    """Where the rows of a packed sequence are in one of T steps and b examples.

    Attributes:
        order: the example of each sorted place; None if they are in order.
        places: of each packed row.
        running: whether an example has not ended at a step, (T, b, 1).
    """

    steps: int
    count: int
    order: Tensor | None
    places: Tensor
    running: Tensor

    @classmethod
    def of(cls, batch_sizes: Tensor, device: torch.device, order: Tensor | None = None) -> _Packing:
        sizes = batch_sizes.numpy()  # of the host by torch's contract
        steps, count = len(sizes), int(sizes[0])
        running = torch.from_numpy(np.arange(count) < sizes[:, None]).to(device)
        step = torch.from_numpy(np.repeat(np.arange(steps), sizes)).to(device)
        place = torch.from_numpy(np.concatenate([np.arange(size) for size in sizes])).to(device)
        if order is not None:
            order = order.to(device)
            place = order[place]
            running = running[:, order.argsort()]
        return cls(steps, count, order, step * count + place, running.unsqueeze(2))

    def padded(self, data: Tensor) -> Tensor:
        whole = data.new_zeros(self.steps * self.count, *data.shape[1:]).index_copy(0, self.places, data)
        return whole.unflatten(0, (self.steps, self.count))

    def packed(self, padded: Tensor) -> Tensor:
        return padded.flatten(0, 1).index_select(0, self.places)

    def to_order(self, state: Tensor) -> Tensor:
        """(layers, b, h) of sorted examples → of examples as they came."""
        return state if self.order is None else state.index_select(1, self.order.argsort())

    def to_sorted(self, state: Tensor) -> Tensor:
        return state if self.order is None else state.index_select(1, self.order)


def _pad(
    mode: _StepByStep, data: Tensor, batch_sizes: Tensor, batch_first: bool, value: float, total: int
) -> tuple[Tensor, Tensor]:
    packing = mode.packing(batch_sizes, data.device)
    padded = packing.padded(data)
    if value:
        running = packing.running.view(*packing.running.shape[:2], *[1] * (padded.dim() - 2))
        padded = padded.masked_fill(~running, value)
    padded = packing.to_sorted(padded)
    if total > packing.steps:
        padded = torch.cat((padded, padded.new_full((total - packing.steps, *padded.shape[1:]), value)))
    lengths = (batch_sizes.unsqueeze(0) > torch.arange(packing.count).unsqueeze(1)).sum(1)
    return (padded.transpose(0, 1) if batch_first else padded), lengths


def _pack(mode: _StepByStep, padded: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    data, batch_sizes = torch._pack_padded_sequence(padded, lengths, batch_first)
    if mode.selected is not None and mode.selected[0] is padded:
        mode.orders.append((batch_sizes, mode.selected[1]))
    return data, batch_sizes


def _run(cell: Cell, mode: _StepByStep, *args: Any) -> tuple[Tensor, ...]:
    if isinstance(args[3], list | tuple):
        data, sizes, state, flat, biases, layers, rate, training, both = args
        packing, batch_first = mode.packing(sizes, data.device), False
    else:
        data, state, flat, biases, layers, rate, training, both, batch_first = args
        packing = None
    state = (state,) if isinstance(state, Tensor) else tuple(state)
    fresh = all(mode.is_zero(s) for s in state)
    if packing is not None:
        state = tuple(packing.to_order(s) for s in state)
    directions, data = 2 if both else 1, data.transpose(0, 1) if batch_first else data
    each = len(flat) // (layers * directions)
    last: list[State] = []
    for layer in range(layers):
        inputs = data if packing is None else packing.padded(data)
        outputs = []
        for direction in range(directions):
            k = layer * directions + direction
            weights = flat[k * each : (k + 1) * each]
            output, final = _layer(
                cell, inputs, tuple(None if fresh else s[k] for s in state), weights, biases, direction == 1,
                None if packing is None else packing.running,
            )  # fmt: skip
            outputs.append(output)
            last.append(final)
        data = torch.cat(outputs, -1) if both else outputs[0]
        data = data if packing is None else packing.packed(data)
        if rate and training and layer + 1 < layers:
            data = F.dropout(data, rate)
    data = data.transpose(0, 1) if batch_first else data
    final_states = [torch.stack(each_state) for each_state in zip(*last, strict=True)]
    return (data, *(s if packing is None else packing.to_sorted(s) for s in final_states))


def _layer(
    cell: Cell,
    inputs: Tensor,
    state: State,
    weights: Sequence[Tensor],
    biases: bool,
    reverse: bool,
    running: Tensor | None,
) -> tuple[Tensor, State]:
    gates = F.linear(inputs, weights[0], weights[2] if biases else None).unbind(0)
    outputs = []
    for t in reversed(range(len(gates))) if reverse else range(len(gates)):
        new = cell(gates[t], state, weights, biases)
        if running is not None:
            new = tuple(
                after * running[t] if before is None else torch.where(running[t], after, before)
                for after, before in zip(new, state, strict=True)
            )
        state = new
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if reverse else outputs), state


_OWN: dict[Any, Callable[..., Any]] = {
    torch.lstm: partial(_run, _lstm),
    torch.gru: partial(_run, _gru),
    torch.rnn_tanh: partial(_run, _elman(torch.tanh)),
    torch.rnn_relu: partial(_run, _elman(torch.relu)),
    torch._pack_padded_sequence: _pack,
    torch._pad_packed_sequence: _pad,
}
