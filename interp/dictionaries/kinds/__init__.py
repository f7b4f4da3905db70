"""Every kind of dictionary, one file for each activation; and the few functions that trained ones encode with."""

from __future__ import annotations

from interp.dictionaries.kinds.april import April
from interp.dictionaries.kinds.batchtopk import BatchTopK
from interp.dictionaries.kinds.codebook import Codebook, codebook, forced, straight_through
from interp.dictionaries.kinds.gated import Gated
from interp.dictionaries.kinds.jumprelu import JumpReLU, TanhJumpReLU, TargetJumpReLU, jumprelu
from interp.dictionaries.kinds.kind import Kind, Loss, Now, share, squared
from interp.dictionaries.kinds.l1 import L1, relu
from interp.dictionaries.kinds.matryoshka import Matryoshka
from interp.dictionaries.kinds.panneal import PAnneal
from interp.dictionaries.kinds.pursuit import Pursuit, pursuit
from interp.dictionaries.kinds.topk import MultiTopK, TopK, topk

# what a trained one encodes with: (dictionary, rows) → code
ACTIVATIONS = {"relu": relu, "topk": topk, "jumprelu": jumprelu, "pursuit": pursuit, "codebook": codebook}
COUNTED = ("topk", "pursuit", "codebook")  # those that fix the number of active latents
TIED = {  # those whose encoder is the decoder, without W_enc and b_enc; and why they have no transcoder
    "pursuit": "its search subtracts from what it reads what it writes",
    "codebook": "it compares what it reads with what it writes",
}

KINDS: dict[str, type[Kind]] = {
    kind.name: kind
    for kind in (
        *(L1, April, Gated, PAnneal),
        *(TopK, MultiTopK, BatchTopK, Matryoshka, Pursuit, Codebook),
        *(JumpReLU, TargetJumpReLU, TanhJumpReLU),
    )
}

__all__ = [
    "ACTIVATIONS",
    "COUNTED",
    "KINDS",
    "L1",
    "TIED",
    "April",
    "BatchTopK",
    "Codebook",
    "Gated",
    "JumpReLU",
    "Kind",
    "Loss",
    "Matryoshka",
    "MultiTopK",
    "Now",
    "PAnneal",
    "Pursuit",
    "TanhJumpReLU",
    "TargetJumpReLU",
    "TopK",
    "forced",
    "share",
    "squared",
    "straight_through",
]
