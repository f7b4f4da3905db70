"""SAELens (decoderesearch/SAELens, layout of version 6): `cfg.json` and `sae_weights.safetensors`.

| architecture | f | here |
| standard, transcoder, skip_transcoder | ReLU(z) | relu |
| topk | TopK_k(z), times ‖d_i‖ before the choice with rescale_acts_by_decoder_norm | topk, ‖d_i‖ folded |
| abstopk | the k of largest |z_i|, with sign | topk of 2m latents: m + i is latent i where it is negative |
| jumprelu (and transcoders), batchtopk, matryoshka_batchtopk | ReLU(z)·1[z > θ] | jumprelu |
| gated | 1[u + b_gate > 0] ReLU(e^r u + b_mag) | jumprelu, exactly |
| matching_pursuit | greedy steps, until little is left or no new latent is picked | pursuit |

z = W_encᵀ x + b_enc, with x − b_dec for x where apply_b_dec_to_input. `temporal` is refused: its latents depend on the
tokens before. `batchtopk` and `matryoshka_batchtopk` are what a training checkpoint is; in use both are jumprelu.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.dictionaries.dictionary import Dictionary
from interp.errors import WrongUse
from interp.files import read_json, read_tensors, save_tensors, write_json
from interp.interop.parts import (
    Read,
    assemble,
    bias_of_x,
    fold_norms,
    gated,
    hook_of,
    need,
    refuse,
    sites_of,
)

NAME, HOLDS = "saelens", "cfg.json and sae_weights.safetensors"
CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
LAYOUT = "6.54.12"  # the version that files are laid out for
ACTIVATION = {
    **dict.fromkeys(("standard", "transcoder", "skip_transcoder"), "relu"),
    **dict.fromkeys(("topk", "abstopk"), "topk"),
    **dict.fromkeys(("gated", "jumprelu", "batchtopk", "matryoshka_batchtopk"), "jumprelu"),
    **dict.fromkeys(("jumprelu_transcoder", "jumprelu_skip_transcoder"), "jumprelu"),
    "matching_pursuit": "pursuit",
}
RENAMED = {"hook_point": "hook_name", "activation_fn_str": "activation_fn", "hook_point_head_index": "hook_head_index"}


def found(path: Path) -> bool:
    """Whether `path` is a folder of this format."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


@torch.no_grad()
def read(path: Path, release: Mapping[str, Any] | None = None) -> Read:
    """Read a folder; `release`: what the table of releases says of it, and its config may not.

    Raises `WrongUse` for what a `Dictionary` cannot express, `Failed` for a damaged folder.
    """
    cfg = _modern(read_json(path / CONFIG) | dict(release or {}))
    architecture, meta = cfg["architecture"], cfg.get("metadata") or {}
    if architecture not in ACTIVATION:
        why = " (its latents depend on the tokens before, and a dictionary reads one row)"
        raise WrongUse(
            f"{path} has the SAELens architecture {architecture!r}{why * (architecture == 'temporal')}; "
            f"those read are: {', '.join(ACTIVATION)}."
        )
    if meta.get("hook_head_index") is not None:
        raise WrongUse(f"{path} reads one head (hook_head_index={meta['hook_head_index']}); a dictionary reads a site.")
    factor, transcoder = _factor(cfg, path), "transcoder" in architecture
    t = _in_use(_scaled(read_tensors(path / WEIGHTS), factor), cfg)
    sites = sites_of(meta.get("hook_name"), meta.get("hook_name_out"), transcoder)
    centred = bool(cfg.get("apply_b_dec_to_input", True)) and not transcoder
    D = assemble(path, sites, ACTIVATION[architecture], t, centred, **_steps(cfg, path, factor))
    return Read(D, {"format": NAME, "config": cfg})


def _modern(cfg: dict[str, Any]) -> dict[str, Any]:
    """A config as version 6 writes it: before, hook, model and data stood beside the widths, and defaults were left out."""
    if "metadata" in cfg:
        return {"architecture": "standard"} | cfg
    cfg = {RENAMED.get(key, key): value for key, value in cfg.items()}
    k = (cfg.get("activation_fn_kwargs") or {}).get("k")
    if cfg.get("activation_fn") == "topk" and k is not None:
        cfg |= {"architecture": "topk", "k": k}
    return {"architecture": "standard"} | cfg | {"metadata": cfg}


def _factor(cfg: dict[str, Any], path: Path) -> float:
    """What rows were multiplied by in training, and the tensors are still in the units of."""
    how = cfg.get("normalize_activations") or "none"
    if how == "none":
        return 1.0
    if how not in (True, "expected_average_only_in"):
        raise WrongUse(
            f"{path} normalises each row by itself (normalize_activations={how!r}); a dictionary has no place for that."
        )
    factor: float | None = cfg.get("norm_scaling_factor")
    if factor is None and (path / SCALER).is_file():
        factor = read_json(path / SCALER).get("scaling_factor")
    if factor is None:
        warnings.warn(
            f"{path} was trained on rows scaled to a mean norm of √d, and says not by how much. It is read as it stands; "
            "`interp doctor` finds the factor.",
            stacklevel=2,
        )
    return factor or 1.0


def _scaled(t: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    """For rows x, given tensors for factor · x; latents keep their values, but where the decoder encodes."""
    by = {"W_enc": factor, "W_dec": 1 / factor, "b_dec": 1 / factor} if "W_enc" in t else {"b_dec": 1 / factor}
    return {name: tensor if factor == 1 else tensor * by.get(name, 1) for name, tensor in t.items()}


def _in_use(t: dict[str, Tensor], cfg: dict[str, Any]) -> dict[str, Tensor]:
    """What training keeps beside the dictionary, folded."""
    architecture = cfg["architecture"]
    if "scaling_factor" in t:  # a factor for each latent, in versions before 6
        t["W_dec"] = t["W_dec"] * t.pop("scaling_factor")[:, None]
    if cfg.get("rescale_acts_by_decoder_norm"):
        fold_norms(t)
    if "topk_threshold" in t:
        t["threshold"] = t.pop("topk_threshold").to(t["b_enc"])
    if "log_threshold" in t:
        t["threshold"] = t.pop("log_threshold").exp()
    if architecture == "gated":
        return gated(t)
    if architecture == "abstopk":
        return t | {
            "W_enc": torch.cat([t["W_enc"], -t["W_enc"]], 1),
            "b_enc": torch.cat([t["b_enc"], -t["b_enc"]]),
            "W_dec": torch.cat([t["W_dec"], -t["W_dec"]]),
        }
    if architecture == "matching_pursuit" and not cfg.get("apply_b_dec_to_input", True):
        return t | {"b_dec": torch.zeros_like(t["b_dec"])}  # the bias is then used nowhere
    return t


def _steps(cfg: dict[str, Any], path: Path, factor: float) -> dict[str, Any]:
    """How many latents are active, or when a pursuit stops."""
    if cfg["architecture"] in ("topk", "abstopk"):
        return {"k": int(need(cfg, ("k",), path / CONFIG)[0])}
    if cfg["architecture"] != "matching_pursuit":
        return {}
    least, distinct = cfg.get("residual_threshold", 1e-2), cfg.get("stop_on_duplicate_support", True)
    return {"k": int(cfg.get("max_iterations") or cfg["d_in"]), "tolerance": least / factor, "distinct": distinct}


def write(D: Dictionary, path: Path, about: dict[str, Any]) -> list[str]:
    """Write a folder that SAELens' own `SAE.load_from_disk` opens; returns what it has no place for: nothing.

    Raises `WrongUse` for several sites, codebooks and TopK transcoders.
    """
    c = D.config
    activations = ("relu", "topk", "jumprelu", "pursuit") if c.autoencoder else ("relu", "jumprelu")
    refuse(D, NAME, activations, True)
    t = {name: p for name, p in D.tensors().items() if name != "b_in"}
    if not c.autoencoder:
        t["b_enc"] = bias_of_x(D)
    save_tensors(path / WEIGHTS, t)
    write_json(path / CONFIG, _config(D, about))
    return []


def _config(D: Dictionary, about: dict[str, Any]) -> dict[str, Any]:
    c = D.config
    hook = hook_of(c.reads[0])
    before = (about["config"].get("metadata") or {}) if about.get("format") == NAME else {"interp": about}
    meta = before | {"sae_lens_version": LAYOUT, "hook_name": hook}
    cfg = {
        "architecture": _architecture(D),
        "d_in": c.d_in,
        "d_sae": c.latents,
        "dtype": str(D.b_dec.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": c.autoencoder,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if hook.endswith("hook_z") and c.autoencoder else "none",
    }
    if not c.autoencoder:
        cfg["d_out"] = c.d_out
        meta["hook_name_out"] = hook_of(c.writes[0])
    if c.activation == "topk":
        cfg |= {"k": c.k, "rescale_acts_by_decoder_norm": False}
    if c.activation == "pursuit":
        cfg |= {"max_iterations": c.k, "residual_threshold": c.tolerance, "stop_on_duplicate_support": c.distinct}
    return cfg | {"metadata": meta}


def _architecture(D: Dictionary) -> str:
    c = D.config
    if c.autoencoder:
        return {"relu": "standard", "pursuit": "matching_pursuit"}.get(c.activation, c.activation)
    shape = "skip_transcoder" if c.skip else "transcoder"
    return shape if c.activation == "relu" else f"jumprelu_{shape}"
