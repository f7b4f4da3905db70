"""sparsify (EleutherAI/sparsify): `cfg.json` and `sae.safetensors`, in a folder named after the module it was trained on.

f = TopK_k(ReLU(W_encᵀ (x − b_dec) + b_enc))    ŷ = f W_dec + b_dec  [+ W_skip x]    with `transcode`: x for x − b_dec

Tensors: encoder.weight [m, d], encoder.bias [m], W_dec [m, d], b_dec [d], W_skip [d, d]; what is read is as wide as what is
written. `groupmax` (the largest of each of k groups) is refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from interp.dictionaries.dictionary import Dictionary
from interp.errors import WrongUse
from interp.files import read_json, read_tensors, save_tensors, write_json
from interp.interop.parts import Read, assemble, bias_of_x, need, refuse

NAME, HOLDS = "sparsify", "cfg.json and sae.safetensors"
CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
BLOCK = re.compile(r"(?:\w+\.)*(?:layers|h|blocks|layer|block)\.(\d+)(?:\.(\w+))?")
PARTS = {"mlp": "mlp", "attn": "attn", "self_attn": "attn", "attention": "attn"}


def found(path: Path) -> bool:
    """Whether `path` is a folder of this format."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def read(path: Path) -> Read:
    """Read a folder. Raises `WrongUse` for `groupmax`, `Failed` for a damaged folder."""
    cfg = read_json(path / CONFIG)
    (k,) = need(cfg, ("k",), path / CONFIG)
    if cfg.get("activation", "topk") != "topk":
        raise WrongUse(f"{path} has the activation {cfg['activation']!r}; a dictionary here knows only topk of these.")
    transcoder = bool(cfg.get("transcode", False))
    t = read_tensors(path / WEIGHTS)
    if "encoder.weight" in t:
        t["W_enc"], t["b_enc"] = t.pop("encoder.weight").T, t.pop("encoder.bias")
    sites = (cfg.get("interp") or {}).get("sites") or _sites(path.resolve().name, transcoder)
    D = assemble(path, tuple(sites), "topk", t, centred=not transcoder, k=int(k))
    return Read(D, {"format": NAME, "config": cfg})


def _sites(folder: str, transcoder: bool) -> tuple[str, str]:
    """The sites that a module's name says: a block's output, or what one of its sublayers returns, or receives."""
    match = BLOCK.fullmatch(folder)
    part = match and (PARTS.get(match[2]) if match[2] else "")
    if match is None or part is None or (transcoder and not part):
        return (f"module:{folder}:in", f"module:{folder}") if transcoder else (f"module:{folder}",) * 2
    if not part:
        return (f"blocks.{match[1]}.resid_post",) * 2
    out = f"blocks.{match[1]}.{part}.out"
    return (f"blocks.{match[1]}.{part}.in", out) if transcoder else (out, out)


def write(D: Dictionary, path: Path, about: dict[str, Any]) -> list[str]:
    """Write a folder that its own `SparseCoder.load_from_disk` opens; returns what it has no place for: nothing.

    Raises `WrongUse` for another activation than TopK, several sites, and widths that differ.
    """
    refuse(D, NAME, ("topk",), True)
    c = D.config
    if c.d_in != c.d_out:
        raise WrongUse(
            f"This dictionary cannot be written as {NAME}: it reads {c.d_in} numbers a row and writes {c.d_out}, "
            "and that format has one width for both."
        )
    t = {"W_dec": D.W_dec, "b_dec": D.b_dec} | ({"W_skip": D.W_skip} if c.skip else {})
    bias = D.b_enc if c.autoencoder else bias_of_x(D)
    save_tensors(path / WEIGHTS, t | {"encoder.weight": D.W_enc.T, "encoder.bias": bias})
    cfg = {"activation": "topk", "num_latents": c.latents, "k": c.k, "normalize_decoder": False, "d_in": c.d_in}
    cfg |= {"transcode": not c.autoencoder, "skip_connection": c.skip}
    sites = [c.reads[0], c.writes[0]]
    write_json(path / CONFIG, cfg | {"interp": {"sites": sites, "made": about}})
    return []
