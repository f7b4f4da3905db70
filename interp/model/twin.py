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
from weakref import WeakKeyDictionary

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
    """A copy of the config with few heads and channels and all layers; ratios of heads to kv heads are kept in kind."""
    config = copy.deepcopy(config)
    parts = [config, *(v for v in vars(config).values() if hasattr(v, "model_type"))]
    for part in parts:
        heads, kv = getattr(part, "num_attention_heads", None), getattr(part, "num_key_value_heads", None)
        for field, size in names()["sizes"].items():
            fixed = isinstance(getattr(type(part), field, None), property)  # made of other fields
            if isinstance(getattr(part, field, None), int) and not isinstance(getattr(part, field), bool) and not fixed:
                setattr(part, field, min(size, getattr(part, field)))
        if isinstance(kv, int) and isinstance(heads, int):
            part.num_key_value_heads = 4 if kv == heads else 1 if kv == 1 else 2
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
        twin = nn.Module.to(copy.deepcopy(model), "cpu", torch.float64)  # some models have a `to` of their own
    else:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                twin = type(model)(shrunk(model.config)).to(torch.float64)
        except Exception as error:
            raise Failed(f"no small copy of {type(model).__name__} could be built from its config: {error}") from error
    twin.eval().requires_grad_(False)
    if model in EXAMPLES:
        EXAMPLES[twin] = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in EXAMPLES[model].items()}
    given = [c for m in twin.modules() for c in (getattr(m, "config", None), getattr(m, "cfg", None)) if c is not None]
    for config in {id(c): c for c in given}.values():
        config._experts_implementation = "eager"  # grouped products of experts know no float64
        if isinstance(getattr(config, "dtype", None), torch.dtype):
            config.dtype = torch.float64
    randomise(twin, seed)
    return twin


def probe_inputs(model: nn.Module, batch: int = 2, length: int = 7, seed: int = 0) -> dict[str, Any]:
    """Random inputs of the kinds the model's forward takes; the decoder's are two tokens shorter than the encoder's."""
    config, accepted = getattr(model, "config", None), inspect.signature(model.forward).parameters
    generator = torch.Generator().manual_seed(seed)
    where, dtype = home(model), next(model.parameters()).dtype
    if model in EXAMPLES or not hasattr(config, "model_type"):
        return _like(model, batch, length, generator)
    main = first_name(model)
    kinds = [main] + [
        k for k, part in names()["beside"].items() if k != main and k in accepted and hasattr(config, part)
    ]
    inputs: dict[str, Any] = {}
    for kind in kinds:
        if kind in names()["inputs"]:
            shape = [batch, *(_size(config, fields) for fields in names()["inputs"][kind])]
            inputs[kind] = torch.randn(shape, generator=generator).to(where, dtype)
        else:
            inputs[kind] = _tokens(config, (batch, length), generator).to(where)
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = _tokens(config, (batch, length - 2), generator).to(where)
    if "use_cache" in accepted or (any(a.kind is a.VAR_KEYWORD for a in accepted.values()) and main == "input_ids"):
        inputs["use_cache"] = False
    return _with_places(model, inputs)


EXAMPLES: WeakKeyDictionary[nn.Module, dict[str, Any]] = WeakKeyDictionary()  # what `load(model, example=)` was given


def first_name(model: nn.Module) -> str:
    """What the model calls its main input: what it says, if its forward takes that or names nothing, else its first argument."""
    said = getattr(model, "main_input_name", "input_ids")
    named = [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    return said if said in named or not named else named[0]


def home(model: nn.Module) -> torch.device:
    """Where the model takes its inputs: its first parameter's device, or where its offloaded weights are brought to run."""
    device = next((p.device for p in model.parameters() if not p.is_meta), None)
    hook = getattr(model, "_hf_hook", None)
    return device or torch.device(getattr(hook, "execution_device", None) or "cpu")


def _like(model: nn.Module, batch: int, length: int, generator: torch.Generator) -> dict[str, Any]:
    """Random inputs of the example's kinds and value ranges; without one, token ids that every table of the model has."""
    sizes = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    ids = torch.tensor([[min([*sizes, getattr(getattr(model, "cfg", None), "d_vocab", 3)]) - 1]])
    inputs: dict[str, Any] = {}
    for name, value in EXAMPLES.get(model, {first_name(model): ids}).items():
        if not isinstance(value, Tensor) or value.dtype == torch.bool:
            inputs[name] = value
        elif value.is_floating_point():
            dtype = next(model.parameters()).dtype
            inputs[name] = torch.randn(batch, *value.shape[1:], generator=generator).to(value.device, dtype)
        else:
            shape = (batch, length) if value.ndim == 2 else (batch, *value.shape[1:])
            inputs[name] = torch.randint(int(value.max()) + 1, shape, generator=generator).to(value.device)
    return inputs


def _tokens(config: Any, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Token ids that are no special token of the text, nor one that stands for a picture."""
    size = getattr(text_config(config), "vocab_size", None) or config.vocab_size
    ids = torch.randint(min(3, size - 1), size, shape, generator=generator)
    place = getattr(config, "image_token_id", None)
    return ids if place is None else torch.where(ids == place, min(3, size - 1), ids)


def _size(config: Any, fields: str) -> int:
    """A size by the first of the fields that the config, or the part of it for pictures or sound, has; `2*` doubles it."""
    factor, _, given = fields.rpartition("*")
    parts = [config, *(v for k, v in vars(config).items() if k in ("vision_config", "audio_config"))]
    for name in given.split("|"):
        value = int(name) if name.isdigit() else next((getattr(c, name) for c in parts if hasattr(c, name)), None)
        value = value[0] if isinstance(value, (tuple, list)) else value
        if value is not None:
            return int(factor or 1) * int(value)
    raise Failed(f"the config says none of {given.replace('|', ', ')}, so no input of that size can be made up")


def _with_places(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """In front of the text, as many image tokens as the model makes of the pictures, where it wants them there."""
    config: Any = model.config
    place = getattr(config, "image_token_id", None)
    if place is None or "input_ids" not in inputs or "pixel_values" not in inputs:
        return inputs
    vision = config.vision_config
    count = (_size(vision, "image_size") // _size(vision, "patch_size")) ** 2
    ids = inputs["input_ids"]
    return inputs | {"input_ids": torch.cat([torch.full_like(ids[:, :1], place).repeat(1, count), ids], dim=1)}
