"""The documentation site: Sphinx reads Markdown from the root of the repository, so that links work there and here."""

import re
from pathlib import Path

project = "variegrad"
author = "The variegrad maintainers"
copyright = "The variegrad maintainers"  # noqa: A001
_source = (Path(__file__).parents[1] / "src/variegrad/versions.py").read_text()
release = version = re.findall(r'^__version__ = "(.+)"$', _source, re.MULTILINE)[0]

extensions = [
    "myst_nb",  # Markdown and notebooks
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
]
root_doc = "docs/index"
include_patterns = ["docs/**", "results/*/README.md", "benchmarks/reports/*.md", "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = ["build", ".venv*", "src", "tests", "runs", ".git"]

nb_execution_mode = "off"  # notebooks keep their output; the tests execute them
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = True
doctest_test_doctest_blocks = "default"

html_theme = "furo"
html_title = "variegrad"
html_extra_path = ["start"]  # index.html at the root leads to the first page

default_role = "code"


def as_restructured_text(_app, _what, _name, _object, _options, lines):
    """Docstrings are written as Markdown: fences become code blocks, | and * are escaped outside code."""
    fenced = False
    for k, line in enumerate(lines):
        if line.lstrip().startswith("```"):
            indent = line[: len(line) - len(line.lstrip())]
            lines[k] = "" if fenced else f"{indent}.. code-block:: python\n"
            fenced = not fenced
        elif fenced:
            lines[k] = f"    {line}"
        elif not line.lstrip().startswith((">>>", "...")):
            parts = line.split("`")
            parts[::2] = [part.replace("|", r"\|").replace("*", r"\*") for part in parts[::2]]
            lines[k] = "`".join(parts)
    lines[:] = "\n".join(lines).split("\n")


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)  # before napoleon
