"""A small random float64 model of the same config: wirings are solved on it, and proofs run on it.

Every parameter is drawn away from its default: with unit norms and zero biases a missed bias proves nothing.
"""

from __future__ import annotations

import copy
import json
import warnings
from functools import cache
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from interp.errors import Failed
from interp.model.inputs import EXAMPLES, parts
from interp.model.live import quantised


class Lifted(TorchFunctionMode):
    """Float64 stays float64: what a model casts to float32 for stability (norms, softmax, the stream) is not cast.

    Tensors that a model makes of Python numbers are float64 too.
    """

    def __enter__(self) -> Any:
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        torch.set_default_dtype(self.before)
        return super().__exit__(*error)

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


def shrunk(config: Any) -> Any:
    """A copy of the config with few heads and channels and all layers; ratios of heads to kv heads are kept in kind."""
    config = copy.deepcopy(config)
    vars(config).pop("quantization_config", None)
    for part in parts(config):
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
    """Matrices to N(0, 1.5² / fan-in), embeddings to N(0, 1), norm weights to N(1, .2²), the rest moved by N(0, .3²).

    What has more axes and a spread is moved by N(0, .3²) of that spread; buffers of zeros that are saved (biases that
    routers learn outside the gradient) count as parameters.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor, scale: float) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like) * scale

    seen: set[int] = set()
    for module in model.modules():
        for name, p in [*module.named_parameters(recurse=False), *_zeros_kept(module)]:
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
                p.add_(normal(p, 0.3 * (float(p.std()) if p.numel() > 1 else 1.0) or 0.3))


def _zeros_kept(module: nn.Module) -> list[tuple[str, Tensor]]:
    """A module's saved vectors of zeros that are no parameters."""
    held = [(n, b) for n, b in module.named_buffers(recurse=False) if n not in module._non_persistent_buffers_set]
    return [(n, b) for n, b in held if b.ndim == 1 and b.is_floating_point() and bool((b == 0).all())]


def twin_of(model: nn.Module, seed: int = 0) -> nn.Module:
    """A random float64 CPU model of the same kind: a copy if the model is small, else one built from a shrunk config.

    What is quantised is not copied: the twin of the config has plain matrices. Raises `Failed` if the model is large or
    quantised and has no config a small one can be built from.
    """
    small = sum(p.numel() for p in model.parameters()) <= SMALL and not any(p.is_meta for p in model.parameters())
    if small and not quantised(model):
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
    held: list[Any] = [getattr(m, name, None) for m in twin.modules() for name in ("config", "cfg")]
    for config in {id(c): c for c in held if hasattr(c, "__dict__")}.values():
        config._experts_implementation = "eager"  # grouped products of experts know no float64
        if isinstance(getattr(config, "dtype", None), torch.dtype):
            config.dtype = torch.float64
    randomise(twin, seed)
    return twin
