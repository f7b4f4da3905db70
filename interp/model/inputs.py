"""Made-up inputs that a model's forward takes: what is solved and proven is solved and proven on them.

`inputs.json` lists what models are fed, richest first: of the rows whose names a forward takes, the first that it can
be run with is used. A row says of each argument what it holds (`float`, `tokens`, `whole N`: integers below N, `ones`,
`zeros`, `rows`: these integers for each of the batch, `number`) and its sizes: `a|b|64` is the first of these config fields,
else 64; `2*a` a product, `2+a` a sum, `a#1` the second of several.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache
from importlib.resources import files
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from interp.errors import Failed

EXAMPLES: WeakKeyDictionary[nn.Module, dict[str, Any]] = WeakKeyDictionary()  # what `load(model, example=)` was given
FITTING: dict[tuple[type, str], dict[str, str]] = {}  # the row that a class of models runs with
Row = dict[str, str]


@cache
def rows() -> list[Row]:
    """The data table, richest inputs first."""
    return json.loads(files("interp.model").joinpath("inputs.json").read_text(encoding="utf-8"))


def parts(config: Any) -> Iterator[Any]:
    """A config and the configs in it, outermost first."""
    yield config
    for value in vars(config).values():
        if hasattr(value, "model_type"):
            yield from parts(value)


def text_config(config: Any) -> Any:
    """The part of a config that describes the language model."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def first_name(model: nn.Module) -> str:
    """What the model calls its main input: what it says, if its forward takes that or names nothing, else its first argument."""
    said = getattr(model, "main_input_name", "input_ids")
    named = [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    return said if said in named or not named else named[0]


def parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """`model.parameters()`, of which the first is had in a tenth of the time: every recording asks for it."""
    yield from (p for p in model._parameters.values() if p is not None)
    for part in model._modules.values():
        if part is not None:
            yield from parameters(part)


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype of its first parameter; float32 if it has none."""
    return next((p.dtype for p in parameters(model)), torch.float32)


def home(model: nn.Module) -> torch.device:
    """Where the model takes its inputs: its first parameter's device, or where its offloaded weights are brought to run."""
    device = next((p.device for p in parameters(model) if not p.is_meta), None)
    if device is not None:
        return device
    return torch.device(getattr(getattr(model, "_hf_hook", None), "execution_device", None) or "cpu")


def probe_inputs(model: nn.Module, batch: int = 2, length: int = 7, seed: int = 0) -> dict[str, Any]:
    """Random inputs of the kinds the model's forward takes; the decoder's are two tokens shorter than the encoder's.

    A module that says its `longest_input` gets none longer. Raises `Failed` if no row of the table names what the forward takes.
    """
    generator = torch.Generator().manual_seed(seed)
    length = min(length, getattr(model, "longest_input", length))
    if model in EXAMPLES or not hasattr(getattr(model, "config", None), "model_type"):
        return _like(model, batch, length, generator)
    return _made(model, fitting(model), batch, length, generator)


def fitting(model: nn.Module) -> Row:
    """The first row of the table that the model can be run with; found once for a class of models."""
    config: Any = model.config
    key = (type(model), str(config.model_type))
    if key not in FITTING:
        possible = _possible(model)
        FITTING[key] = next((row for row in possible if len(possible) == 1 or _runs(model, row)), possible[0])
    return FITTING[key]


def _possible(model: nn.Module) -> list[Row]:
    """The rows that name nothing a forward does not take, and all it cannot do without; those with its main input first."""
    given, main = inspect.signature(model.forward).parameters.values(), first_name(model)
    named = {main, *(p.name for p in given)}
    needed = {p.name for p in given if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    text = any(hasattr(c, n) for c in parts(model.config) for n in ("vocab_size", "d_vocab"))
    known = [
        *rows(),
        *([{main: "tokens batch pos"}] if text else []),
    ]  # a wrapper may call the text by a name of its own
    found = [row for row in known if set(row) <= named and needed - {"use_cache"} <= {*row, "decoder_input_ids"}]
    found = [row for row in found if all(_known(model.config, spec) for spec in row.values())]
    if not found:
        raise Failed(
            f"no input could be made up for {type(model).__name__}, whose forward needs {', '.join(sorted(needed or {main}))}: "
            "give one, as interp.load(model, example={name: tensor})."
        )
    return sorted(found, key=lambda row: main not in row)


def _runs(model: nn.Module, row: Row) -> bool:
    from interp.model.twin import Lifted

    lifted = Lifted() if dtype_of(model) == torch.float64 else nullcontext()
    try:
        with torch.no_grad(), lifted:
            model(**_made(model, row, 2, 7, torch.Generator().manual_seed(0)))
    except Exception:  # whatever a model raises when it is fed what it does not take
        return False
    return True


def _made(model: nn.Module, row: Row, batch: int, length: int, generator: torch.Generator) -> dict[str, Any]:
    config, accepted = model.config, inspect.signature(model.forward).parameters
    where, dtype = home(model), dtype_of(model)
    inputs: dict[str, Any] = {}
    for name, spec in row.items():
        value = _value(config, spec, batch, length, generator)
        value = value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        inputs[name] = value.to(where) if isinstance(value, Tensor) else value
    if (
        getattr(config, "is_encoder_decoder", False)
        and "decoder_input_ids" in accepted
        and "decoder_input_ids" not in row
    ):
        inputs["decoder_input_ids"] = _tokens(config, (batch, length - 2), generator).to(where)
    anything = any(a.kind is a.VAR_KEYWORD for a in accepted.values())
    if "use_cache" in accepted or (anything and "input_ids" in row and hasattr(text_config(config), "use_cache")):
        inputs["use_cache"] = False
    return _with_places(model, inputs)


# ---------------------------------------------------------------- one argument


def _value(config: Any, spec: str, batch: int, length: int, generator: torch.Generator) -> Any:
    kind, *sizes = spec.split()
    if kind == "number":
        return int(sizes[0])
    if kind == "rows":
        return torch.tensor([_size(config, size) for size in sizes]).repeat(batch, 1)
    below, sizes = (int(sizes[0]), sizes[1:]) if kind == "whole" else (0, sizes)
    known = {"batch": batch, "pos": length}
    shape = [_size(config, size, known) for size in sizes]
    if kind == "tokens":
        return _tokens(config, tuple(shape), generator)
    if kind == "whole":
        return torch.randint(below, shape, generator=generator)
    if kind == "float":
        return torch.randn(shape, generator=generator)
    return torch.full(shape, int(kind == "ones"))


def _known(config: Any, spec: str) -> bool:
    try:
        for size in spec.split()[1:]:
            _size(config, size, {"batch": 1, "pos": 1})
    except (LookupError, TypeError, ValueError):
        return False
    return True


def _size(config: Any, spec: str, known: dict[str, int] | None = None) -> int:
    """The value of `a|b|64`, of products and of sums of such. Raises `LookupError` if the config has none of the fields."""
    if "+" in spec:
        first, _, rest = spec.partition("+")
        return _size(config, first, known) + _size(config, rest, known)
    if "*" in spec:
        first, _, rest = spec.partition("*")
        return _size(config, first, known) * _size(config, rest, known)
    for name in spec.split("|"):
        field, _, index = name.partition("#")
        values = [known[field]] if known and field in known else [getattr(c, field, None) for c in parts(config)]
        value = int(name) if name.isdigit() else next((v for v in values if v is not None), None)
        if isinstance(value, (tuple, list)):
            value = value[min(int(index or 0), len(value) - 1)]
        if isinstance(value, dict):
            value = list(value.values())[min(int(index or 0), len(value) - 1)]
        if value is not None:
            return int(value)
    raise LookupError(spec)


def _tokens(config: Any, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Token ids that are no special token of the text, nor one that stands for a picture or a sound."""
    sizes = [v for c in (text_config(config), *parts(config)) if isinstance(v := getattr(c, "vocab_size", None), int)]
    size = sizes[0] if sizes else 61
    held = {v for n, v in vars(config).items() if re.fullmatch(r".*token_(id|index)", n) and isinstance(v, int)}
    free = torch.tensor([i for i in range(min(3, size - 1), size) if i not in held])
    return free[torch.randint(len(free), shape, generator=generator)]


# ---------------------------------------------------------------- pictures and sounds in the text

MEDIA = {"image": ("pixel_values",), "audio": ("input_features", "input_values")}


def _with_places(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """In front of the text, as many image (or audio) tokens as the model makes of the pictures, where it wants them there."""
    config: Any = model.config
    for kind, names in MEDIA.items():
        place = getattr(config, f"{kind}_token_id", None) or getattr(config, f"{kind}_token_index", None)
        if place is None or "input_ids" not in inputs or not any(n in inputs for n in names):
            continue
        ids = inputs["input_ids"]
        count = _features(model, inputs, kind) // len(ids)
        inputs["input_ids"] = torch.cat([torch.full_like(ids[:, :1], place).repeat(1, count), ids], dim=1)
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == place).long()
    return inputs


def _features(model: nn.Module, inputs: dict[str, Any], kind: str) -> int:
    """How many vectors the model puts in the places of all pictures (or sounds) together."""
    make = next(
        (f for m in (model, getattr(model, "model", None)) if (f := getattr(m, f"get_{kind}_features", None))), None
    )
    if make is None:
        return 0  # the text looks at them by cross-attention
    taken = inspect.signature(make).parameters
    with torch.no_grad():
        made = make(**{name: value for name, value in inputs.items() if name in taken})
    made = made if isinstance(made, (Tensor, tuple, list)) else made.pooler_output
    return sum(t.numel() // t.shape[-1] for t in ([made] if isinstance(made, Tensor) else made))


# ---------------------------------------------------------------- models that say nothing of themselves


def _like(model: nn.Module, batch: int, length: int, generator: torch.Generator) -> dict[str, Any]:
    """Random inputs of the example's kinds and value ranges; without one, token ids that every table of the model has."""
    sizes = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    ids = torch.tensor([[min([*sizes, getattr(getattr(model, "cfg", None), "d_vocab", 3)]) - 1]])
    inputs: dict[str, Any] = {}
    for name, value in EXAMPLES.get(model, {first_name(model): ids}).items():
        if not isinstance(value, Tensor) or value.dtype == torch.bool:
            inputs[name] = value
        elif value.is_floating_point():
            dtype = dtype_of(model)
            inputs[name] = torch.randn(batch, *value.shape[1:], generator=generator).to(value.device, dtype)
        else:
            shape = (batch, length) if value.ndim == 2 else (batch, *value.shape[1:])
            inputs[name] = torch.randint(int(value.max()) + 1, shape, generator=generator).to(value.device)
    return inputs
