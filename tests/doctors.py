"""`python -m tests.doctors`: the doctor's proofs of every named architecture, written to docs/proven.md."""

from __future__ import annotations

import datetime
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

from interp.model import load
from interp.model.proof import by_letter, doctor
from tests.model.shapes import BUILD, MORE, module

PAGE = Path(__file__).parent.parent / "docs" / "proven.md"
START = """# What is proven of which architecture

Written by `python -m tests.doctors` on {today}, torch {torch}, transformers {transformers}; each is a test too
(`tests/model/test_wiring.py`). Tiny models with every parameter drawn away from its default. A number is the proof's
largest error; "–" with a number below: it does not apply, for the reason measured.

(a) outputs are the same bits while every site is read; (b) every stream tensor is its proven sum, or the norm of it;
(c) pattern rows and sinks sum to one, pattern · v = z, z makes the output, as results and bias do; (d) patching a site
with its own value changes nothing; (e) zeroed writes leave the identity, or the norms; (f) a padded batch gives each
prompt what it has alone; (g) gradients match central differences; (h) weights by name reproduce the sites, every prefix
leaves a mixer's state in the model's own cache. `interp doctor MODEL` runs them on yours.

| model | sites | a | b | c | d | e | f | g | h |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def main() -> None:
    """Run the doctor on every shape and write the table."""
    torch.set_num_threads(1)
    versions = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    lines, reasons = [START.format(today=datetime.date.today().isoformat(), **versions)], list[str]()
    for name in tqdm([*BUILD, *MORE], unit="model"):
        wrapped = load(module(name))
        proofs = by_letter(doctor(wrapped))
        cells = []
        for proof in proofs.values():
            if proof["status"] == "na" and proof["reason"] not in reasons:
                reasons.append(proof["reason"])
            number = reasons.index(proof["reason"]) + 1 if proof["status"] == "na" else 0
            failed = "**fails** " if proof["status"] == "fail" else ""
            cells.append(f"– {number}" if number else f"{failed}{proof['error']:.0e}")
        kind = type(wrapped.module).__name__
        lines.append(
            f"| {kind}{'' if ' ' not in name else ', ' + name.split(' ', 1)[1]} | {len(wrapped.sites())} | {' | '.join(cells)} |\n"
        )
    lines += ["\n", *(f"{number}. {reason}\n" for number, reason in enumerate(reasons, 1))]
    PAGE.write_text("".join(lines), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
