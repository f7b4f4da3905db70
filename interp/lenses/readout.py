"""From the stream to the logits: the model's own final norm, projection, head, scaling and cap, found by proof.

logits = cap(multiplier · (h W_U + b_U)) for every model here; what stands between the stream after the last block and h
(a norm, a projection, a masked-LM head's transform, a pooler, nothing) is run, not known: see `Readout.normed`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from interp.errors import Failed, WrongUse
from interp.model.causal import leak
from interp.model.inputs import probe_inputs
from interp.model.layouts import Layout
from interp.model.model import Model
from interp.model.onward import Onward
from interp.model.wiring import Stack

if TYPE_CHECKING:
    from jaxtyping import Float

CLOSE = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative; how far the readout may be from the model's logits
ROUGH = 0.05
LENGTHS = (1, 3, 7)  # of made-up inputs that carry states: the shortest that the model runs with
STATES = 64  # carried at once


class Readout:
    """The last steps of a model as a function of single states of the stream [n, ...], checked against its logits.

    Raises `WrongUse` for a model without a head or without a proven stream; `Failed` if what was found does not give the
    model's logits.
    """

    def __init__(self, model: Model) -> None:
        self.model, sites = model, model.binding.sites
        if not sites or not model.wiring.stacks:
            raise WrongUse(
                f"{model.id} has no proven stream to read: {model.binding.refused.get('*', 'no block found')}."
            )
        if "logits" not in sites:
            raise WrongUse(
                f"{model.id} ({type(model.module).__name__}) has no head: it returns no logits, so there is no output space "
                "to read its stream in. Load the class with a head (AutoModelForCausalLM, …ForMaskedLM, …)."
            )
        self.layout: Layout | None = model.weights.layouts.get("W_U")
        if self.layout is not None and self.layout.makes != "logits":
            self.layout = None
        self.stack = self._stack()
        self.first = f"{self.stack.prefix}blocks.0.resid_pre"
        self.last = f"{self.stack.prefix}blocks.{len(self.stack.blocks) - 1}.resid_post"
        self._prove()

    def _stack(self) -> Stack:
        """The blocks whose stream the head reads: those of the norm it reads, else the last that ran."""
        reads = "" if self.layout is None else self.layout.reads
        stacks = self.model.wiring.stacks
        return next((s for s in stacks if reads == f"{s.prefix}final_norm"), stacks[-1])

    # ------------------------------------------------------------ the two steps

    def normed(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
        """h, what the unembedding reads, of states of the stream after the last block."""
        return self._neck(x.to(self._seen[self.last]))

    def logits(self, h: Float[Tensor, "n d"]) -> Float[Tensor, "n vocabulary"]:
        """cap(multiplier · (h W_U + b_U)), in float32 at least."""
        made = self._head(h)
        return made.to(torch.promote_types(made.dtype, torch.float32))

    def __call__(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n vocabulary"]:
        """The logits that the model would return for these states."""
        return self.logits(self.normed(x))

    @cached_property
    def _neck(self) -> Callable[[Tensor], Tensor]:
        layout = self.layout
        if layout is not None and layout.reads == f"{self.stack.prefix}final_norm":
            norm, scale = (
                self.model.module.get_submodule(self.model.binding.sites[layout.reads].place.path),
                layout.scale,
            )
            return lambda x: norm.forward(x) if scale == 1.0 else scale * norm.forward(x)
        return self._carried

    def _head(self, h: Tensor) -> Tensor:
        if self.layout is None:
            return h
        made = self.unembedding.forward(h)
        made = made if self.layout.multiplier == 1.0 else self.layout.multiplier * made
        return made if self.layout.cap is None else self.layout.cap * torch.tanh(made / self.layout.cap)

    @cached_property
    def unembedding(self) -> nn.Module:
        """The module that multiplies by W_U."""
        assert self.layout is not None
        return self.model.module.get_submodule(self.layout.path)

    @property
    def linear(self) -> tuple[Float[Tensor, "vocabulary d"], Float[Tensor, " vocabulary"] | None, float, float] | None:
        """(W_U, b_U, multiplier, cap; 0: none) where the unembedding is a plain linear layer, so that others may multiply."""
        if self.layout is None:
            return None
        module = self.unembedding
        if type(module) is not nn.Linear or "forward" in vars(module):  # adapters, offloading
            return None
        if type(module.weight.data) is not Tensor or module.weight.is_meta:  # quantised, elsewhere
            return None
        return module.weight, module.bias, self.layout.multiplier, self.layout.cap or 0.0

    # ------------------------------------------------------------ states carried through the model itself

    def _carried(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
        """Each state fills all positions of an input of its own, and the model runs on from its last block.

        So a head that reads one position, or pools, reads the state, whatever the position.
        """
        return torch.cat([self._carry(part) for part in x.split(STATES)])

    def _carry(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n d"]:
        onward, length, places = self._carrier
        inputs = probe_inputs(self.model.module, batch=len(x), length=length)
        return _one(onward(x[:, None].expand(-1, places, *x.shape[1:]), inputs), self.per_position)

    @cached_property
    def _carrier(self) -> tuple[Onward, int, int]:
        """The run that carries, the length of its made-up inputs, and how many positions that is."""
        until = "logits" if self.layout is None else f"module:{self.layout.path}:in"
        for length in LENGTHS:
            try:
                example = probe_inputs(self.model.module, batch=2, length=length)
                cache = self.model.record(example, [self.last, until])
                onward = Onward(self.model, self.last, until, example)
                far = _off(onward(cache[self.last], example), cache[until])
            except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):
                continue  # too short for this model
            if far > CLOSE.get(self.dtype, ROUGH):
                raise Failed(
                    f"what {self.model.id} makes of its last block's output changes when blocks are skipped: {far:.1e}."
                )
            return onward, length, cache[self.last].shape[1]
        raise Failed(
            f"{self.model.id} did not run on made-up inputs of {LENGTHS} tokens, so no state can be carried through it."
        )

    # ------------------------------------------------------------ proof

    @cached_property
    def _seen(self) -> dict[str, Tensor]:
        with torch.no_grad():
            return dict(
                self.model.record(probe_inputs(self.model.module, batch=2, length=6, seed=5), [self.last, "logits"])
            )

    @property
    def dtype(self) -> torch.dtype:
        """Of the stream."""
        return self._seen[self.last].dtype

    @property
    def per_position(self) -> bool:
        """Whether there is a row of logits for every position, or one for the whole input."""
        return self._seen["logits"].ndim == 3

    @property
    def width(self) -> int:
        """How many tokens or classes the logits are for."""
        return self._seen["logits"].shape[-1]

    @torch.no_grad()
    def _prove(self) -> None:
        x, logits = self._seen[self.last], self._seen["logits"]
        if logits.ndim not in (2, 3) or (logits.ndim == 3 and logits.shape[:2] != x.shape[:2]):
            raise WrongUse(
                f"the logits of {self.model.id} are {tuple(logits.shape)}: no row for each position, nor for each input."
            )
        if not self.per_position:
            return
        far = _off(self(x.flatten(0, 1)), logits.flatten(0, 1))
        if far > CLOSE.get(self.dtype, ROUGH):
            raise Failed(f"the head found in {self.model.id} misses its logits by {far:.1e}, relative to them.")

    @cached_property
    def causal(self) -> bool:
        """Whether what comes later leaves the logits at a position as they are."""
        inputs = probe_inputs(self.model.module, batch=2, length=6, seed=5)
        name = next((n for n in ("decoder_input_ids", "input_ids") if n in inputs), None)
        far = None if name is None else leak(self.model, inputs, name)
        return far is not None and far <= CLOSE.get(self.dtype, 1e-3)


def _one(t: Tensor, per_position: bool) -> Tensor:
    """A row for each input: where there is one for every position, they are all alike."""
    return t[:, 0] if per_position or t.ndim == 3 else t


def _off(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-300))


def token_id(model: Model, token: int | str, size: int) -> int:
    """An id, or the id of a string that is one token. Raises `WrongUse` if it is several, or not below `size`."""
    if isinstance(token, str):
        if model.tokenizer is None:
            raise WrongUse(f"{model.id} was loaded without a tokenizer: give the id of {token!r}.")
        ids = model.tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            pieces = [model.tokenizer.decode([i]) for i in ids]
            raise WrongUse(
                f"{token!r} is {len(ids)} tokens, {pieces}: name one of them (mind the space before a word)."
            )
        return ids[0]
    if not 0 <= token < size:
        raise WrongUse(f"token {token} is not there: ids run from 0 to {size - 1}.")
    return token
