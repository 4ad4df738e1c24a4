"""A result by itself: JSON, table and picture, and the page from Python."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

import variegrad as vg
from variegrad.reports.style import rounded


def losses(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def setting(count=40):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)), (
        torch.randn(count, 6),
        torch.arange(count) % 3,
    )


def results():
    model, batch = setting()
    yield vg.measure(model, losses, [batch])
    yield vg.estimate(model, losses, batch)
    yield vg.estimate(model, losses, batch, per=lambda name: f"<b>{name}</b>")
    yield vg.Diversity(count=3, dimension=2, sum_sq_norms=0.0, sq_norm_of_sum=0.0)
    yield vg.Diversity(count=3, dimension=2, sum_sq_norms=1.0, sq_norm_of_sum=0.0)
    yield vg.Diversity(count=1, dimension=2, sum_sq_norms=1.0, sq_norm_of_sum=1.0)


def test_every_result_is_json_a_table_and_a_picture():
    for result in results():
        told = json.loads(json.dumps(result.to_dict(), allow_nan=False))
        bound = result.batch_size_bound
        assert told["batch_size_bound"] == (
            None if math.isnan(bound) else "inf" if math.isinf(bound) else pytest.approx(bound)
        )
        page = result._repr_html_()
        assert page.count("<table>") == page.count("<img ") == 1
        assert "<b>" not in page
        assert "nan" not in page.split("base64,")[0]
        assert len(result.plot().axes) == 1


def test_shares_of_a_measurement_add_up_to_one():
    model, batch = setting()
    parts = vg.measure(model, losses, [batch]).to_dict()["per_parameter"]
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1)


def test_the_page_is_written_from_python_and_nothing_is_overwritten_unasked(tmp_path):
    model, batch = setting()
    found = vg.measure(model, losses, [batch])
    page = vg.report({0: found, 1.5: found}, tmp_path / "a", name="<mine>", batch_size=16, model=model)
    text = page.read_text()
    assert "&lt;mine&gt;" in text
    assert "Linear 6→8" in text
    assert text.count("prefers-color-scheme: dark") >= 3
    assert json.loads((tmp_path / "a/measure.json").read_text())["points"][1]["passes"] == 1.5
    with pytest.raises(FileExistsError, match="overwrite=True"):
        vg.report(found, tmp_path / "a")
    assert page.read_text() == text
    vg.report(found, tmp_path / "a", overwrite=True)
    with pytest.raises(ValueError, match="found: it is empty"):
        vg.report({}, tmp_path / "b")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        vg.report(found, tmp_path / "b", batch_size=0)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("value", "text", "down"),
    [
        (104.2, "100", "100"), (135.0, "140", "130"), (9.96, "10", "9.9"), (9.53, "9.5", "9.5"), (2.0, "2.0", "2.0"),
        (1634, "1,600", "1,600"), (1, "1.0", "1.0"), (math.inf, "∞", "∞"), (99.6, "100", "99"), (0, "0", "0"),
    ],
)  # fmt: skip
def test_estimates_have_two_digits_and_bounds_are_rounded_down(value, text, down):
    assert rounded(value) == text
    assert rounded(value, down=True) == down
