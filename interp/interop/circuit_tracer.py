"""circuit-tracer (decoderesearch/circuit-tracer): transcoders of the MLPs of a model, layer by layer or across layers.

A set of transcoders: `layer_{i}.safetensors` for each layer i, with W_enc [m, d], b_enc, W_dec [m, d], b_dec, and perhaps
W_skip [d, d] and activation_function.threshold [m].
A cross-layer transcoder: `W_enc_{i}.safetensors` with W_enc_{i} [m, d], b_enc_{i}, b_dec_{i}, and perhaps threshold_{i}; and
`W_dec_{i}.safetensors` with W_dec_{i} [m, L − i, d]: what layer i writes to the layers i, i + 1, …
Both: `config.yaml` with the hooks read and written. z = W_enc x + b_enc, f = ReLU(z), or z·1[z > θ] with a threshold.

A folder of several layers is as many dictionaries: the file of one is read. Writing another layer into a folder adds it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from interp.dictionaries.dictionary import Dictionary, DictionaryConfig
from interp.errors import Failed, WrongUse
from interp.files import read_tensors, save_tensors, write_text
from interp.interop.parts import Read, assemble, bias_of_x, filled, hook_of, refuse, site_of

NAME, HOLDS = "circuit_tracer", "layer_N.safetensors, or W_enc_N.safetensors and W_dec_N.safetensors"
CONFIG, THRESHOLD = "config.yaml", "activation_function.threshold"
LAYER, ENCODER = re.compile(r"layer_(\d+)\.safetensors"), re.compile(r"W_enc_(\d+)\.safetensors")
HOOKS = ("feature_input_hook", "feature_output_hook")
DEFAULT = ("hook_resid_mid", "hook_mlp_out")  # its own


def found(path: Path) -> bool:
    """Whether `path` is a layer's file or a folder of this format."""
    return bool(LAYER.fullmatch(path.name)) or bool(_numbers(path, LAYER)) or bool(_numbers(path, ENCODER))


def _numbers(folder: Path, name: re.Pattern[str]) -> list[int]:
    """Of the layers that `folder` has files of."""
    files = folder.iterdir() if folder.is_dir() else iter(())
    return sorted(int(match[1]) for file in files if (match := name.fullmatch(file.name)))


def read(path: Path) -> Read:
    """Read a layer's file, a folder of one layer, or a cross-layer transcoder's folder.

    Raises `WrongUse` for a folder of several layers and for skips across layers, `Failed` for a damaged folder.
    """
    config = _config(path if path.is_dir() else path.parent)
    about = {"format": NAME, "config": config}
    if path.is_dir() and _numbers(path, ENCODER):
        return Read(_across(path, config), about)
    if path.is_dir():
        layers = _numbers(path, LAYER)
        if len(layers) > 1:
            raise WrongUse(
                f"{path} holds {len(layers)} transcoders: name one, such as {path}/layer_{layers[0]}.safetensors."
            )
        path = path / f"layer_{layers[0]}.safetensors"
    t = read_tensors(path)
    t["W_enc"] = t["W_enc"].T
    if THRESHOLD in t:
        t["threshold"] = t.pop(THRESHOLD)
    match = LAYER.fullmatch(path.name)
    assert match is not None
    activation = "jumprelu" if "threshold" in t else "relu"
    return Read(assemble(path, _sites(config, int(match[1])), activation, t), about)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        whole = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except yaml.YAMLError as error:
        raise Failed(f"{path} is no YAML file: {error}.") from error
    if not isinstance(whole, dict):
        raise Failed(f"{path} should hold a mapping; it holds a {type(whole).__name__}.")
    return whole


def _sites(config: dict[str, Any], layer: int) -> tuple[str, str]:
    first, second = (config.get(key) or default for key, default in zip(HOOKS, DEFAULT, strict=True))
    return site_of(f"blocks.{layer}.{first}"), site_of(f"blocks.{layer}.{second}")


def _across(path: Path, config: dict[str, Any]) -> Dictionary:
    layers = _numbers(path, ENCODER)
    if layers != list(range(len(layers))):
        raise Failed(f"{path} has encoders of the layers {layers}; they should go from 0 without a gap.")
    parts: list[dict[str, Tensor]] = []
    for i in layers:
        part = read_tensors(path / f"W_enc_{i}.safetensors") | read_tensors(path / f"W_dec_{i}.safetensors")
        parts.append({name.removesuffix(f"_{i}"): tensor for name, tensor in part.items()})
    if any("W_skip" in part for part in parts):
        raise WrongUse(f"{path} has a skip in each layer; a cross-layer transcoder here has none.")
    wanted = {"W_enc", "b_enc", "b_dec", "W_dec"} | ({"threshold"} & parts[0].keys())
    for i, part in enumerate(parts):
        if part.keys() != wanted:
            raise Failed(
                f"Layer {i} of {path} holds {', '.join(sorted(part))}; it should hold {', '.join(sorted(wanted))}."
            )
    reads, writes = zip(*(_sites(config, i) for i in layers), strict=True)
    return filled(path, _across_config(parts, reads, writes), _side_by_side(parts), False)


def _across_config(parts: list[dict[str, Tensor]], reads: tuple[str, ...], writes: tuple[str, ...]) -> DictionaryConfig:
    n, (m, d) = len(parts), parts[0]["W_enc"].shape
    activation = "jumprelu" if "threshold" in parts[0] else "relu"
    widths = (d,) * n
    return DictionaryConfig(
        reads, writes, n * d, n * d, n * m, None, activation, widths_in=widths, widths_out=widths, cross_layer=True
    )


def _side_by_side(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """W_enc block-diagonal, W_dec block-triangular."""
    n, (m, d) = len(parts), parts[0]["W_enc"].shape
    W_dec = parts[0]["W_dec"].new_zeros(n, m, n, d)
    for i, part in enumerate(parts):
        if part["W_dec"].shape != (m, n - i, d):
            raise Failed(f"W_dec_{i} has shape {list(part['W_dec'].shape)}, not {[m, n - i, d]}.")
        W_dec[i, :, i:] = part["W_dec"]
    rows = {name: torch.cat([part[name].flatten() for part in parts]) for name in parts[0].keys() - {"W_enc", "W_dec"}}
    return rows | {"W_enc": torch.block_diag(*(part["W_enc"].T for part in parts)), "W_dec": W_dec.view(n * m, n * d)}


def write(D: Dictionary, path: Path, about: dict[str, Any]) -> list[str]:
    """Write a folder that its own `load_transcoder_set` or `load_clt` opens; returns what it has no place for: nothing.

    Raises `WrongUse` for autoencoders, TopK, and sites that are not the same hook in each layer.
    """
    c = D.config
    if not c.cross_layer:
        refuse(D, NAME, ("relu", "jumprelu"), "only")
    elif c.activation not in ("relu", "jumprelu"):
        raise WrongUse(f"This dictionary cannot be written as {NAME}: {c.activation!r} is not among its activations.")
    if {*(c.widths_in or (c.d_in,)), *(c.widths_out or (c.d_out,))} != {c.d_in // len(c.reads)}:
        raise WrongUse(f"This dictionary cannot be written as {NAME}: its sites are not all of one width.")
    layers, hooks = _hooks(c)
    there = _config(path)
    if there and [there.get(key) for key in HOOKS] != hooks:
        raise WrongUse(f"{path} holds transcoders of other hooks than {' and '.join(hooks)}: choose another folder.")
    if c.cross_layer:
        _write_across(D, path)
    else:
        t = {"W_enc": D.W_enc.T, "b_enc": bias_of_x(D), "W_dec": D.W_dec, "b_dec": D.b_dec}
        t |= {"W_skip": D.W_skip} if c.skip else {}
        t |= {THRESHOLD: D.threshold} if c.activation == "jumprelu" else {}
        save_tensors(path / f"layer_{layers[0]}.safetensors", t)
    kind = "cross_layer_transcoder" if c.cross_layer else "transcoder_set"
    made = (there.get("interp") or {}) | {"all" if c.cross_layer else f"layer_{layers[0]}": about}
    config = {"model_kind": kind, **dict(zip(HOOKS, hooks, strict=True)), "interp": made}
    write_text(path / CONFIG, yaml.safe_dump(there | config, sort_keys=False))
    return []


def _hooks(c: DictionaryConfig) -> tuple[list[int], list[str]]:
    """The layers, and the two hooks that stand in all of them."""
    names = [re.fullmatch(r"blocks\.(\d+)\.(.+)", hook_of(site)) for site in c.reads + c.writes]
    layers = [int(name[1]) for name in names if name]
    n = len(c.reads)
    rest = [{name[2] for name in part if name} for part in (names[:n], names[n:])]
    if not all(names) or layers[:n] != layers[n:] or any(len(hooks) != 1 for hooks in rest):
        raise WrongUse(
            f"This dictionary cannot be written as {NAME}: its sites must be one hook in, one hook out of blocks "
            f"(blocks.3.mlp.in and blocks.3.mlp.write, say); they are {', '.join(c.reads)} and {', '.join(c.writes)}."
        )
    if c.cross_layer and layers[:n] != list(range(n)):
        raise WrongUse(f"{NAME} counts layers from 0 without a gap; this dictionary has {layers[:n]}.")
    return layers[:n], [hooks.pop() for hooks in rest]


def _write_across(D: Dictionary, path: Path) -> None:
    n = len(D.config.reads)
    m, d = D.config.latents // n, D.config.d_in // n
    W_enc, W_dec = D.W_enc.T.reshape(n, m, n, d), D.W_dec.view(n, m, n, d)
    bias, b_dec = bias_of_x(D).view(n, m), D.b_dec.view(n, d)
    for i in range(n):
        t = {f"W_enc_{i}": W_enc[i, :, i], f"b_enc_{i}": bias[i], f"b_dec_{i}": b_dec[i]}
        t |= {f"threshold_{i}": D.threshold.view(n, m)[i]} if D.config.activation == "jumprelu" else {}
        save_tensors(path / f"W_enc_{i}.safetensors", t)
        save_tensors(path / f"W_dec_{i}.safetensors", {f"W_dec_{i}": W_dec[i, :, i:]})
