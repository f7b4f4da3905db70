"""A small random float64 model of the same config: wirings are solved on it, and proofs run on it.

Every parameter is drawn away from its default: with unit norms and zero biases a missed bias proves nothing.
"""

from __future__ import annotations

import copy
import inspect
import json
import warnings
from functools import cache
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from interp.errors import Failed


class Lifted(TorchFunctionMode):
    """Float64 stays float64: what a model casts to float32 for stability (norms, softmax, the stream) is not cast."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        lift = {torch.float32: torch.float64}
        args = [lift.get(a, a) if isinstance(a, torch.dtype) else a for a in args]
        kwargs = {k: lift.get(v, v) if isinstance(v, torch.dtype) else v for k, v in (kwargs or {}).items()}
        return (torch.Tensor.double if func is torch.Tensor.float else func)(*args, **kwargs)


SMALL = 8_000_000  # parameters; a model up to here is its own twin


@cache
def names() -> dict[str, Any]:
    """The data table: which config fields hold which size, and exceptions, by field name."""
    return json.loads(files("interp.model").joinpath("table.json").read_text(encoding="utf-8"))


def text_config(config: Any) -> Any:
    """The part of a config that describes the language model."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def shrunk(config: Any) -> Any:
    """A copy of the config with few layers, heads and channels; ratios of heads to kv heads are kept in kind."""
    config = copy.deepcopy(config)
    parts = [config, *(v for v in vars(config).values() if hasattr(v, "model_type"))]
    for part in parts:
        heads, kv = getattr(part, "num_attention_heads", None), getattr(part, "num_key_value_heads", None)
        for field, size in names()["sizes"].items():
            if isinstance(getattr(part, field, None), int) and not isinstance(getattr(part, field), bool):
                setattr(part, field, min(size, getattr(part, field)))
        if isinstance(kv, int) and isinstance(heads, int):
            part.num_key_value_heads = 4 if kv == heads else 1 if kv == 1 else 2
        for field, value in list(vars(part).items()):
            if isinstance(value, list) and field in names()["per_layer"]:
                setattr(part, field, value[: names()["sizes"]["num_hidden_layers"]])
    return config


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    """Matrices to N(0, 1.5² / fan-in), embeddings to N(0, 1), norm weights to N(1, .2²), the rest moved by N(0, .3²)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor, scale: float) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like) * scale

    seen: set[int] = set()
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if id(p) in seen or not p.is_floating_point():
                continue
            seen.add(id(p))
            if isinstance(module, nn.Embedding):
                p.copy_(normal(p, 1.0))
            elif p.ndim == 2 and name == "weight":
                p.copy_(normal(p, 1.5 / min(p.shape) ** 0.5))
            elif p.ndim == 1:
                p.add_(normal(p, 0.2 if bool((p == 1).all()) else 0.3))
            else:
                p.add_(normal(p, 0.3 * float(p.std()) if p.numel() > 1 else 0.3))


def twin_of(model: nn.Module, seed: int = 0) -> nn.Module:
    """A random float64 CPU model of the same kind: a copy if the model is small, else one built from a shrunk config.

    Raises `Failed` if the model is large and has no config a small one can be built from.
    """
    if sum(p.numel() for p in model.parameters()) <= SMALL and not any(p.is_meta for p in model.parameters()):
        twin = copy.deepcopy(model).to("cpu", torch.float64)
    else:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                twin = type(model)(shrunk(model.config)).to(torch.float64)
        except Exception as error:
            raise Failed(f"no small copy of {type(model).__name__} could be built from its config: {error}") from error
    twin.eval().requires_grad_(False)
    randomise(twin, seed)
    return twin


def probe_inputs(model: nn.Module, batch: int = 2, length: int = 7, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs of the kinds the model's forward takes; the decoder's are two tokens shorter than the encoder's."""
    config, accepted = getattr(model, "config", None), inspect.signature(model.forward).parameters
    if config is None:
        raise Failed(f"{type(model).__name__} has no config, so no inputs can be made up for it: name `module:` sites")
    generator = torch.Generator().manual_seed(seed)
    p = next(model.parameters())
    inputs: dict[str, Tensor] = {}

    def tokens(length: int) -> Tensor:
        size = getattr(text_config(config), "vocab_size", None) or config.vocab_size
        return torch.randint(min(3, size - 1), size, (batch, length), generator=generator).to(p.device)

    main = getattr(model, "main_input_name", "input_ids")
    if main == "pixel_values":
        vision = getattr(config, "vision_config", config)
        size = vision.image_size if isinstance(vision.image_size, (tuple, list)) else [vision.image_size] * 2
        shape = (batch, vision.num_channels, *size)
        inputs["pixel_values"] = torch.randn(shape, generator=generator).to(p)
    else:
        inputs[main] = tokens(length)
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = tokens(length - 2)
    if "use_cache" in accepted or (any(a.kind is a.VAR_KEYWORD for a in accepted.values()) and main == "input_ids"):
        inputs["use_cache"] = False  # type: ignore[assignment]
    return inputs
