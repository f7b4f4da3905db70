"""Patchscope: read a state by putting it into another prompt and letting the model go on.

h_i^l of a source prompt takes the place of h_j^m in a target prompt, "cat→cat; 135→135; hello→hello; x" say, and what the
model says then is the reading. Source: Ghandeharioun et al. 2024 (arXiv:2401.06102).
"""

from __future__ import annotations

from typing import Any

from interp.errors import WrongUse
from interp.model.edits import Patch
from interp.model.model import Model, teaches

IDENTITY = "cat → cat; 135 → 135; hello → hello; x"


@teaches
def patch_from(
    model: Model, source: Any, site: str, pos: int, *, target_pos: int, target_site: str | None = None
) -> Patch:
    """The edit that puts the source's state at `site` and `pos` into any prompt, at `target_pos` of `target_site` (default:
    the same site), whatever the prompt. `pos` counts real tokens, from the end if negative.

    Use it as any edit: `with model.edit(patch_from(...)): model.generate(IDENTITY)`, or `model.record(target, "logits",
    edits=[...])`; a state put into its own place changes nothing. Raises `WrongUse` for sites of different widths, a
    position outside the source, and a `target_pos` below 0 (in a generation the end moves on).
    """
    to = target_site or site
    if model.width(to) != model.width(site):
        raise WrongUse(f"{to!r} is {model.width(to)} wide and {site!r} {model.width(site)}: no state fits both.")
    if target_pos < 0:
        raise WrongUse(f"target_pos={target_pos}: count it from the target's start, where it stays the same token.")
    state = model.record(source, site).at(site, pos)
    return Patch(to, state[:, None], from_pos=0, to_pos=target_pos)
