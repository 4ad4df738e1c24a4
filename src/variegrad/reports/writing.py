"""How every page is made: one way to render."""

from __future__ import annotations

import math

import jinja2

from variegrad.reports.style import in_figures


def template(name: str) -> jinja2.Template:
    """A page to fill: all text is escaped, and a name that is not given is an error.

    Args:
        name: its file in this package.

    Returns:
        The template, which may include the other files.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("variegrad", "reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figures"] = in_figures
    environment.filters["short"] = lambda value: f"{value:.3g}"
    environment.tests["known"] = lambda value: not math.isnan(value)
    return environment.get_template(name)
