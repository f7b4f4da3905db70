"""A tiny random model of any type transformers knows: its own config class, every size cut by the rules of the data table."""

from __future__ import annotations

import copy
import importlib
import re
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from interp.errors import Failed, WrongUse, nearest
from interp.model.twin import names, randomise

LAYERS = 3
LARGE = 10_000_000


def model_types() -> list[str]:
    """Every model type of transformers' auto mappings."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return list(CONFIG_MAPPING_NAMES)


def config_class(kind: str) -> Any:
    """The config class of a model type. Raises `WrongUse` for a type that transformers does not know."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if kind not in model_types():
        raise WrongUse(f"transformers knows no model type {kind!r}.{nearest(kind, model_types())}")
    return CONFIG_MAPPING[kind]


def model_classes(kind: str) -> Iterator[Any]:
    """The classes that can be built from a type's config, those with a head first, in the order of the data table."""
    import transformers
    from transformers.models.auto import modeling_auto

    seen: set[str] = set()
    for mapping in names()["heads"]:
        given = getattr(modeling_auto, f"MODEL_{mapping}MAPPING_NAMES", {}).get(kind, ())
        for name in (given,) if isinstance(given, str) else given:
            if name not in seen:
                seen.add(name)
                yield getattr(transformers, name)
    if not seen:
        yield from _parts(config_class(kind))


def _parts(config: Any) -> list[Any]:
    """Model classes of a config that stands in no auto mapping: a part of other models, defined beside them."""
    from transformers import PreTrainedModel

    modeling = importlib.import_module(config.__module__.replace(".configuration_", ".modeling_"))
    found = [c for c in vars(modeling).values() if isinstance(c, type) and issubclass(c, PreTrainedModel)]
    return [c for c in found if c.config_class is config and c.__module__ == modeling.__name__ and "forward" in vars(c)]


def cut(name: str, value: Any) -> Any:
    """A config field's value, cut to the size that the first fitting rule of the data table gives; others as they are."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    listed = isinstance(value, (list, tuple)) and value and all(type(v) is int for v in value)
    if not whole and not listed:
        return value
    for pattern, size in names()["tiny"]:
        if re.fullmatch(pattern, name):
            if whole:
                return min(value, size)
            return type(value)(size * v // value[0] if max(value) > size else v for v in value)
    return value


def fields(config: Any) -> dict[str, Any]:
    """The fields of a config that its class takes and that say something: what is derived from others is left out."""
    taken = {**getattr(type(config), "__dataclass_fields__", {})}
    return {k: v for k, v in vars(config).items() if k in taken and not k.startswith("_")}


def tiny_config(config: Any, layers: int = LAYERS) -> Any:
    """A new config of the same class: sizes cut, sub-configs likewise, `layers` layers, one of each kind if it names kinds."""
    from transformers import PretrainedConfig

    kind, given = type(config), fields(config)
    changes: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, PretrainedConfig):
            changes[name] = tiny_config(value, layers)
        else:
            new = cut(name, value)
            if new is not value and new != value:
                changes[name] = new
    heads, kv = given.get("num_attention_heads"), given.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(kv, int):
        changes["num_key_value_heads"] = 4 if kv == heads else 1 if kv == 1 else 2
    kinds = given.get("layer_types")
    if isinstance(kinds, (list, tuple)) and kinds:
        distinct = list(dict.fromkeys(kinds))
        chosen = (distinct + list(kinds))[: max(layers, len(distinct))]
        changes |= {"num_hidden_layers": len(chosen), "layer_types": chosen}
    token = iter(range(names()["tokens"] - 1, 2, -1))
    for name, value in given.items():
        if re.fullmatch(r".*token_(id|index)", name) and isinstance(value, int) and value >= 3:
            changes[name] = next(token)
    changes |= names()["types"].get(getattr(config, "model_type", ""), {})
    return kind(**changes)


def check_size(build: Any, config: Any) -> None:
    """Raise `Failed` if the model would be large. Models that cannot be built without memory pass."""
    try:
        with torch.device("meta"):
            size = sum(p.numel() for p in build(copy.deepcopy(config)).parameters())
    except Exception:
        return
    if size > LARGE:
        raise Failed(f"{build.__name__} would still have {size / 1e6:.0f} million parameters")


def tiny(kind: str, seed: int = 0) -> nn.Module:
    """A random float32 model of a type, in evaluation mode. Raises what its config or model class raises."""
    errors = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = tiny_config(config_class(kind)())
        for build in model_classes(kind):
            try:
                torch.manual_seed(seed)
                check_size(build, config)
                model = build(config).eval()
            except Exception as error:
                errors.append(error)
                continue
            randomise(model, seed)
            return model
    raise errors[0] if errors else WrongUse(f"transformers has no model for {kind!r} alone: it is a part of others")
