"""How every page is made: one way to render."""

from __future__ import annotations

import base64
import math

import jinja2
from markupsafe import Markup, escape

from variegrad.reports.style import in_figures, in_the_dark, rounded


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
    environment.filters["rounded"] = rounded
    environment.filters["at_least"] = lambda value: rounded(value, down=True)
    environment.filters["digits"] = lambda value: rounded(value, 3)
    environment.filters["prose"] = lambda text: escape(text).replace("B_D", Markup("<i>B<sub>D</sub></i>"))
    environment.filters["short"] = lambda value: f"{value:.3g}"
    environment.filters["passes"] = lambda value: f"{value:.3g} pass{'' if value == 1 else 'es'}"
    environment.tests["known"] = lambda value: not math.isnan(value)
    return environment.get_template(name)


def embedded(svg: bytes) -> dict[str, str]:
    """A picture as the pages hold it, for light and for dark.

    Args:
        svg: the picture.

    Returns:
        "light" and "dark", base64.
    """
    return {name: base64.b64encode(look).decode() for name, look in (("light", svg), ("dark", in_the_dark(svg)))}
