"""What has to be known of a live module before it is run: compiled, quantised, deaf to masks."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from interp.errors import Failed, WrongUse, check_keys

if TYPE_CHECKING:
    from interp.model.model import Model


def uncompiled(module: nn.Module) -> nn.Module:
    """The module without compiled parts, with a notice: hooks added after compilation never fire.

    Parts that hold a compiled one are copied shallowly (the parameters are shared), so the module given stays compiled.
    """
    found: list[str] = []
    plain = _plain(module, "", {}, found)
    if found:
        warnings.warn(
            f"compiled modules are run uncompiled here, since hooks do not fire in them: {', '.join(found[:5])}"
            f"{' …' * (len(found) > 5)}. The model you passed stays compiled.",
            stacklevel=4,
        )
    return plain


def _plain(module: nn.Module, path: str, done: dict[int, nn.Module], found: list[str]) -> nn.Module:
    if id(module) in done:
        return done[id(module)]
    inner = module._modules.get("_orig_mod")
    compiled = inner is not None or getattr(module, "_compiled_call_impl", None) is not None
    if compiled:
        found.append(path or "the model")
    old = module if inner is None else inner
    children = {
        name: _plain(child, f"{path}.{name}".strip("."), done, found)
        for name, child in old._modules.items()
        if child is not None
    }
    new = old
    if (compiled and inner is None) or any(child is not old._modules[name] for name, child in children.items()):
        new = copy.copy(old)  # leaves a compiled call behind
        new._modules = {**old._modules, **children}
    done[id(module)] = done[id(old)] = new
    return new


PACKED = {torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4}


def quantised(module: nn.Module) -> str:
    """What says that a model is quantised: a parameter of whole numbers, packed weights, or its config; "" if nothing does."""
    for name, p in module.named_parameters():
        if not (p.is_floating_point() or p.is_complex()):
            return f"parameter {name!r} holds {p.dtype}"
    for name, part in module.named_modules():
        if part.__dict__.get("dtype") in PACKED:
            return f"{name!r} holds {part.dtype}"
    config = getattr(getattr(module, "config", None), "quantization_config", None)
    return "" if config is None else "its config has a quantization_config"


def check_differentiable(module: nn.Module) -> None:
    """Raise `WrongUse` for a quantised model: its products have no gradients to rely on."""
    why = quantised(module)
    if why:
        raise WrongUse(
            f"gradients were asked for, but {type(module).__name__} is quantised ({why}): load the model in float32 or "
            "bfloat16, or leave out grad=."
        )


def check_mask(model: Model) -> None:
    """Raise `WrongUse` if the architecture would ignore an attention mask, so that padding would be read as text.

    Decided by the forward's signature, and for text models by running a float64 twin: a prompt in a padded batch must
    get what it gets alone.
    """
    known = accepted(model.module)
    if "attention_mask" not in known and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        raise _ignored(model, "its forward takes no attention_mask")
    error = model._padding_error
    if error is not None and not error <= 1e-8:
        raise _ignored(model, f"a prompt in a padded batch is off by {error:.1e} on its float64 twin")


def _ignored(model: Model, why: str) -> WrongUse:
    return WrongUse(
        f"{model.id} would ignore the attention mask of this padded batch ({why}): give prompts of one length, or one at a time."
    )


def right_padding_error(model: Model) -> float | None:
    """`padding_error` on the right, on the twin of a model that reads one text; None where there is no such twin."""
    from interp.model.model import Model
    from interp.model.proof import padding_error
    from interp.model.twin import Lifted, twin_of

    module = model.module
    if getattr(module, "main_input_name", "") != "input_ids" or getattr(model.config, "is_encoder_decoder", False):
        return None
    try:
        twin = twin_of(module)
    except Failed:
        return None  # no small copy can be built: the signature has to do
    with Lifted():
        return padding_error(Model(twin), left=False)


def check_options(module: nn.Module, options: Iterable[str]) -> None:
    """Raise `WrongUse` for an option that neither `generate`, its configuration nor the model's forward knows."""
    from transformers import GenerationConfig

    if not hasattr(module, "generate"):
        raise WrongUse(
            f"{type(module).__name__} cannot generate: it has no generate(). Load a model with a language head."
        )
    known = {*GenerationConfig().to_dict(), *inspect.signature(module.forward).parameters}
    known |= set(inspect.signature(module.generate).parameters)  # type: ignore[arg-type]
    check_keys(options, known - {"self", "kwargs", "args", "inputs"}, "generate()")


def main_inputs(module: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a single pass: no cache is built that nobody will read."""
    if "use_cache" in inputs or "past_key_values" in inputs or "use_cache" not in accepted(module):
        return inputs
    return inputs | {"use_cache": False}


def accepted(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    """The parameters of a module's forward, as its class has it unless the module has one of its own."""
    return (
        inspect.signature(module.forward).parameters
        if "forward" in vars(module)
        else signature(type(module).forward).parameters
    )


@cache
def signature(forward: Callable[..., Any]) -> inspect.Signature:
    """The signature of a class's forward, `self` first, looked at once."""
    return inspect.signature(forward)
