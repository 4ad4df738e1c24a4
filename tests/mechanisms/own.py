"""Mechanisms as a user writes them: the law in two members, and one draw."""

from dataclasses import dataclass

from variegrad.mechanisms import Mechanism


@dataclass(frozen=True)
class Jitter(Mechanism):
    """m(g) = g∘(1 + τz): noise in proportion to each coordinate."""

    tau: float

    @property
    def mean_scale(self):
        return 1.0

    def expected_sq_norm(self, norms):
        return norms.sum_sq_norms * (1 + self.tau**2)

    def draw(self, rows, draws):
        return rows * (1 + self.tau * draws.normal())


@dataclass(frozen=True)
class SkipExample(Mechanism):
    """m(g) = g/(1−p) or 0, for the whole example at once."""

    p: float

    @property
    def mean_scale(self):
        return 1.0

    def expected_sq_norm(self, norms):
        return norms.sum_sq_norms / (1 - self.p)

    def draw(self, rows, draws):
        return rows * (draws.uniform_of_example() >= self.p) / (1 - self.p)


@dataclass(frozen=True)
class Ternary(Mechanism):
    """Section 4.4's quantisation in a user's words: ‖g‖·sign(g_l) with probability |g_l|/‖g‖."""

    needs_l1_norms = True

    @property
    def needs_norms(self):
        return True

    @property
    def mean_scale(self):
        return 1.0

    def expected_sq_norm(self, norms):
        return norms.sum_l1_l2_norms

    def draw(self, rows, draws):
        norms = draws.norms.to(rows).view(-1, *(1 for _ in rows.shape[1:]))
        return rows.sign() * norms * draws.bernoulli(rows.abs() / norms)
