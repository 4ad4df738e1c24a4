"""Public texts are free of phrases that make a native reader stop."""

import re
from pathlib import Path

import pytest

from documents.phrases import BANNED

ROOT = Path(__file__).parents[2]
PLACES = ("*.md", "docs/**/*.md", "results/*/README.md", "examples/*.py", "src/**/*.html", "src/**/*.py")
TEXTS = {
    path: re.sub(r"#.*", "", path.read_text()) if path.suffix == ".py" else path.read_text()  # comments are not public
    for place in PLACES
    for path in sorted(ROOT.glob(place))
    if path.name != "CHANGELOG.md"
}


@pytest.mark.parametrize("phrase", BANNED)
def test_no_public_text_uses(phrase):
    found = [
        f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]}"
        for path, text in TEXTS.items()
        for match in re.finditer(phrase, text, re.IGNORECASE)
    ]
    assert not found, f"write instead: {BANNED[phrase]}\n" + "\n".join(found)
