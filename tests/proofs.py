"""`python -m tests.proofs`: run the long proofs and write their dated result to docs/proofs.md and the README."""

from __future__ import annotations

import datetime
import platform
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> int:
    """Run tests marked `proof`; record the outcome whatever it is."""
    done = subprocess.run([sys.executable, "-m", "pytest", "-m", "proof", "-q", "-rA"], capture_output=True, text=True)
    print(done.stdout, done.stderr)
    outcomes = re.findall(r"^(PASSED|FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    today = datetime.date.today().isoformat()
    lines = ["# Long proofs", "", f"Run by `make proofs` on {today}, Python {platform.python_version()}.", ""]
    lines += [
        "| proof | outcome |",
        "| --- | --- |",
        *(f"| {name} | {outcome.lower()} |" for outcome, name in outcomes),
    ]
    (ROOT / "docs" / "proofs.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    readme = ROOT / "README.md"
    passed = sum(outcome == "PASSED" for outcome, _ in outcomes)
    line = f"Long proofs (`make proofs`): {passed} of {len(outcomes)} passed on {today}."
    readme.write_text(
        re.sub(r"^Long proofs .*$", line, readme.read_text(encoding="utf-8"), flags=re.MULTILINE), encoding="utf-8"
    )
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main())
