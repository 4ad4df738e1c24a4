"""A real browser shows every picture, runs nothing, and needs no sideways scrolling on a phone."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Report = Callable[[str], Path]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PHONE = 390

# Appended to a copy of the page: opens what is folded, then tells the surrounding page what became of it.
CHECK = """<script>addEventListener("load", () => {
document.querySelectorAll("details").forEach(d => { d.open = true; });
parent.postMessage({
  name: NAME,
  images: [...document.images].map(i => [i.naturalWidth, i.getBoundingClientRect().width]),
  width: document.documentElement.clientWidth,
  content: document.documentElement.scrollWidth,
  hit: typeof window.hit,
}, "*"); });</script></body>"""

# A frame rather than a window: no browser's window is as narrow as a phone.
FRAMES = """<!doctype html><body><pre id="told"></pre><script>
const told = [];
addEventListener("message", e => {
  told.push(e.data);
  document.getElementById("told").textContent = JSON.stringify(told);
});
</script>%s</body>"""


def browser() -> str:
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    pytest.skip(f"no browser to open the page in: none of {', '.join(BROWSERS)} is installed")


def shown_by(executable: str, page: Path, profile: Path) -> str:
    """The page as the browser has it once its scripts have run."""
    command = [executable, "--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    command += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"]
    # Chromium refuses to sandbox for root, as in a container.
    command += ["--no-sandbox"] if os.geteuid() == 0 else []
    command += ["--virtual-time-budget=20000", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, timeout=120, check=True).stdout.decode()


def test_browser_shows_all_pictures_runs_nothing_and_fits_a_phone(
    report: Report, documents: dict[str, Any], tmp_path: Path
) -> None:
    executable = browser()
    frames, pictures = [], {}
    for name in documents:
        path = report(name)
        pictures[name] = len(list(path.parent.glob("*.svg")))
        page = path.read_text(encoding="utf-8")
        # The page's own policy forbids every script, the test's too: allow them here, so that hostile ones could run.
        assert page.count("default-src 'none';") == 1
        page = page.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
        copy = tmp_path / f"{path.parent.name}.html"
        copy.write_text(page.replace("</body>", CHECK.replace("NAME", json.dumps(name))), encoding="utf-8")
        frames.append(f'<iframe src="{copy.as_uri()}" style="width:{PHONE}px;height:800px;border:0"></iframe>')
    wrapper = tmp_path / "frames.html"
    wrapper.write_text(FRAMES % "".join(frames), encoding="utf-8")

    dom = shown_by(executable, wrapper, tmp_path / "profile")
    match = re.search(r'<pre id="told">(.+?)</pre>', dom, re.DOTALL)
    assert match, dom[-2000:]
    told = {page["name"]: page for page in json.loads(html.unescape(match[1]))}

    assert told.keys() == documents.keys()
    for name, page in told.items():
        assert len(page["images"]) == pictures[name]
        assert all(natural > 0 and 300 < shown <= PHONE for natural, shown in page["images"]), name
        assert page["content"] <= page["width"] <= PHONE, f"{name} is wider than a phone: {page}"
        assert page["hit"] == "undefined", f"{name}: text of the document was run as a script"
