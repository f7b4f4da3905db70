"""Every kind of dictionary, one file each; and the few functions that trained ones encode with."""

from __future__ import annotations

from interp.dictionaries.kinds.kind import Kind, Loss, Now, share, squared
from interp.dictionaries.kinds.topk import TopK, topk

ACTIVATIONS = {"topk": topk}  # in use: (dictionary, rows) → code
KINDS: dict[str, type[Kind]] = {kind.name: kind for kind in (TopK,)}

__all__ = ["ACTIVATIONS", "KINDS", "Kind", "Loss", "Now", "TopK", "share", "squared"]
