"""Gemma Scope (google/gemma-scope-…): `params.npz`; and Gemma Scope 2: `params.safetensors` and `config.json`.

z = W_encᵀ x + b_enc    f = z·1[z > θ]    ŷ = f W_dec + b_dec  [+ x W_affine]        autoencoders and transcoders alike

npz: W_enc [d_in, m], b_enc, threshold [m], W_dec [m, d_out], b_dec. Version 2 has small letters and, in transcoders, perhaps
affine_skip_connection [d_in, d_out]. An npz file says nothing of its site: that is read from the names of its folders,
as they stand in the published repositories. What is written is the npz.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.dictionaries.dictionary import Dictionary
from interp.errors import Failed, WrongUse
from interp.files import read_json, read_tensors, write_atomic
from interp.interop.parts import Read, assemble, bias_of_x, refuse

NAME, HOLDS = "gemma_scope", "params.npz (or params.safetensors)"
FIRST, SECOND = "params.npz", "params.safetensors"
TENSORS = ("W_enc", "b_enc", "threshold", "W_dec", "b_dec")
REPOSITORY = {"res": "resid_post", "att": "attn.z", "mlp": "mlp.write"}  # gemma-scope-2b-pt-res, …
MODULE = {  # of version 2's config.json, after model.layers.N.
    "output": "resid_post",
    "self_attn.o_proj.input": "attn.z",
    "pre_feedforward_layernorm.output": "mlp.in",
    "post_feedforward_layernorm.output": "mlp.write",
}


def found(path: Path) -> bool:
    """Whether `path` is such a file, or a folder that holds one."""
    return path.name in (FIRST, SECOND) or (path / FIRST).is_file() or (path / SECOND).is_file()


def read(path: Path) -> Read:
    """Read a file or its folder. Raises `Failed` if it is damaged or lacks a tensor."""
    file = path if path.is_file() else path / (FIRST if (path / FIRST).is_file() else SECOND)
    config = file.parent / "config.json"
    cfg = read_json(config) if file.name == SECOND and config.is_file() else {}
    t = _arrays(file) if file.suffix == ".npz" else read_tensors(file)
    t = {f"W_{name[2:]}" if name.startswith("w_") else name: tensor for name, tensor in t.items()}
    if "affine_skip_connection" in t:
        t["W_skip"] = t.pop("affine_skip_connection").T
    if "W_dec" in t and t["W_dec"].ndim == 3:
        raise WrongUse(f"{file} writes several layers; only Gemma Scope's autoencoders and transcoders are read.")
    wide = "W_enc" in t and "W_dec" in t and t["W_enc"].shape[0] != t["W_dec"].shape[1]
    sites = _sites(file, cfg, "W_skip" in t or wide)
    return Read(assemble(file, sites, "jumprelu", t), {"format": NAME, "config": cfg})


def _arrays(file: Path) -> dict[str, Tensor]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays.files}
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise Failed(f"{file} is not a whole npz file of numbers ({error}).") from error


def _sites(file: Path, cfg: dict[str, Any], transcoder: bool) -> tuple[str, str]:
    """What a config says, or the folders' names; else rows without a model."""
    hooks = [_named(cfg.get(key)) for key in ("hf_hook_point_in", "hf_hook_point_out")]
    if hooks[0]:
        return hooks[0], hooks[1] or hooks[0]
    whole = file.resolve().as_posix()
    repository, layer = re.search(r"gemma-scope-\w+-\w+-(\w+)", whole), re.search(r"layer_(\d+)", whole)
    kind = repository[1] if repository else ""
    if layer and kind == "transcoders":
        return f"blocks.{layer[1]}.mlp.in", f"blocks.{layer[1]}.mlp.write"
    if layer and kind in REPOSITORY and not transcoder:
        return (f"blocks.{layer[1]}.{REPOSITORY[kind]}",) * 2
    return "rows", "targets" if transcoder else "rows"


def _named(hook: str | None) -> str | None:
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", hook or "")
    return f"blocks.{match[1]}.{MODULE[match[2]]}" if match and match[2] in MODULE else hook


@torch.no_grad()
def write(D: Dictionary, path: Path, about: dict[str, Any]) -> list[str]:
    """Write `params.npz` into a folder; returns what it has no place for: the sites, and how it was made.

    ReLU is written as a JumpReLU of θ = 0. Raises `WrongUse` for other activations, several sites, and a skip.
    """
    refuse(D, NAME, ("relu", "jumprelu"), True)
    if D.config.skip:
        raise WrongUse(
            f"This dictionary cannot be written as {NAME}: it has a skip, and an npz file has no place for it."
        )
    t = {"threshold": torch.zeros_like(D.b_enc)} | D.tensors() | {"b_enc": bias_of_x(D)}
    t = {name: t[name].detach() for name in TENSORS}
    arrays: Any = {name: tensor.cpu().numpy() for name, tensor in t.items()}

    def save(file: Path) -> None:
        with open(file, "wb") as handle:  # given a path, numpy adds .npz to it
            np.savez(handle, **arrays)

    write_atomic(path / FIRST, save)
    c = D.config
    sites = f"the sites: it reads {c.reads[0]} and writes {c.writes[0]}"
    return [sites] * (c.reads[0] != "rows") + ["how it was made"] * bool(about)
