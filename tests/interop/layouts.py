"""Files as the other libraries lay them out, and what each says its file computes, written out in plain torch.

Nothing here comes from `interp`: a reader that agrees with these formulas has understood the layout. That the layouts are
right is checked by the libraries themselves, where they are installed (test_interop_peers.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

D, WIDE, M, K = 6, 8, 40, 5
HOOK, IN, OUT = "blocks.2.hook_resid_post", "blocks.2.ln2.hook_normalized", "blocks.2.hook_mlp_out"
Both = tuple[Tensor, Tensor]  # f, ŷ


def draw(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """Random tensors away from zero; thresholds positive."""
    g = torch.Generator().manual_seed(11)
    drawn = {name: torch.randn(shape, generator=g) * 0.5 + 0.2 for name, shape in shapes.items()}
    return {name: t.abs() if "threshold" in name else t for name, t in drawn.items()}


def topk(z: Tensor, k: int, size: Tensor | None = None) -> Tensor:
    """z where `size` (z itself, unless given) is among the k largest of its row, else 0."""
    chosen = (z if size is None else size).topk(k, dim=-1).indices
    return torch.zeros_like(z).scatter(-1, chosen, z.gather(-1, chosen))


def pursuit(x: Tensor, W_dec: Tensor, steps: int, least: float, distinct: bool) -> Tensor:
    """Greedy: the decoder row with the largest product takes its share of what is left; row by row, as it is said."""
    f = torch.zeros(len(x), len(W_dec))
    for row, left in enumerate(x):
        for _ in range(steps):
            before = f[row] != 0
            value, i = (W_dec @ left).relu().max(0)
            f[row, i] += value
            left = left - value * W_dec[i]
            if left.norm() < least or (distinct and bool((before == (f[row] != 0)).all())):
                break
    return f


def saelens(folder: Path, x: Tensor, architecture: str, **more: Any) -> Both:
    """cfg.json and sae_weights.safetensors of one of SAELens' architectures."""
    across = "transcoder" in architecture
    d_out = WIDE if across else D
    cfg = {"architecture": architecture, "d_in": D, "d_sae": M, "dtype": "float32", "device": "cpu"}
    cfg |= {"apply_b_dec_to_input": not across, "normalize_activations": "none", "reshape_activations": "none"}
    meta = {
        "sae_lens_version": "6.54.12",
        "hook_name": IN if across else HOOK,
        "model_name": "gpt2",
        "prepend_bos": True,
    }
    cfg |= {"d_out": d_out} if across else {}
    cfg |= {"metadata": meta | ({"hook_name_out": OUT} if across else {})} | more
    t = draw(W_enc=(D, M), b_enc=(M,), W_dec=(M, d_out), b_dec=(d_out,), threshold=(M,), W_skip=(d_out, D),
             r_mag=(M,), b_mag=(M,), b_gate=(M,))  # fmt: skip
    u = (x - t["b_dec"] if cfg["apply_b_dec_to_input"] else x) @ t["W_enc"]
    z, norm = u + t["b_enc"], t["W_dec"].norm(dim=-1)
    used = {"W_enc", "b_enc", "W_dec", "b_dec"}
    if architecture == "gated":
        f = (u + t["b_gate"] > 0) * (t["r_mag"].exp() * u + t["b_mag"]).relu()
        used = {"W_enc", "W_dec", "b_dec", "r_mag", "b_mag", "b_gate"}
    elif architecture in ("topk", "abstopk"):
        z = z * norm if cfg.get("rescale_acts_by_decoder_norm") else z
        f = topk(z, cfg["k"]).relu() if architecture == "topk" else topk(z, cfg["k"], z.abs())
    elif "jumprelu" in architecture:
        f, used = z.relu() * (z > t["threshold"]), used | {"threshold"}
    elif "batchtopk" in architecture:
        f = z * (z > 0.7)
        t["topk_threshold"], used = torch.tensor(0.7, dtype=torch.float64), used | {"topk_threshold"}
    elif architecture == "matching_pursuit":
        unit = t["W_dec"] = t["W_dec"] / t["W_dec"].norm(dim=1, keepdim=True)
        stop = cfg["residual_threshold"], cfg["stop_on_duplicate_support"]
        f, used = pursuit(x - t["b_dec"], unit, cfg["max_iterations"], *stop), {"W_dec", "b_dec"}
    else:
        f = z.relu()
    y = (f / norm if cfg.get("rescale_acts_by_decoder_norm") else f) @ t["W_dec"] + t["b_dec"]
    if "skip" in architecture:
        y, used = y + x @ t["W_skip"].T, used | {"W_skip"}
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text(json.dumps(cfg))
    save_file({name: t[name] for name in used}, folder / "sae_weights.safetensors")
    return f, y


def dictionary_learning(folder: Path, x: Tensor, name: str) -> Both:
    """ae.pt and config.json of one of dictionary_learning's classes."""
    t = draw(W_enc=(D, M), b_enc=(M,), W_dec=(M, D), b_dec=(D,), threshold=(M,), r_mag=(M,), b_mag=(M,), b_gate=(M,))
    centred = x - t["b_dec"]
    linear = {"encoder.weight": t["W_enc"].T.contiguous(), "decoder.weight": t["W_dec"].T.contiguous()}
    z = centred @ t["W_enc"] + t["b_enc"]
    whole = {key: t[key] for key in ("W_enc", "b_enc", "W_dec", "b_dec")}
    batch = {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(0.7)}
    state: dict[str, Tensor] = linear | {"encoder.bias": t["b_enc"]}
    if name == "AutoEncoder":
        f, state = z.relu(), state | {"bias": t["b_dec"]}
    elif name == "AutoEncoderNew":
        f, state = (x @ t["W_enc"] + t["b_enc"]).relu(), state | {"decoder.bias": t["b_dec"]}
    elif name == "GatedAutoEncoder":
        u = centred @ t["W_enc"]
        f = (u + t["b_gate"] > 0) * (t["r_mag"].exp() * u + t["b_mag"]).relu()
        biases = {"gate_bias": t["b_gate"], "mag_bias": t["b_mag"], "decoder_bias": t["b_dec"]}
        state = linear | {"r_mag": t["r_mag"]} | biases
    elif name == "AutoEncoderTopK":
        f, state = topk(z, K).relu(), state | batch | {"b_dec": t["b_dec"]}
    elif name == "BatchTopKSAE":
        f, state = z * (z > 0.7), state | batch | {"b_dec": t["b_dec"]}
    elif name == "MatryoshkaBatchTopKSAE":
        f, state = z * (z > 0.7), whole | batch | {"group_sizes": torch.tensor([10, 30])}
    else:
        z = x @ t["W_enc"] + t["b_enc"]
        f, state = z.relu() * (z > t["threshold"]), whole | {"threshold": t["threshold"]}
    folder.mkdir(parents=True)
    torch.save(state, folder / "ae.pt")
    trainer = {
        "dict_class": name,
        "activation_dim": D,
        "dict_size": M,
        "layer": 2,
        "submodule_name": "resid_post_layer_2",
    }
    trainer |= {"k": K} if "k" in state else {}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
    return f, f @ t["W_dec"] + t["b_dec"]


def sparsify(folder: Path, x: Tensor, transcode: bool, skip: bool) -> Both:
    """cfg.json and sae.safetensors of EleutherAI's sparsify."""
    t = draw(W_enc=(M, D), b_enc=(M,), W_dec=(M, D), b_dec=(D,), W_skip=(D, D))
    f = topk(((x if transcode else x - t["b_dec"]) @ t["W_enc"].T + t["b_enc"]).relu(), K)
    folder.mkdir(parents=True)
    state = {"encoder.weight": t["W_enc"], "encoder.bias": t["b_enc"], "W_dec": t["W_dec"], "b_dec": t["b_dec"]}
    save_file(state | ({"W_skip": t["W_skip"]} if skip else {}), folder / "sae.safetensors")
    cfg = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": M, "k": K}
    cfg |= {"multi_topk": False, "skip_connection": skip, "transcode": transcode, "d_in": D}
    (folder / "cfg.json").write_text(json.dumps(cfg))
    y = f @ t["W_dec"] + t["b_dec"]
    return f, y + x @ t["W_skip"].T if skip else y


def gemma_scope(folder: Path, x: Tensor, second: bool = False) -> Both:
    """params.npz, or version 2's params.safetensors and config.json with an affine path."""
    d_out = WIDE if second else D
    t = draw(W_enc=(D, M), b_enc=(M,), W_dec=(M, d_out), b_dec=(d_out,), threshold=(M,), affine=(D, d_out))
    z = x @ t["W_enc"] + t["b_enc"]
    f, affine = z * (z > t["threshold"]), t.pop("affine")
    y = f @ t["W_dec"] + t["b_dec"]
    folder.mkdir(parents=True)
    if not second:
        np.savez(folder / "params.npz", **{name: p.numpy() for name, p in t.items()})
        return f, y
    small = {name.lower(): p for name, p in t.items()}
    save_file(small | {"affine_skip_connection": affine}, folder / "params.safetensors")
    hooks = {"hf_hook_point_in": "model.layers.2.pre_feedforward_layernorm.output"}
    hooks["hf_hook_point_out"] = "model.layers.2.post_feedforward_layernorm.output"
    (folder / "config.json").write_text(json.dumps({"architecture": "jump_relu", "affine_connection": True} | hooks))
    return f, y + x @ affine


def circuit_tracer(folder: Path, x: Tensor, jump: bool, skip: bool) -> Both:
    """layer_2.safetensors and config.yaml of a set of transcoders."""
    t = draw(W_enc=(M, D), b_enc=(M,), W_dec=(M, D), b_dec=(D,), W_skip=(D, D), threshold=(M,))
    z = x @ t["W_enc"].T + t["b_enc"]
    f = z * (z > t["threshold"]) if jump else z.relu()
    y = f @ t["W_dec"] + t["b_dec"]
    folder.mkdir(parents=True)
    state = {name: t[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")} | ({"W_skip": t["W_skip"]} if skip else {})
    state |= {"activation_function.threshold": t["threshold"]} if jump else {}
    save_file(state, folder / "layer_2.safetensors")
    _hooks(folder, "transcoder_set")
    return f, y + x @ t["W_skip"].T if skip else y


def cross_layer(folder: Path, x: Tensor, jump: bool) -> Both:
    """W_enc_{i} and W_dec_{i} of a cross-layer transcoder of three layers; x is [3, rows, d]."""
    layers = [
        draw(W_enc=(M, D), b_enc=(M,), b_dec=(D,), threshold=(M,), W_dec=(M, 3 - i, D)) for i in range(3)
    ]  # drawn alike, W_dec apart
    folder.mkdir(parents=True)
    fs, y = [], torch.stack([t["b_dec"].expand(x.shape[1], D) for t in layers])
    for i, t in enumerate(layers):
        t["W_enc"] = t["W_enc"].roll(i, 0)
        z = x[i] @ t["W_enc"].T + t["b_enc"]
        fs.append(z * (z > t["threshold"]) if jump else z.relu())
        y = torch.cat([y[:i], y[i:] + torch.einsum("bm,mld->lbd", fs[-1], t["W_dec"])])
        first = {name: t[name] for name in ("W_enc", "b_enc", "b_dec")} | (
            {"threshold": t["threshold"]} if jump else {}
        )
        save_file({f"{name}_{i}": p.contiguous() for name, p in first.items()}, folder / f"W_enc_{i}.safetensors")
        save_file({f"W_dec_{i}": t["W_dec"]}, folder / f"W_dec_{i}.safetensors")
    _hooks(folder, "cross_layer_transcoder")
    return torch.cat(fs, -1), torch.cat([*y], -1)


def _hooks(folder: Path, kind: str) -> None:
    hooks = {"feature_input_hook": "ln2.hook_normalized", "feature_output_hook": "hook_mlp_out"}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model_kind": kind, "model_name": "gpt2", **hooks}))
