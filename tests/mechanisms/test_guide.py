"""The guide's code runs, from its source, block after block."""

import re
from pathlib import Path

GUIDE = (Path(__file__).parents[2] / "docs/how-to/mechanisms.md").read_text()


def test_the_blocks_of_the_guide_run_one_after_the_other(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    names = {"__name__": "guide"}
    for block in blocks:
        exec(compile(block, "docs/how-to/mechanisms.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "nonzeros for each example" in printed
    for shown in re.findall(r"^```text\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL):
        assert shown in printed
