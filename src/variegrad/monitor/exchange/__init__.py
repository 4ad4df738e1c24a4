"""Sums over micro-batches and workers, and how workers exchange them in lockstep."""
