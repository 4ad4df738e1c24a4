"""What a loss was computed from: the logits among a model's outputs, and hooks that find them where nobody hands them.

A wrong guess ends in a refusal, not in a wrong number: Monitor checks that the loss depends on the parameters through
the output alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def logits_of(outputs: Any) -> Tensor | None:
    """The logits: the output itself, its field `logits`, or the first of several that has examples and a graph.

    Args:
        outputs: what a model returned.

    Returns:
        The tensor; None where there is none.
    """
    if isinstance(outputs, Mapping):
        outputs = outputs.get("logits")
    elif not isinstance(outputs, Tensor):
        outputs = getattr(outputs, "logits", outputs)
    several = outputs if isinstance(outputs, tuple | list) else [outputs]
    found = (one for one in several if isinstance(one, Tensor) and one.dim() > 0 and one.grad_fn is not None)
    return next(found, None)


class OutputOf:
    """Remembers the last output in a step of a module or of one of its children, whichever came last.

    Args:
        module: with trained parameters.
        name: the one submodule to listen to; by default the module itself and all children that are trained.
        children_only: whether the module's own output does not count.

    Raises:
        ValueError: if there is no submodule of that name.
    """

    def __init__(self, module: nn.Module, name: str | None = None, *, children_only: bool = False) -> None:
        trained = [child for child in module.children() if any(p.requires_grad for p in child.parameters())]
        try:
            own = [] if children_only else [module]
            listened_to = [*trained, *own] if name is None else [module.get_submodule(name)]
        except AttributeError:
            raise ValueError(
                f"output_of={name!r} is no submodule of {type(module).__name__}; "
                f"its children are {', '.join(repr(child) for child, _ in module.named_children())}."
            ) from None
        self._last: Tensor | None = None
        self._handles: list[RemovableHandle] = [part.register_forward_hook(self._remember) for part in listened_to]

    def _remember(self, _module: nn.Module, _inputs: Any, outputs: Any) -> None:
        found = logits_of(outputs)
        self._last = self._last if found is None else found

    def take(self) -> Tensor:
        """The last output, which is then forgotten.

        Returns:
            The tensor.

        Raises:
            ValueError: if there was none.
        """
        found, self._last = self._last, None
        if found is None:
            raise ValueError(
                "BatchSizeMonitor: no output with examples in its first dimension was seen in this step, neither a "
                "tensor with a graph nor a field `logits`. Name the submodule that the loss is computed from, "
                "output_of='head' for example, or use variegrad.Monitor itself: monitor.watch(per_example)."
            )
        return found

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._last = None
