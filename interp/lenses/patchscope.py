"""Patchscope: read a state by putting it into another prompt and letting the model go on.

h_i^l of a source prompt takes the place of h_j^m in a target prompt, "cat→cat; 135→135; hello→hello; x" say, and what the
model says then is the reading. Source: Ghandeharioun et al. 2024 (arXiv:2401.06102).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from interp.errors import WrongUse
from interp.lenses.lens import Lens
from interp.model.edits import Patch, Replace
from interp.model.model import Model, teaches

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

IDENTITY = "cat → cat; 135 → 135; hello → hello; x"
PROMPTS = 64  # run at once


class PatchscopeLens(Lens):
    """Reads each state as what the model says next when it stands at the last token of a target prompt, at its own site.

    `target`: a text, or token ids. At the last block the target plays no part any more, and the lens is the model. Raises
    `WrongUse` for a model that looks both ways, or has an encoder: no last token says what comes next there.
    """

    kind = "patchscope"
    reads = ("resid_pre", "resid_start", "resid_mid", "resid_post", "resid")

    def __init__(self, model: Model, target: str | Sequence[int] | None = None) -> None:
        super().__init__(model)
        if not self.head.causal or self.head.stack.prefix == "decoder.":
            raise WrongUse(
                f"{model.id} is no decoder alone: a patchscope needs a prompt whose last token says what comes next."
            )
        if target is None and model.tokenizer is None:
            raise WrongUse(f"{model.id} has no tokenizer: give the target prompt as token ids (--target 5,6,7).")
        target = IDENTITY if target is None else target
        if not len(target.strip() if isinstance(target, str) else target):
            raise WrongUse("the target prompt is empty: a state needs a token to stand at.")
        ids = model.tokens(target).ids if isinstance(target, str) else torch.tensor([list(target)])
        self.target = ids.to(model.device)

    def mapped(self, row: str, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The stream after the last block at the target's last token, with x there in the row's place."""
        return torch.cat([self._read(row, part) for part in x.split(PROMPTS)])

    def _read(self, row: str, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        end = self.target.shape[1] - 1
        put = Replace(row, lambda t: x[:, None].to(t).expand(t.shape), pos=end)
        return self.model.record(self.target.expand(len(x), -1), self.head.last, edits=[put], pos=end)[self.head.last][
            :, 0
        ]


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
