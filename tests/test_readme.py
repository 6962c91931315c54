"""The code of the README runs as it stands there, with fewer samples and steps."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_code_of_the_readme(capsys) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL))
    for long, short in (("100_000", "1_000"), ("steps=10_000", "steps=20")):
        assert long in code
        code = code.replace(long, short)
    exec(compile(code, str(README), "exec"), {})
    printed = capsys.readouterr().out
    assert "1,000 samples, loss" in printed and "hidden4" in printed and "32 students" in printed
