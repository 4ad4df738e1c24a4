"""Documents that stay true: links lead somewhere, claims name what exists, public names are explained."""

import doctest
import importlib
import inspect
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

import variegrad

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "benchmarks", "labs", "tools", "results")
DOCUMENTS = [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in ROOT.glob(f"{folder}/**/*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_internal_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if not target.startswith(("http://", "https://", "#")):
            assert (document.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(document):
    for named in re.findall(r"`((?:src|tests|docs|benchmarks)/[\w./-]+)`", document.read_text()):
        assert (ROOT / named).exists(), named


CLAIMS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs/understand/paper.md").read_text().split("## Claims")[1].splitlines()
    if line.startswith("| ") and not line.startswith("| claim")
]


def test_every_statement_of_the_paper_has_a_row():
    rows = " ".join(claim for claim, *_ in CLAIMS)
    statements = [f"Definition {k}" for k in range(1, 7)] + ["Remark 1", "Remark 2", "Lemma 1", "Table 1"]
    statements += [f"Theorem {k}" for k in range(1, 11)]
    statements += [f"Figure {k}" for k in ("1a", "1b", "2a", "2b", "2c", "3a", "3b", "3c")]
    for statement in statements:
        assert re.search(rf"{statement}\b", rows), statement


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda row: row[0])
def test_a_claim_names_functions_that_exist(claim):
    _, functions, _, _ = claim
    for name in re.findall(r"`([\w.]+)`", functions):
        place, _, last = name.rpartition(".")
        module = variegrad
        for k, part in enumerate(filter(None, place.split("."))):
            if not hasattr(module, part):
                module = importlib.import_module(".".join(["variegrad", *place.split(".")[: k + 1]]))
            else:
                module = getattr(module, part)
        if not hasattr(module, last):
            importlib.import_module(f"variegrad.{name}")


@pytest.mark.parametrize("name", variegrad.__all__)
def test_every_public_name_is_explained(name):
    public = getattr(variegrad, name)
    text = inspect.getdoc(public) or ""
    assert len(text.split()) >= 5
    if inspect.isfunction(public):
        assert "Args:" in text
        assert "Returns:" in text or "Yields:" in text
        documented = re.findall(
            r"^    (\w+): ", text.split("Args:")[1].split("Returns:")[0].split("Yields:")[0], re.MULTILINE
        )
        assert documented == list(inspect.signature(public).parameters)
    for key, member in vars(public).items() if inspect.isclass(public) else ():
        if key.startswith("_") or not callable(getattr(public, key)) or not inspect.isroutine(getattr(public, key)):
            continue
        if "MemberDescriptor" in type(member).__name__:
            continue
        doc = inspect.getdoc(getattr(public, key)) or ""
        takes = [p for p in inspect.signature(getattr(public, key)).parameters if p not in ("self", "cls")]
        assert doc, key
        nothing = inspect.signature(getattr(public, key)).return_annotation in (None, "None")
        assert not takes or ("Args:" in doc and ("Returns:" in doc or nothing)), key


def test_the_examples_in_docstrings_run():
    finder = doctest.DocTestFinder(recurse=False)
    tests = [t for t in finder.find(variegrad.measure, "measure", globs={}) if t.examples]
    assert tests
    for t in tests:
        assert doctest.DocTestRunner().run(t).failed == 0


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_help_of_make_lists_the_two_commands():
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "make demo" in said
    assert "make test" in said


def test_the_layers_of_the_engine_are_drawn_as_they_are_checked():
    drawn = (ROOT / "docs/developers/per-example.md").read_text().split("```text\n")[1].split("```")[0].splitlines()
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [c["layers"] for c in contracts if c.get("containers") == ["variegrad.per_example"]]
    assert drawn == layers
    named = {name for line in layers for name in line.split(" | ")}
    files = {path.stem for path in (ROOT / "src/variegrad/per_example").iterdir() if path.name != "__init__.py"}
    assert files - {"__pycache__", "sign_probe"} == named  # the old place of the sign probe imports nothing here
