"""The code of docs/how-to/monitor.md runs as one program, from its source."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_blocks_of_the_guide_run_in_order(tmp_path):
    guide = (ROOT / "docs/how-to/monitor.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    (tmp_path / "pasted.py").write_text("\n".join(blocks))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:Implicitly cleaning up", "pasted.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.stderr == ""
    reading, advice, *more = done.stdout.splitlines()
    assert "of 64 examples" in reading
    assert advice.startswith("batch 64")
    assert more
