"""dictionary_learning (saprmarks/dictionary_learning): `ae.pt`, a state dict, and `config.json`, {"trainer": …, "buffer": …}.

| dict_class | f | here |
| AutoEncoder | ReLU(W_encᵀ (x − b) + b_enc) | relu |
| AutoEncoderNew | ReLU(W_encᵀ x + b_enc) | relu, W_encᵀ b_dec in b_enc |
| GatedAutoEncoder | 1[u + b_gate > 0] ReLU(e^r u + b_mag), u = W_encᵀ (x − b) | jumprelu, exactly |
| AutoEncoderTopK | TopK_k(ReLU(W_encᵀ (x − b) + b_enc)) | topk |
| BatchTopKSAE, MatryoshkaBatchTopKSAE | ReLU(z)·1[z > θ], one θ; the same z | jumprelu |
| JumpReluAutoEncoder | ReLU(z)·1[z > θ], z = W_encᵀ x + b_enc | jumprelu, W_encᵀ b_dec in b_enc |

`ae.pt` is read with `weights_only=True`: nothing in it is run.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.dictionaries.dictionary import Dictionary
from interp.errors import Failed, WrongUse
from interp.files import read_json, write_atomic, write_json
from interp.interop.parts import Read, assemble, bias_of_x, gated, need, refuse

NAME, HOLDS = "dictionary_learning", "ae.pt and config.json"
CONFIG, WEIGHTS = "config.json", "ae.pt"
CENTRED = {  # whether the encoder reads x − b_dec
    "AutoEncoder": True,
    "AutoEncoderNew": False,
    "GatedAutoEncoder": True,
    "AutoEncoderTopK": True,
    "BatchTopKSAE": True,
    "MatryoshkaBatchTopKSAE": True,
    "JumpReluAutoEncoder": False,
}
CLASS = {"relu": "AutoEncoder", "topk": "AutoEncoderTopK", "jumprelu": "JumpReluAutoEncoder"}  # what is written
OURS = {  # tensor names: theirs → ours; matrices of linear layers are transposed
    "encoder.bias": "b_enc",
    "bias": "b_dec",
    "decoder_bias": "b_dec",
    "decoder.bias": "b_dec",
    "gate_bias": "b_gate",
    "mag_bias": "b_mag",
}
PLACES = {"resid_pre": "resid_pre", "resid_mid": "resid_mid", "resid_post": "resid_post", "mlp_out": "mlp.out"}
PLACES |= {"attn_out": "attn.out", "attention_out": "attn.out"}


def found(path: Path) -> bool:
    """Whether `path` is a folder of this format."""
    return (path / WEIGHTS).is_file()


def read(path: Path) -> Read:
    """Read a folder. Raises `WrongUse` for a class that is not in the table above, `Failed` for a damaged folder."""
    if not (path / CONFIG).is_file():
        raise Failed(f"{path} holds {WEIGHTS} without {CONFIG}, which says what its class is.")
    config = read_json(path / CONFIG)
    trainer = config.get("trainer") or {}
    (name,) = need(trainer, ("dict_class",), path / CONFIG)
    if name not in CENTRED:
        raise WrongUse(
            f"{path} is of dictionary_learning's class {name!r}; a dictionary here is one of {', '.join(CENTRED)}."
        )
    t = _tensors(path / WEIGHTS)
    k, threshold = t.pop("k", None), t.get("threshold")
    t.pop("group_sizes", None)
    activation, count = "jumprelu", None
    if name == "AutoEncoderTopK":
        activation, count = "topk", int(trainer["k"] if k is None else k)
        t.pop("threshold", None)  # of another way to use it, on request: kept in `about`
        config = config | {"threshold": None if threshold is None else float(threshold)}
    elif name.startswith("AutoEncoder"):
        activation = "relu"
    elif name == "GatedAutoEncoder":
        t = gated(t)
    site = _site(trainer)
    D = assemble(path, (site, site), activation, t, CENTRED[name], k=count)
    return Read(D, {"format": NAME, "config": config})


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise Failed(f"{path} is not a whole file of tensors ({str(error).splitlines()[0]}).") from error
    turned = {"encoder.weight": "W_enc", "decoder.weight": "W_dec"}
    return {turned.get(n, OURS.get(n, n)): v.T if n in turned else v for n, v in state.items()}


def _site(trainer: dict[str, Any]) -> str:
    name, layer = trainer.get("submodule_name"), trainer.get("layer")
    match = re.fullmatch(rf"({'|'.join(PLACES)})_layer_?(\d+)", name or "")
    if match:
        return f"blocks.{match[2]}.{PLACES[match[1]]}"
    if name:
        return str(name)
    return "rows" if layer is None else f"blocks.{layer}.resid_post"  # what its own `get_submodule` takes


@torch.no_grad()
def write(D: Dictionary, path: Path, about: dict[str, Any]) -> list[str]:
    """Write a folder that its own `load_dictionary` opens; returns what it has no place for: nothing.

    Raises `WrongUse` for transcoders, several sites, pursuits and codebooks.
    """
    refuse(D, NAME, tuple(CLASS), False)
    c = D.config
    if c.activation == "jumprelu":
        state = {n: getattr(D, n).detach() for n in ("W_enc", "W_dec", "b_dec", "threshold")} | {"b_enc": bias_of_x(D)}
    else:
        state = {"encoder.weight": D.W_enc.T, "encoder.bias": D.b_enc, "decoder.weight": D.W_dec.T}
        state["b_dec" if c.activation == "topk" else "bias"] = D.b_dec
    if c.activation == "topk":
        state |= {"k": torch.tensor(c.k, dtype=torch.int), "threshold": torch.tensor(-1.0)}
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_atomic(path / WEIGHTS, lambda file: torch.save(kept, file))
    write_json(path / CONFIG, {"trainer": _trainer(D), "buffer": {"d_submodule": c.d_in}, "interp": about})
    return []


def _trainer(D: Dictionary) -> dict[str, Any]:
    c = D.config
    block = re.match(r"(?:\w+\.)*blocks\.(\d+)\.", c.reads[0])
    return {
        "dict_class": CLASS[c.activation],
        "activation_dim": c.d_in,
        "dict_size": c.latents,
        "layer": int(block[1]) if block else None,
        "submodule_name": c.reads[0],
    } | ({"k": c.k} if c.k else {})
