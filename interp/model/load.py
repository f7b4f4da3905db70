"""`interp.load`: one call for a hub id, a folder, a live model, or a model of the zoo."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interp.errors import Failed, WrongUse, nearest
from interp.model.inputs import EXAMPLES, first_name
from interp.model.model import Model, teaches


@teaches
def load(
    source: str | Path | nn.Module | Model,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    tokenizer: Any = None,
    example: Any = None,
) -> Model:
    """Wrap a model: `"zoo:books"`, a local folder, a hub id (`"owner/name"`), or any live `nn.Module`.

    `dtype` defaults to the checkpoint's; on a CPU, 16-bit weights are widened to float32, which is exact. A live model
    keeps its mode, dtype, config and requires_grad; `device` and `dtype` must be left out for it. `example` is an input
    of a live model (a tensor, or a dict of its arguments) whose kind cannot be told from it: its sites are solved and
    proven on random inputs like it. By default it is the module's own attribute `example`, if it has one. A folder whose
    config has `interp_model` is opened by the entry point of that name in the group `interp.models`. Raises `WrongUse` for
    a name that is none of these, `Failed` for a folder whose checkpoint is missing, cut, or does not fit its config (the
    tensors are named).
    """
    if isinstance(source, Model):
        return source
    if isinstance(source, nn.Module):
        if device is not None or dtype is not None:
            raise WrongUse(
                "a live model is taken as it is: move or cast it yourself, then load it without device and dtype."
            )
        model = Model(source, tokenizer)
        own = getattr(source, "example", None)
        if example is None and isinstance(own, (dict, Tensor)):
            example = own
        if example is not None:
            name = first_name(model.module)
            EXAMPLES[model.module] = {name: example} if isinstance(example, Tensor) else dict(example)
        return model
    name = str(source)
    folder = _folder(name)
    if folder is not None and (own := _own(folder)) is not None:
        own.id = name
        own.module.to(torch.device(device or "cpu"))
        if isinstance(chosen := _dtype(dtype), torch.dtype):
            own.module.to(chosen)
        return own
    module = _pretrained(str(folder or name), name, _dtype(dtype))
    module.eval()
    where = torch.device(device or "cpu")
    if dtype is None and where.type == "cpu" and next(module.parameters()).dtype in (torch.bfloat16, torch.float16):
        module.float()  # exact, and far faster on CPUs that emulate 16-bit arithmetic
    module.to(where)
    return Model(module, tokenizer or _tokenizer(str(folder or name)), id=name)


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | str:
    if dtype is None:
        return "auto"
    if isinstance(dtype, torch.dtype):
        return dtype
    known = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise WrongUse(f"dtype {dtype!r} is unknown.{nearest(dtype, known)} Use one of {', '.join(known)}.")
    return known[dtype]


def _folder(name: str) -> Path | None:
    """The folder a name means, checked to hold a checkpoint; None for a hub id."""
    if name.startswith("zoo:"):
        from interp.zoo import path

        return path(name.removeprefix("zoo:"))
    folder = Path(name).expanduser()
    if not folder.exists():
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise WrongUse(
                f"there is no folder {name!r}. Give a folder with config.json and weights, 'zoo:books', or a hub id."
            )
        return None
    if not (folder / "config.json").exists():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "a file"
        raise WrongUse(f"{folder} is no checkpoint: it has no config.json (it holds: {found or 'nothing'}).")
    return folder


def _own(folder: Path) -> Model | None:
    """The model of a folder that a room above this one has written."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("interp_model")
    except (ValueError, AttributeError):
        return None  # said where the config is read
    if kind is None:
        return None
    known = {entry.name: entry for entry in entry_points(group="interp.models")}
    if kind not in known:
        raise WrongUse(
            f"{folder} holds a model of the kind {kind!r}, and nothing installed opens it.{nearest(kind, known)}"
        )
    return known[kind].load()(folder)


def _model_class(config: Any) -> Any:
    """The class named in the config's architectures, else the auto class that takes the config."""
    import transformers

    for name in config.architectures or []:
        if hasattr(transformers, name):
            return getattr(transformers, name)
    return (
        transformers.AutoModelForCausalLM
        if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
        else transformers.AutoModel
    )


def _pretrained(where: str, name: str, dtype: torch.dtype | str) -> nn.Module:
    from safetensors import SafetensorError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(where)
        module, report = _model_class(config).from_pretrained(
            where,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    except SafetensorError as error:
        raise Failed(f"the weights of {name!r} are cut or no safetensors file: {error}.") from error
    except (OSError, ValueError, RuntimeError, json.JSONDecodeError) as error:
        first = str(error).splitlines()[0]
        raise Failed(
            f"{name!r} could not be loaded: {first} (known: a folder with config.json, 'zoo:books', a hub id)."
        ) from error
    bad = {kind: sorted(report.get(kind) or ()) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(bad.values()):
        told = "; ".join(
            f"{kind.split('_')[0]}: {', '.join(map(str, keys[:5]))}{' …' * (len(keys) > 5)}"
            for kind, keys in bad.items()
            if keys
        )
        raise Failed(
            f"the weights of {name!r} do not fit its config ({told}). Fix the checkpoint, or load it yourself and pass the live model."
        )
    return module


def _tokenizer(where: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(where)
    except (OSError, ValueError, KeyError):
        return None  # a model of pictures or sound, or a bare checkpoint: ids and tensors are still welcome


def tokenizer_of(source: str) -> Any:
    """The tokenizer of a model by name, without its weights; a folder needs to hold no more than a tokenizer.

    Raises `WrongUse` where there is none.
    """
    folder = Path(source).expanduser()
    where = str(folder if folder.is_dir() else _folder(source) or source)
    if (folder / "merges.txt").is_file() and not (
        folder / "tokenizer.json"
    ).is_file():  # byte-level BPE as GPT-2's ships
        from transformers import GPT2Tokenizer

        return GPT2Tokenizer.from_pretrained(where)
    found = _tokenizer(where)
    if found is None:
        raise WrongUse(f"{source!r} has no tokenizer: give zoo:books, a folder with tokenizer.json, or a hub id.")
    return found
