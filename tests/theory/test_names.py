"""Statements with a number are found by it; former names work for one version, with a warning."""

from __future__ import annotations

import numpy as np
import pytest

from variegrad import theory


@pytest.mark.parametrize(
    ("number", "name"),
    [("lemma_1", "expected_sq_distance"), ("theorem_2", "rates_smooth"), ("theorem_3", "rates_polyak_lojasiewicz"),
     ("theorem_4", "rates_convex"), ("theorem_5", "rates_strongly_convex"), ("theorem_6", "worst_case"),
     ("theorem_9", "stability_convex"), ("theorem_10", "stability_strongly_convex")],
)  # fmt: skip
def test_a_statement_is_found_by_its_number(number: str, name: str) -> None:
    assert getattr(theory, number) is getattr(theory, name)
    spoken = number.replace("_", " ").capitalize()
    assert spoken in getattr(theory, name).__doc__


@pytest.mark.parametrize("name", ["smooth", "polyak_lojasiewicz", "convex", "strongly_convex"])
def test_a_former_name_works_with_a_warning(name: str) -> None:
    with pytest.warns(DeprecationWarning, match=rf"theory\.{name} is now theory\.rates_{name}"):
        assert getattr(theory, name) is getattr(theory, f"rates_{name}")


def test_the_paper_s_own_number_is_asked_for_by_the_name_it_has() -> None:
    assert theory.sparse_bound(np.eye(3), paper_bound=True).paper_bound == 3
    with pytest.warns(DeprecationWarning, match=r"sparse_bound\(paper=\) is now sparse_bound\(paper_bound=\)"):
        assert theory.sparse_bound(np.eye(3), paper=True).paper_bound == 3
    with pytest.warns(DeprecationWarning, match=r"glm_bound\(paper=\)"):
        assert theory.glm_bound(np.eye(3), paper=False).paper_bound is None


def test_what_there_is_not_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'rough'"):
        _ = theory.rough
    for name in theory.__all__:
        assert getattr(theory, name) is not None
