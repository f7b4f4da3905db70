"""The page of `interp coverage`: which model types are proven, and why others are not."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from interp.model.coverage import LETTERS, Row, counts

MARKS = {"pass": "✓", "fail": "✗", "na": "–"}
HEAD = """# Which model types are proven

Written by `interp coverage` on {today}, torch {torch}, transformers {transformers}. Every type of transformers' auto mappings, {types} of
them ({base} have a base model of their own), is built at random tiny size from its own config class, every
parameter drawn away from its default, and put to the doctor's proofs ([what they say](proven.md)). {built} can be
built, {ran} of these run on made-up inputs, and {proven} pass both (b) and (d).

| proof | passed | failed | does not apply |
| --- | --- | --- | --- |
{proofs}

"Does not apply" is no pass. It is said of (b) only where no module is repeated, of (c) only where the traced forward saw no
softmax and no fused attention; the counts stand in the row. *Blocks*: solved, of all in the stacks found.
*Attentions*: named, of all that the forward ran. *Softmaxes*: calls of softmax and of fused attention.
*Repeated*: lists of modules of one class. (g) is
checked at one site a type. ✓ passed, ✗ failed, – does not apply.

(c) fails by nature where attention is not [batch, head, query, key] by position, as in Longformer's windows
([limitations](limitations.md)). ByT5 is of type `t5`, NLLB of type `m2m_100`;
one block run again and again, as in Universal Transformers, is `albert`.

| type | class | fed | blocks | attentions | softmaxes | repeated | {letters} | why not |
| --- | --- | --- | --- | --- | --- | --- | {rules} | --- |
"""
UNBUILT = """
## Not run

Types that cannot be built at tiny size, or whose forward could not be fed. A class that needs a package we do not have, or
that is a part of other models and has no class of its own, is listed with what was raised.

| type | stage | error |
| --- | --- | --- |
"""


def page(rows: Sequence[Row]) -> str:
    """The whole page in Markdown."""
    import torch
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    found = counts(rows)
    proven = [r for r in rows if "proofs" in r]
    both = sum(all(r["proofs"][a]["status"] == "pass" for a in "bd") for r in proven)
    verdicts = "\n".join(f"| {a} | {v['pass']} | {v['fail']} | {v['na']} |" for a, v in found["proofs"].items())
    head = HEAD.format(
        today=datetime.date.today().isoformat(),
        torch=torch.__version__.split("+")[0],
        transformers=transformers.__version__,
        types=found["types"],
        base=len(MODEL_MAPPING_NAMES),
        built=found["built"],
        ran=found["ran"],
        proven=both,
        proofs=verdicts,
        letters=" | ".join(LETTERS),
        rules=" | ".join("---" for _ in LETTERS),
    )
    others = "".join(f"| {r['type']} | {r['stage']} | {_cell(r['error'])} |\n" for r in rows if "proofs" not in r)
    return head + "".join(map(_line, proven)) + UNBUILT + others


def _line(row: Row) -> str:
    verdicts = " | ".join(MARKS[row["proofs"][a]["status"]] for a in LETTERS)
    why = "; ".join(f"{a}: {p['reason']}" for a, p in row["proofs"].items() if p["status"] == "fail")
    lists = ", ".join(f"{path} ({n})" for path, n in list(row["repeated"].items())[:3])
    seen = f"{row['solved']}/{row['blocks']} | {row['named']}/{row['attentions']} | {row['softmaxes']} | {lists}"
    fed = ", ".join(row["inputs"])
    return f"| {row['type']} | {row['class']} | {fed} | {seen} | {verdicts} | {_cell(why[:200])} |\n"


def _cell(text: Any) -> str:
    """Text that stays in its cell of a Markdown table."""
    return str(text).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
