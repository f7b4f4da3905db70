"""The hidden neurons of a mixture of experts, and the scores by which its router picks them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from interp.model.trace import Call

NEEDED = ("has_gate", "is_transposed", "has_bias", "down_proj")  # what transformers gives every such module


def routing(args: Any, kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """What such a module receives: (x [token, d_model], chosen experts [token, top_k], their weights [token, top_k])."""
    given = [t for t in [*args, *kwargs.values()] if isinstance(t, Tensor)]
    index = next(t for t in given if not t.is_floating_point())
    x, weights = (t for t in given if t.is_floating_point())
    return x, index, weights


def hidden(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> Float[Tensor, "token top_k d_expert"] | None:
    """post = what the down projection of each chosen expert reads, before the routing weight; None if the module is unlike others.

    One product per expert, over the tokens it is given: the work of the module's own pass.
    """
    if not all(hasattr(module, name) for name in NEEDED) or getattr(module, "has_post_expert_norm", False):
        return None
    x, index, _ = routing(args, kwargs)
    kind: Any = module
    first = kind.gate_up_proj if kind.has_gate else kind.up_proj
    bias = (kind.gate_up_proj_bias if kind.has_gate else kind.up_proj_bias) if kind.has_bias else None
    activate = kind._apply_gate if kind.has_gate else kind.act_fn
    parts: list[tuple[Tensor, Tensor]] = []
    for expert in index.unique().tolist():
        if expert < first.shape[0]:
            here = (index == expert).nonzero()
            matrix = first[expert] if kind.is_transposed else first[expert].T
            pre = x[here[:, 0]] @ matrix + (0.0 if bias is None else bias[expert])
            parts.append((here, activate(pre)))
    where, values = torch.cat([h for h, _ in parts]), torch.cat([v for _, v in parts])
    post = values.new_zeros(*index.shape, values.shape[-1])
    return post.index_put((where[:, 0], where[:, 1]), values)


def effect(
    module: nn.Module, index: Int[Tensor, "token top_k"], weights: Tensor, change: Float[Tensor, "token top_k d_expert"]
) -> Float[Tensor, "token d_model"]:
    """Σ_k weight_k · change_k W_down[expert_k]: what a change of the hidden neurons adds to the module's output."""
    kind: Any = module
    made = change.new_zeros(*index.shape, kind.down_proj.shape[-1 if kind.is_transposed else -2])
    for expert in index.unique().tolist():
        if expert < kind.down_proj.shape[0]:
            here = (index == expert).nonzero(as_tuple=True)
            matrix = kind.down_proj[expert] if kind.is_transposed else kind.down_proj[expert].T
            made = made.index_put(here, change[here] @ matrix)
    return (made * weights[..., None]).sum(1)


class Scores(TorchFunctionMode):
    """Calls `visit(number, tensor)` for every result with one entry an expert [..., expert], and goes on with its answer."""

    def __init__(self, experts: int, visit: Callable[[int, Tensor], Tensor]) -> None:
        super().__init__()
        self.experts, self.visit, self.seen = experts, visit, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        if not isinstance(out, Tensor) or not out.is_floating_point() or out.shape[-1:] != (self.experts,):
            return out
        self.seen += 1
        return self.visit(self.seen - 1, out)


@torch.no_grad()
def scored(call: Call, scores: Tensor) -> int | None:
    """Which of the results inside a router that itself picks the experts is `scores`: its first; None for other routers.

    Such a router returns what it picked, and nobody reads the scores it returns beside that.
    """
    results: list[Tensor] = []
    with Scores(scores.shape[-1], lambda number, t: results.append(t.clone()) or t):  # type: ignore[func-returns-value]
        out = call.module.forward(*call.args, **call.kwargs)
    picks = isinstance(out, (tuple, list)) and any(isinstance(t, Tensor) and t.dtype == torch.int64 for t in out)
    equal = [
        i for i, t in enumerate(results) if t.numel() == scores.numel() and torch.equal(t.flatten(), scores.flatten())
    ]
    return equal[0] if picks and equal else None
