"""Per-example gradient norms: exact on any model, from one forward and one backward pass."""

from variegrad.per_example.norms import example_gradients, example_sq_norms, loop_gradients

__all__ = ["example_gradients", "example_sq_norms", "loop_gradients"]
