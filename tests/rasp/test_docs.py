"""Every transcript and example in docs/rasp.md gives what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from circuits.rasp.repl import Repl

PAGE = (Path(__file__).parents[2] / "docs" / "rasp.md").read_text(encoding="utf-8")
TRANSCRIPTS = re.findall(r"```rasp\n(.*?)\n```", PAGE, re.DOTALL)


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=range(len(TRANSCRIPTS)))
def test_transcript(transcript):
    seen: list[str] = []
    loop = Repl(say=lambda text: seen.extend(text.split("\n")))
    for line in transcript.split("\n"):
        if line.startswith((">> ", ".. ")):
            seen.append(line)
            loop.feed(line[3:])
    assert seen == transcript.split("\n")
    assert len(seen) > 2


def test_python():
    (code,) = re.findall(r"```python\n(.*?)\n```", PAGE, re.DOTALL)
    names: dict[str, object] = {}
    exec("\n".join(code.split("\n")[:4]), names)
    for line in code.split("\n")[4:]:
        expression, expected = line.split("#")
        assert repr(eval(expression, names)) == expected.strip()
