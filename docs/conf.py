"""The documentation site: Sphinx reads Markdown from the root of the repository, so that links work there and here."""

import tomllib
from pathlib import Path

project = "variegrad"
author = "The variegrad maintainers"
copyright = "The variegrad maintainers"  # noqa: A001
release = version = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["version"]

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
