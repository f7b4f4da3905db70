"""`python -m tests.checks`: run the checks of the methods notes and write docs/checks.md from what was measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "checks.md"
NOT_DONE = {
    "dictionaries T2": "attributions through transcoders: come with the circuit finders",
    "dictionaries T3": "de-embedding of features: comes with the circuit finders",
    "dictionaries T4": "greedy path search: comes with the circuit finders",
}


def measure() -> dict[str, dict[str, object]]:
    """Run the marked tests in a process of their own; what each measured, by test."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "measured.json"
        environment = os.environ | {"INTERP_CHECKS": str(target)}
        done = subprocess.run([sys.executable, "-m", "pytest", "-m", "check", "-q"], env=environment)
        if done.returncode:
            raise SystemExit(done.returncode)
        return json.loads(target.read_text(encoding="utf-8"))


def page(measured: dict[str, dict[str, object]]) -> str:
    """The page: label, formula, tolerance, largest error measured over a label's tests, or why it is not done."""
    rows: dict[tuple[str, str, float], float] = {}
    for row in measured.values():
        key = (str(row["label"]), str(row.get("formula", "")), float(row["tolerance"]))  # type: ignore[arg-type]
        rows[key] = max(rows.get(key, 0.0), float(row["measured"]))  # type: ignore[arg-type]
    lines = ["# Checks", "", "Written by `python -m tests.checks`. Each check is a test marked with its label.", ""]
    lines += ["| check | formula | tolerance | measured |", "| --- | --- | --- | --- |"]
    for (label, formula, tolerance), error in sorted(rows.items()):
        lines.append(f"| {label} | {formula.replace('|', chr(92) + '|')} | {tolerance:.1e} | {error:.1e} |")
    done = {label for label, _, _ in rows}
    lines += [f"| {label} | | | not done: {why} |" for label, why in sorted(NOT_DONE.items()) if label not in done]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(measure()), encoding="utf-8")
    print(PAGE)
