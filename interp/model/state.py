"""The state of a recurrent mixer (state-space, linear attention): what its cache holds after each token.

h_t is had by running the mixer's own forward one token at a time, as generation does; nothing of the recurrence is known
here. An edit of h_t therefore reaches every later token, and not what the mixer returns at t itself.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.model.trace import Call, Key, replace_in

if TYPE_CHECKING:
    from jaxtyping import Float


CACHE, MASK = "cache_params", "attention_mask"  # what transformers' recurrent mixers call them
CLOSE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
}  # sums in another order; in 16 bits the state is rounded at every step


def stepped(
    mixer: Any,
    key: Key,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    cache: Any,
    change: Callable[..., Tensor] | None = None,
) -> tuple[Float[Tensor, "batch pos d_model"], Float[Tensor, "batch pos ..."]]:
    """A mixer's call made one token at a time with `cache`: (what it returns, its state after each token).

    `change(t, states)`, with states [batch, pos, ...] up to t, says what to go on with in place of h_t.
    """
    layer, given = cache.layers[mixer.layer_idx], args if isinstance(key, int) else kwargs
    x, mask = given[key], kwargs.get(MASK)  # type: ignore[index]
    outputs, states = [], torch.empty(0)
    for t in range(x.shape[1]):
        own = {CACHE: cache, MASK: None if mask is None else mask[:, t - x.shape[1]][:, None]}
        now = replace_in(copy.copy(given), key, x[:, t : t + 1])
        outputs.append(mixer.forward(*now, **kwargs | own) if given is args else mixer.forward(*args, **now | own))
        h = layer.recurrent_states[0]
        states = states if t else h.new_zeros(h.shape[0], x.shape[1], *h.shape[1:])
        states[:, t] = h
        if change is not None:
            states[:, t] = h.copy_(change(t, states))
    return torch.cat(outputs, dim=1), states


def beside(cache: Any, config: Any, index: int) -> Any:
    """A cache for one layer's steps that leaves the given one as it is; a fresh one if none is given."""
    from transformers import DynamicCache

    if cache is None:
        return DynamicCache(config=config)
    copied = copy.copy(cache)
    copied.layers = [_apart(layer) if i == index else layer for i, layer in enumerate(cache.layers)]
    return copied


def _apart(layer: Any) -> Any:
    """A cache's layer with states of its own."""
    copied = copy.copy(layer)
    for name, table in vars(layer).items():
        if isinstance(table, dict):
            setattr(copied, name, {k: v.clone() if isinstance(v, Tensor) else v for k, v in table.items()})
    return copied


@torch.no_grad()
def state_shape(call: Call, key: Key, config: Any) -> tuple[int, ...] | str:
    """The shape of a mixer's state after one token [...], or why it has none.

    Token by token, the last state and the output must come out as they do from all tokens at once.
    """
    mixer: Any = call.module
    if not hasattr(mixer, "layer_idx") or CACHE not in inspect.signature(mixer.forward).parameters:
        return "the mixer takes no cache of transformers' kind, which would hold its state"
    one, many = (beside(None, config, mixer.layer_idx) for _ in range(2))
    try:
        mixer.forward(*call.args, **call.kwargs | {CACHE: many})
        out, states = stepped(mixer, key, call.args, call.kwargs, one)
        last = many.layers[mixer.layer_idx].recurrent_states[0]
    except (LookupError, ValueError, RuntimeError, TypeError, AttributeError) as failed:
        return f"the mixer cannot be run token by token with a cache ({type(failed).__name__}: {failed})"
    error = max(_off(states[:, -1], last), _off(out, call.out))  # type: ignore[arg-type]
    if error > CLOSE.get(out.dtype, 5e-2):
        return f"token by token the mixer is off by {error:.1e} from all tokens at once"
    return tuple(last.shape[1:])


def _off(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())
