"""Per-example gradient norms: exact on any model, from one forward and one backward pass."""

from variegrad.per_example.engine import Engine
from variegrad.per_example.explanation import Explanation, explain
from variegrad.per_example.norms import example_gradients, example_sq_norms, loop_gradients

__all__ = [
    "Engine",
    "Explanation",
    "example_gradients",
    "example_sq_norms",
    "explain",
    "loop_gradients",
]
