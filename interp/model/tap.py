"""Attention seen where it happens: softmax, fused attention and the products around them.

A torch-function mode watches the operations a module runs. The model's attention setting is never changed; while
nothing is edited, every operation runs as the model asked for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from interp.kernels.attention_statistics import attention_statistics, of_pattern

SOFTMAX = {F.softmax, torch.softmax, torch.Tensor.softmax, torch.special.softmax}
PRODUCT = {torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.Tensor.bmm}
ADDED_PRODUCT = {torch.baddbmm, torch.Tensor.baddbmm}  # bias first, then the operands
FUSED = {F.scaled_dot_product_attention, F.multi_head_attention_forward}
WATCHED = {*FUSED, torch.einsum, *SOFTMAX, *PRODUCT, *ADDED_PRODUCT}
LAYERS = {F.linear, F.conv1d, F.conv2d, F.conv3d, F.embedding, F.layer_norm}
OPERANDS = {"input": 0, "self": 0, "other": 1, "mat2": 1}, {"input": 0, "self": 0, "batch1": 1, "batch2": 2}
# The same code, that does not hand itself to the mode again: so the mode sees what it does.
_OPEN = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**F.multi_head_attention_forward.__globals__, "has_torch_function": lambda _: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)
INNER = ("q", "k", "v", "scores", "pattern", "sink", "z")

Visit = Callable[[str, Tensor], Tensor]
Order = list[int] | None  # of a tensor's four axes, to be [batch, head, pos, d_head]


@dataclass
class Attention:
    """One attention computation. q, k, v, z: [batch, head, pos, d_head]; scores, pattern: [batch, head, query, key].

    `whole` is what the softmax returned; where it has more columns than there are keys, these are the sink.
    """

    product: int  # the number of the query-key product among the products its module ran; -1 for a fused call
    q: Tensor | None = None
    k: Tensor | None = None
    v: Tensor | None = None
    scores: Tensor | None = None
    pattern: Tensor | None = None
    z: Tensor | None = None
    whole: Tensor | None = None

    @property
    def sink(self) -> Tensor | None:
        """The share of each query's attention that goes to no key [batch, head, query], if the softmax has such columns."""
        assert self.whole is not None and self.pattern is not None
        rest = self.whole.shape[-1] - self.pattern.shape[-1]
        return self.whole[..., -rest:].sum(-1) if rest else None


def visible(q: Tensor, k: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor | None:
    """The additive mask of a fused call [.., query, key]: 0 where attention may go, -inf elsewhere."""
    if is_causal:
        return torch.full((q.shape[-2], k.shape[-2]), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, float("-inf"))
    return mask


def reference_scores(q: Tensor, k: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """scores = scale · q kᵀ + mask, in at least float32 [batch, head, query, key]; k may have fewer heads."""
    wide = torch.promote_types(q.dtype, torch.float32)
    k = k if q.shape[1] == k.shape[1] else k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q.to(wide) @ k.to(wide).transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return scores if mask is None else scores + mask.to(wide)


def _positional(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The operands of a product that were given by name, put in their places."""
    places = OPERANDS[func in ADDED_PRODUCT]
    named = sorted((places[name], value) for name, value in kwargs.items() if name in places)
    return (*args, *(value for _, value in named)), {k: v for k, v in kwargs.items() if k not in places}


def _orders(equation: str, kind: str) -> tuple[Order, Order]:
    """The axes of both operands of an einsum that makes scores [batch, head, query, key], or of its values and its result
    where it weighs them, as [batch, head, pos, d_head]; None where they are no four axes each.
    """
    first, second, made = equation.replace(" ", "").replace("->", ",").split(",")
    if "." in equation or {len(first), len(second), len(made)} != {4}:
        return None, None
    if kind == "score":
        (batch, head, query, key), summed = list(made), set(first) & set(second) - set(made)
        wanted = [(first, [batch, head, query, *summed]), (second, [batch, head, key, *summed])]
    else:
        (batch, head, query, key), rest = list(first), set(second) - set(first)
        wanted = [(second, [batch, head, key, *rest]), (made, [batch, head, query, *rest])]
    if any(set(labels) != set(order) for labels, order in wanted):
        return None, None
    return tuple([labels.index(axis) for axis in order] for labels, order in wanted)  # type: ignore[return-value]


def reference_pattern(scores: Tensor) -> Tensor:
    """softmax over keys; a query that may look nowhere gets zeros, as fused attention gives."""
    return torch.softmax(scores, dim=-1).nan_to_num(0.0)


class Tap(TorchFunctionMode):
    """Calls `visit(name, tensor)` for the inner tensors of each attention, and `done(attention)` at its end.

    `visit` gets [batch, head, pos, d_head] or [batch, head, query, key] and returns the tensor to go on with. `edits`
    names the tensors that `visit` may change; for others its result is ignored. "statistics", where wanted, are what
    `attention_statistics` says of each query [batch, head, query, 4]: of a fused call no pattern is made for them.
    `product` is the number of the query-key product in the module (needed to edit q or k outside fused attention), `heads`
    the number of query heads.
    """

    def __init__(
        self,
        visit: Visit | None = None,
        done: Callable[[Attention], None] | None = None,
        wanted: frozenset[str] = frozenset(INNER),
        edits: frozenset[str] = frozenset(),
        product: int | None = None,
        heads: int | None = None,
        batch: int | None = None,
    ) -> None:
        super().__init__()
        self.visit, self.done, self.wanted, self.edits = visit, done, wanted, edits
        self.product, self.heads, self.batch = product, heads, batch
        self.products = 0
        self.first: Attention | None = None  # the first attention begun
        self.softmaxes = 0  # calls of softmax and of fused attention
        self.origin: dict[int, tuple[int, Tensor, Tensor]] = {}  # id of a tensor made from a product -> the product
        self.patterns: dict[int, Attention] = {}  # id of a tensor made from a softmax -> its attention
        self.alive: list[Any] = []  # ids are only good while the tensors live

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in WATCHED and not self.origin and not self.patterns:  # nothing to follow yet
            return func(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            with self:
                return _OPEN(*args, **kwargs)
        self.softmaxes += func in SOFTMAX or func is F.scaled_dot_product_attention
        if func is F.scaled_dot_product_attention:
            return self._fused(func, *args, **kwargs)
        if func in SOFTMAX:
            return self._softmax(func, args, kwargs)
        if func in WATCHED:
            return self._product(func, args, kwargs)
        out = func(*args, **kwargs)
        if func not in LAYERS:  # what a matrix makes of scores is no scores
            self._inherit([*args, *kwargs.values()], out)
        return out

    def _see(self, name: str, tensor: Tensor, of: Attention | None = None, order: Order = None) -> Tensor:
        """Show a tensor to `visit`, as [batch, head, ...] whatever its layout here; of several attentions those of the first."""
        if self.visit is None or name not in self.wanted or of is not self.first:
            return tensor
        seen = self.visit(name, self._apart(tensor, order))
        return self._together(seen, tensor, order) if name in self.edits else tensor

    def _apart(self, t: Tensor, order: Order = None) -> Tensor:
        """Four axes: batch and heads apart, a picture's windows [batch, head, window, ...] beside one another in the batch."""
        t = t.permute(order) if order else t
        if t.ndim == 5:
            return t.movedim(2, 1).flatten(0, 1)
        return t if t.ndim == 4 else t.reshape(self.batch or 1, -1, *t.shape[-2:])

    def _together(self, seen: Tensor, like: Tensor, order: Order = None) -> Tensor:
        """The inverse of `_apart`."""
        if like.ndim == 5:
            return seen.unflatten(0, (like.shape[0], like.shape[2])).movedim(1, 2)
        return seen.permute([order.index(axis) for axis in range(4)]) if order else seen.reshape(like.shape)

    def _begin(self, attention: Attention) -> Attention:
        self.first = self.first or attention
        return attention

    def _inherit(self, args: list[Any], out: Any) -> None:
        if not isinstance(out, Tensor):
            return
        flat = [a for arg in args for a in (arg if isinstance(arg, (tuple, list)) else [arg]) if isinstance(a, Tensor)]
        tables: tuple[dict[int, Any], ...] = (self.origin, self.patterns)
        for table in tables:
            source = next((table[id(a)] for a in flat if id(a) in table), None)
            if source is not None:
                table[id(out)] = source
                self.alive.append(out)

    def _product(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        first = 1 if func in ADDED_PRODUCT or func is torch.einsum else 0
        args, kwargs = _positional(func, args, kwargs)
        operands = list(args[first]) if isinstance(args[first], (tuple, list)) else list(args[first : first + 2])
        if len(operands) != 2:
            return func(*args, **kwargs)
        a, b = operands
        attention = self.patterns.get(id(a)) or self.patterns.get(id(b))
        number, self.products = self.products, self.products + 1
        if min(a.ndim, b.ndim) < 3:  # a matrix at work
            return func(*args, **kwargs)
        if attention is not None:
            return self._weighted_sum(func, args, kwargs, first, attention)
        transposed = func is not torch.einsum or a.shape[-1] != b.shape[-1]
        of_q, of_k = _orders(args[0], "score") if func is torch.einsum else (None, None)
        if number == self.product and self.edits & {"q", "k"}:
            a = self._see("q", a, self.first, of_q)
            transposed &= of_k is None
            b = self._see("k", b.mT, self.first).mT if transposed else self._see("k", b, self.first, of_k)
            args = (*args[:first], a, b, *args[first + 2 :])
        out = func(*args, **kwargs)
        q, k = a.permute(of_q) if of_q else a, b.permute(of_k) if of_k else b.mT if transposed else b
        self.origin[id(out)] = (number, q, k)
        self.alive.append(out)
        return out

    def _weighted_sum(self, func: Any, args: Any, kwargs: Any, first: int, attention: Attention) -> Tensor:
        """z = pattern · v, the end of an attention."""
        operands = list(args[first]) if isinstance(args[first], (tuple, list)) else list(args[first : first + 2])
        at = 1 if id(operands[0]) in self.patterns else 0
        of_v, of_z = _orders(args[0], "sum") if func is torch.einsum and at else (None, None)
        attention.pattern = operands[1 - at]
        if attention.sink is not None:
            self._see("sink", attention.sink.unsqueeze(-1), attention)
        if "statistics" in self.wanted:
            self._see("statistics", of_pattern(self._apart(operands[1 - at])), attention)
        attention.pattern = operands[1 - at] = self._see("pattern", operands[1 - at], attention)
        operands[at] = self._see("v", operands[at], attention, of_v)
        attention.v = operands[at].permute(of_v) if of_v else operands[at]
        spread = [operands] if isinstance(args[first], (tuple, list)) else operands
        z = self._see("z", func(*args[:first], *spread, *args[first + len(spread) :], **kwargs), attention, of_z)
        attention.z = z.permute(of_z) if of_z else z
        self._finish(attention)
        return z

    def _finish(self, attention: Attention) -> None:
        """Hand an attention over, heads apart from the batch."""
        if self.done is None:
            return
        for name in ("q", "k", "v", "z", "pattern", "scores", "whole"):
            t = getattr(attention, name)
            if t is not None and (t.ndim == 5 or (t.ndim == 3 and self.batch)):
                setattr(attention, name, self._apart(t))
        self.done(attention)

    def _softmax(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        scores = args[0] if args else kwargs["input"]
        made, axis = self.origin.get(id(scores)), kwargs.get("dim", args[1] if len(args) > 1 else -1)
        if made is None or axis not in (-1, scores.ndim - 1):  # weights that sum to one over something else than keys
            return func(*args, **kwargs)
        number, q, k = made
        attention = self._begin(Attention(number, q, k))
        if not self.edits & {"q", "k"}:
            self._see("q", q, attention)
            self._see("k", k, attention)
        rest = {name: value for name, value in kwargs.items() if name != "input"}
        keys = k.shape[-2]  # further columns are sinks
        seen = self._see("scores", scores[..., :keys], attention)
        if scores.shape[-1] > keys and "scores" in self.edits:
            seen = torch.cat([seen, scores[..., keys:]], dim=-1)
        whole = func(seen if "scores" in self.edits else scores, *args[1:], **rest)
        attention.pattern, attention.whole = seen[..., :keys], whole
        self.patterns[id(whole)] = attention
        self.alive.append(whole)
        return whole

    def _fused(
        self,
        func: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """A fused call. What is only read is computed beside the model's own call; an edit is answered by reference."""
        q, mask = query, attn_mask
        if self.heads is not None and query.shape[1] != self.heads:
            # One query a row, its heads packed as [batch, kv_head, group, d_head].
            q = query.reshape(query.shape[0], self.heads, 1, query.shape[-1])
            if mask is not None and mask.shape[1] != 1:
                mask = mask.reshape(mask.shape[0], self.heads, 1, mask.shape[-1])
        attention, inside = self._begin(Attention(-1)), self.done is not None or self.wanted & {"scores", "pattern"}
        q, k, v = (self._see(name, t, attention) for name, t in (("q", q), ("k", key), ("v", value)))
        attention.q, attention.k, attention.v = q, k, v
        if "statistics" in self.wanted:
            scaled = q.shape[-1] ** -0.5 if scale is None else scale
            self._see("statistics", attention_statistics(q, k, mask, None, is_causal, scaled)[0], attention)
        if inside or self.edits:
            plain = reference_scores(q, k, visible(q, k, mask, is_causal), scale)
            attention.scores = self._see("scores", plain, attention)
            attention.pattern = self._see("pattern", reference_pattern(attention.scores), attention)
            attention.whole = attention.pattern
        if self.edits - {"z"} and attention is self.first:
            assert attention.pattern is not None
            z = attention.pattern.to(v.dtype) @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
            out = z.reshape(*query.shape[:-1], z.shape[-1])
        else:
            out = func(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        seen = self._see("z", out.reshape(*q.shape[:-1], out.shape[-1]), attention)
        attention.z = seen
        self._finish(attention)
        return seen.reshape(out.shape) if "z" in self.edits else out
