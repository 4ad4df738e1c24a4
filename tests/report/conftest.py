"""Documents to draw: an ordinary run and every odd one, each a whole document of `variegrad measure`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from variegrad.reports import write_report

Document = dict[str, Any]
N = 1500


def as_json(value: float) -> float | str | None:
    return None if math.isnan(value) else "inf" if math.isinf(value) else value


def a_point(k: int, bounds: dict[str, float], mechanisms: tuple[str, ...], flags: tuple[str, ...] = ()) -> Document:
    """A point whose layers have the given bounds and equal Σ‖g‖²; NaN is a layer of zero gradients."""
    sums = {name: 0.0 if math.isnan(b) else 1.0 + i for i, (name, b) in enumerate(bounds.items())}
    squares = {name: 0.0 if math.isnan(b) else N * sums[name] / b for name, b in bounds.items()}
    a, s = sum(sums.values()), sum(squares.values())
    whole = math.nan if a == 0 else math.inf if s == 0 else N * a / s
    rho = math.nan if a == 0 else (s - a) / ((N - 1) * a)
    return {
        "passes": 0.25 * k**1.5,
        "updates": 6 * k,
        "loss": 2.3 * math.exp(-0.3 * k),
        "accuracy": 1 - 0.9 * math.exp(-0.3 * k),
        "test_loss": 2.3 * math.exp(-0.25 * k),
        "test_accuracy": 1 - 0.9 * math.exp(-0.25 * k),
        "count": N,
        "dimension": 100 * len(bounds),
        "sum_sq_norms": a,
        "sq_norm_of_sum": s,
        "diversity": as_json(whole / N),
        "batch_size_bound": as_json(whole),
        "batch_size_bound_without_replacement": as_json(math.inf if rho <= 0 else 1 / rho),
        "flags": list(flags),
        "mechanisms": {
            name: {"bound": as_json(1.2 * whole), "effective_bound": as_json((1.5 + i) * whole)}
            for i, name in enumerate(mechanisms)
        },
        "per_parameter": {
            name: {
                "dimension": 100,
                "sum_sq_norms": sums[name],
                "sq_norm_of_sum": squares[name],
                "batch_size_bound": as_json(bounds[name]),
                "share": squares[name] / s if s else None,
            }
            for name in bounds
        },
    }


def a_document(points: list[Document], name: str = "digits", **changes: Any) -> Document:
    first: Document = points[0] if points else {"mechanisms": {}, "dimension": 0}
    return {
        "schema": "variegrad.measure/1",
        "problem": {
            "name": name,
            "description": "8×8 digits; MLP 64-48-10",
            "examples": N,
            "parameters": first["dimension"],
        },
        "settings": {
            "passes": 10.0,
            "points": 12,
            "batch_size": 64,
            "step_size": 0.002,
            "seed": 0,
            "mechanisms": list(first["mechanisms"]),
            "data_root": None,
            "max_examples": None,
        },
        "versions": {
            "variegrad": "0.1.0",
            "torch": "2.13.0",
            "numpy": "2.4.6",
            "python": "3.11.7",
            "platform": "Linux",
        },
        "command": f"variegrad measure {name} --report runs/a",
        "started": "2026-01-15T10:30:00+00:00",
        "seconds": 12.3,
        "interrupted": False,
        "points": points,
        "advice": "A batch of 64 examples is well used all along the run.",
        **changes,
    }


DROP, LANGEVIN, QUANTIZE = "DropConnect(0.4)", "Langevin(0.01)", "Quantize()"
HOSTILE = '<script>window.hit = 1</script>"><img src=x onerror="window.hit = 1">'


def usual() -> Document:
    names = ("0.weight", "0.bias", "2.weight", "2.bias")
    return a_document(
        [
            a_point(k, {name: (20 + 9 * i) * 1.3**k for i, name in enumerate(names)}, (DROP, LANGEVIN, QUANTIZE))
            for k in range(12)
        ]
    )


def degenerate() -> Document:
    two = ("0.weight", "2.weight")
    rows: list[tuple[float, tuple[str, ...]]] = [
        (30.0, ()),
        (math.inf, ("zero_total", "conflicting")),
        (2000.0, ("conflicting",)),
        (math.nan, ("undefined",)),
        (80.0, ()),
    ]
    return a_document(
        [a_point(k, dict.fromkeys(two, bound), (DROP,), flags) for k, (bound, flags) in enumerate(rows)],
        interrupted=True,
    )


def only_infinite() -> Document:
    return a_document([a_point(k, {"weight": math.inf}, (DROP,), ("zero_total", "conflicting")) for k in range(3)])


def only_undefined() -> Document:
    return a_document([a_point(k, {"weight": math.nan}, (DROP,), ("undefined",)) for k in range(3)])


def deep() -> Document:
    names = [
        f"_orig_mod.transformer.h.{k}.attention.projection.{part}" for k in range(150) for part in ("weight", "bias")
    ]
    return a_document(
        [
            a_point(k, {name: 5 + 1000 * ((7 * i) % 150) / 150 * 1.1**k for i, name in enumerate(names)}, ())
            for k in range(40)
        ],
        name="a-problem-with-a-name-that-never-seems-to-come-to-any-end-" * 3,
    )


def hostile() -> Document:
    names = (f"{HOSTILE}.weight", "$\\frac{$.weight", "_hidden.weight", "层\x00\n🙂.weight", "{{ 7 * 7 }}.weight")
    document = a_document(
        [
            a_point(k, {name: 30.0 + i for i, name in enumerate(names)}, (HOSTILE, "$\\alpha", "_m", "m" * 300))
            for k in range(2)
        ],
        name=HOSTILE,
        advice=HOSTILE,
        command=f"variegrad measure '{HOSTILE}' \udcff",
        started=HOSTILE,
    )
    document["problem"]["description"] = HOSTILE
    document["settings"][HOSTILE] = HOSTILE
    document["versions"]["platform"] = HOSTILE
    document["points"][0]["flags"] = [HOSTILE]
    return document


def unscored() -> Document:
    document = usual()
    for k, point in enumerate(document["points"]):
        point.update(accuracy=None, test_loss=None, test_accuracy=0.5, loss="inf" if k > 9 else None if k > 8 else 2.0)
    document["settings"]["batch_size"] = None
    return document


CASES: dict[str, Callable[[], Document]] = {
    "usual": usual,
    "degenerate": degenerate,
    "only infinite": only_infinite,
    "only undefined": only_undefined,
    "single point": lambda: a_document([a_point(0, {"weight": 30.0}, (DROP,))]),
    "nothing measured": lambda: a_document([], interrupted=True, advice="The run ended before its first point."),
    "deep": deep,
    "hostile": hostile,
    "unscored": unscored,
    "huge bound": lambda: a_document([a_point(k, {"weight": 10.0 ** (6 * k)}, (DROP,)) for k in range(3)]),
    "no layers": lambda: a_document([a_point(0, {"weight": 30.0}, ()) | {"per_parameter": {}}]),
}


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The page of a case, written when first asked for and only read by the tests."""
    folder = tmp_path_factory.mktemp("reports")

    @cache
    def written(name: str) -> Path:
        return write_report(CASES[name](), folder / name.replace(" ", "-"))

    return written


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    """The name of each case in turn."""
    name: str = request.param
    return name


@pytest.fixture
def documents() -> dict[str, Document]:
    """All documents by the name of their case."""
    return {name: make() for name, make in CASES.items()}


@pytest.fixture
def ordinary() -> Document:
    """An ordinary run, to be changed by the test."""
    return usual()
