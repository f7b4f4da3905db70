"""A tiny random model of any type transformers knows: its own config class, every size cut by the rules of the data table.

Of `table.json`: `tiny` are the rules by field name, `unset` what a field gets that is None or empty by default, `special`
names the token ids, `depth` the numbers of layers, `indices` the lists of layers' indices, `instead` configs put in place of
those whose models need a package of their own, `types` what one type needs after the cut (of its parts, too).
"""

from __future__ import annotations

import copy
import importlib
import pkgutil
import re
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import nn

from interp.errors import Failed, WrongUse, nearest
from interp.model.twin import names, randomise

LAYERS = 3
LARGE = 10_000_000
KINDS = 4  # a list with more values than these does not say of what kind a layer is
FREE = 32  # token ids below are as they were


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
    """The classes that are built from a type's config, those with a head first, in the order of the data table."""
    import transformers
    from transformers.models.auto import modeling_auto

    config, seen = config_class(kind), set()
    parts = {getattr(v, "__class__", None) for v in fields(config()).values()}
    for mapping in names()["heads"]:
        given = getattr(modeling_auto, f"MODEL_{mapping}MAPPING_NAMES", {}).get(kind, ())
        for name in (given,) if isinstance(given, str) else given:
            build = getattr(transformers, name, None)
            if build and build not in seen and build.config_class not in parts:
                seen.add(build)
                yield build
    if not seen:
        yield from _written_for(config)


def _written_for(config: Any) -> Iterator[Any]:
    """The model classes of a config that stands in no auto mapping: a part of other models, in the modules beside it."""
    from transformers import PreTrainedModel

    package = importlib.import_module(config.__module__.rpartition(".")[0])
    for found in pkgutil.iter_modules(package.__path__):
        if found.name.startswith("modeling_"):
            for c in vars(importlib.import_module(f"{package.__name__}.{found.name}")).values():
                model = isinstance(c, type) and issubclass(c, PreTrainedModel) and c.config_class is config
                if model and "forward" in vars(c):
                    yield c


def fields(config: Any) -> dict[str, Any]:
    """What a config was given, by the names its class takes it by: what the class derives from the rest is left out."""
    kind: Any = type(config)
    held, other = vars(config), getattr(kind, "attribute_map", {})
    stored = {k: other.get(k, k) for k in getattr(kind, "__dataclass_fields__", {}) if not k.startswith("_")}
    given = {k: held[v] for k, v in stored.items() if v in held}
    usual = _usual(kind) or held
    more = {k: v for k, v in held.items() if k not in usual and k not in stored.values() and not k.startswith("_")}
    return given | more | ({"out_indices": list(config.out_indices)} if "_out_indices" in held else {})


@cache
def _usual(kind: Any) -> dict[str, Any]:
    """What a config of the class holds by default; nothing, if the class knows no default that holds."""
    try:
        config = kind()
    except Exception:
        return {}
    return vars(config) | ({"out_indices": list(config.out_indices)} if "_out_indices" in vars(config) else {})


def cut(name: str, value: Any) -> Any:
    """A config field's value, cut by the first fitting rule of the data table: at most its size.

    Lists: `scale` cuts the least entry to the size and keeps the others' ratios to it, in quarters of the size; `each` cuts
    every entry; `divide` divides them (lists alone), so that those of several parts stay in step; `first` keeps as many
    entries, for another rule to cut.
    """
    listed = isinstance(value, (list, tuple))
    if not listed and not _whole(value):
        return value
    for pattern, size, *given in names()["tiny"]:
        how = given[0] if given else "scale"
        if re.fullmatch(pattern, name):
            if how == "first":
                value = value[:size] if listed else value
            elif listed or how != "divide":
                return _cut_list(value, size, how) if listed else min(value, size)
    return value


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _cut_list(values: Any, size: int, how: str) -> Any:
    if not values or not all(_whole(v) for v in values) or max(values) <= size:
        return values
    least, unit = min(values), max(size // 4, 1)
    new = {
        "each": lambda v: min(v, size),
        "divide": lambda v: max(v // size, min(v, unit * 2)),
        "scale": lambda v: unit * max(round(size * v / least / unit), 1) if least > 0 else v,
    }[how]
    return type(values)(new(v) for v in values)


def kept_layers(given: dict[str, Any], layers: int, own: dict[int, Any]) -> dict[str, Any]:
    """What a config says layer by layer, for so many of its layers: the first of each kind, then the first of all.

    Lists with an entry a layer (kinds, if they hold few values), lists of layers' indices (by name) and what layers have of
    their `own` are cut alike.
    """
    lists = {k: v for k, v in given.items() if isinstance(v, (list, tuple)) and v}
    name = next((n for n in names()["depth"] if _whole(given.get(n)) or isinstance(lists.get(n, [0])[0], str)), None)
    if name is None:
        return {}
    depth = len(lists[name]) if name in lists else given[name]
    index = {k: v for k, v in lists.items() if re.fullmatch(names()["indices"], k)}
    each = {k: v for k, v in lists.items() if len(v) == depth and k not in index}
    kinds = [[repr(e) for e in v] for v in each.values()] + [
        [str(i in v) for i in range(depth)] for v in index.values()
    ]
    kinds.append([repr(own.get(i)) for i in range(depth)])
    chosen = _chosen([k for k in kinds if len(set(k)) <= KINDS], max(layers, len(given.get("out_indices", ()))))
    new = {k: cut(k, type(v)(v[i] for i in chosen)) for k, v in each.items()}
    new |= {k: type(v)(n for n, i in enumerate(chosen) if i in v) for k, v in index.items()}
    if own:
        new["per_layer_config"] = {n: _own(given, own[i]) for n, i in enumerate(chosen) if i in own}
    if "out_indices" in given:
        new["out_indices"] = list(range(len(chosen) + 1))[-len(given["out_indices"]) :]
    return new if name in lists else new | {name: len(chosen)}


def _chosen(kinds: list[list[str]], layers: int) -> list[int]:
    """The first layer of each kind (each list says something of every layer), then the first others, in their order."""
    said = list(zip(*kinds, strict=True))
    first = [said.index(kind) for kind in dict.fromkeys(said)]
    return sorted([*first, *(i for i in range(len(said)) if i not in first)][: max(layers, len(first))])


def _own(given: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """What one layer has of its own: sizes in their ratios to what all layers have."""
    return {
        k: max(cut(k, given[k]) * v // given[k], 1) if _whole(v) and _whole(given.get(k)) else cut(k, v)
        for k, v in own.items()
    }


def special(value: Any, ids: dict[int, int]) -> Any:
    """A special token's id, or a list of them, in the cut vocabulary, from its end; `ids` holds what became of which."""
    if isinstance(value, (list, tuple)):
        return type(value)(special(v, ids) for v in value)
    if not _whole(value) or value < FREE:
        return value
    return ids.setdefault(value, names()["tokens"] - 1 - len(ids))


def sections(rope: dict[str, Any], pairs: int) -> dict[str, Any]:
    """A rope's parameters with its sections (of time, height, width) in the same ratios for so many pairs of dims."""
    if "rope_theta" not in rope:  # one rope a kind of layers
        return {k: sections(v, pairs) if isinstance(v, dict) else v for k, v in rope.items()}
    ratios = rope.get("mrope_section") or [1, 1, 1]
    ends = [pairs * sum(ratios[: i + 1]) // sum(ratios) for i in range(len(ratios))]
    return rope | {"mrope_section": [b - a for a, b in zip([0, *ends], ends, strict=False)]}


def instead(config: Any) -> Any:
    """The config, or if its models need a package of their own, one that the data table gives for it."""
    row = names()["instead"].get(getattr(config, "model_type", ""))
    if row is None:
        return config
    return config_class(row["model_type"])(**{k: v for k, v in row.items() if k != "model_type"})


def tiny_config(config: Any, layers: int = LAYERS, ids: dict[int, int] | None = None, row: Any = None) -> Any:
    """A new config of the same class, by the data table: sizes cut, sub-configs likewise, `layers` layers of every kind.

    A `row` holds what the table says of this type (or of this part of a type) alone.
    """
    from transformers import PretrainedConfig

    ids = {} if ids is None else ids
    row = {**names()["types"].get(getattr(config, "model_type", ""), {}), **(row or {})}
    given, changes = fields(config), {}
    for name, value in given.items():
        if isinstance(value, PretrainedConfig):
            changes[name] = tiny_config(instead(value), layers, ids, row.pop(name, None))
        elif value in (None, []):
            changes[name] = next((v for pattern, v in names()["unset"] if re.fullmatch(pattern, name)), value)
        elif re.fullmatch(names()["special"], name):
            changes[name] = special(value, ids)
        else:
            changes[name] = cut(name, value)
    own = config.to_dict().get("per_layer_config") or {}
    changes |= kept_layers(given, layers, {int(layer): v for layer, v in own.items()})
    if "mrope_section" in (getattr(config, "ignore_keys_at_rope_validation", None) or ()):
        changes |= _with_sections(changes)
    if given.get("kv_lora_rank"):  # keys and values of all heads are made of one latent
        changes["num_key_value_heads"] = changes["num_attention_heads"]
    kind: Any = type(config)
    usual, said, missing = _usual(kind), changes | row, object()
    return kind(**{k: v for k, v in said.items() if isinstance(v, PretrainedConfig) or v != usual.get(k, missing)})


def _with_sections(changes: dict[str, Any]) -> dict[str, Any]:
    """A rope of sections: where it turns only a part of a head, heads of 16 of which it turns half, so that all have dims."""
    rope = changes["rope_parameters"]
    if rope.get("partial_rotary_factor", 1) < 1:
        return {"rope_parameters": sections(rope | {"partial_rotary_factor": 0.5}, 4), "head_dim": 16}
    dims = changes.get("head_dim") or changes["hidden_size"] // changes["num_attention_heads"]
    return {"rope_parameters": sections(rope, dims // 2)}


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
