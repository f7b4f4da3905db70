"""What probes of one prompt share: its inputs, its real tokens, whether the model is causal, and attention held still."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.model.edits import Replace
from interp.model.inputs import first_name, probe_inputs
from interp.model.model import Model
from interp.model.positions import of_call
from interp.texts import token_texts

if TYPE_CHECKING:
    from jaxtyping import Int

CAUSAL = (
    1e-3  # how far a later token may move an earlier state, relative to it: 16 bits round, looking ahead moves it by 1
)


def one_prompt(model: Model, x: Any, bos: bool | None = None) -> dict[str, Any]:
    """The wrapped model's inputs for one prompt. Raises `WrongUse` for several."""
    inputs = model.inputs(x, bos)
    rows = {v.shape[0] for v in inputs.values() if isinstance(v, Tensor) and v.ndim > 1}
    if rows - {1}:
        raise WrongUse(f"this follows one prompt, but x has {max(rows)}: give each by itself.")
    return inputs


def repeated(inputs: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The same prompt in every row of a batch."""
    return {k: v.expand(rows, *v.shape[1:]) if isinstance(v, Tensor) and v.ndim else v for k, v in inputs.items()}


def columns(inputs: Mapping[str, Any], site: str, length: int) -> Int[Tensor, " pos"]:
    """Which columns of a site's tensor hold real tokens of the prompt."""
    where = of_call(inputs, "decoder_" if of_decoder(site) else "")
    if where is None or where.index.shape[1] != length:
        return torch.arange(length)
    return (where.index[0] >= 0).nonzero().flatten().cpu()


def words(model: Model, inputs: Mapping[str, Any], site: str, kept: Int[Tensor, " pos"]) -> list[str]:
    """The tokens that stand at a site's columns; their numbers where the input is no text."""
    name = "decoder_input_ids" if of_decoder(site) else first_name(model.module)
    ids = inputs.get(name)
    if ids is None or ids.is_floating_point() or int(kept.max()) >= ids.shape[1]:
        return [str(i) for i in range(len(kept))]
    return token_texts(model.tokenizer)(ids[0, kept].tolist())


def of_decoder(site: str) -> bool:
    return site.startswith("decoder.")


def vocabulary(model: Model) -> int:
    """How many tokens there are. Raises `WrongUse` where neither a table of tokens nor the config says."""
    table = model.weights.get("W_E")
    size = getattr(model.config, "vocab_size", None) if table is None else len(table)
    if size is None:
        raise WrongUse(f"no table of tokens was found in {model.id}, so no tokens can be drawn for it.")
    return size


def has_encoder(model: Model) -> bool:
    """Whether the model is an encoder and a decoder."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def stream(model: Model) -> list[str]:
    """The stream into every block of the last stack, and out of the last one."""
    if not model.wiring.stacks:
        raise WrongUse(f"{model.id} has no chain of blocks whose stream could be followed: `interp doctor` says why.")
    stack = model.wiring.stacks[-1]
    names = [f"{stack.prefix}blocks.{i}.resid_pre" for i in range(len(stack.blocks))]
    return [*names, f"{stack.prefix}blocks.{len(stack.blocks) - 1}.resid_post"]


def output(model: Model) -> str:
    """y: the last norm's output, or the last block's where no norm follows."""
    norm = f"{model.wiring.stacks[-1].prefix}final_norm"
    return norm if norm in model.binding.sites else stream(model)[-1]


@torch.no_grad()
def check_causal(model: Model) -> None:
    """Raise `WrongUse` unless what stands at a token is made of the tokens up to it alone, and of no other input."""
    given = {} if has_encoder(model) else probe_inputs(model.module, batch=1, length=8, seed=5)
    ids = given.get(first_name(model.module))
    if ids is None or ids.is_floating_point():
        what = "has an encoder, whose tokens look both ways" if has_encoder(model) else "reads no text"
        raise WrongUse(f"{model.id} {what}: this is about causal models, so give a decoder alone.")
    other, site = ids.clone(), stream(model)[-1]
    other[0, -1] = 3 if int(ids[0, -1]) != 3 else 4
    a, b = (model.record(i, site)[site][0, :-1].double() for i in (ids, other))
    if float((a - b).norm() / a.norm()) > CAUSAL:
        raise WrongUse(
            f"{model.id} is not causal: a later token changes what stands at earlier ones. This is about causal models, so "
            "give a decoder."
        )


@contextmanager
def held(model: Model) -> Iterator[None]:
    """No gradient goes through the patterns: queries and keys are constants, as every bound on paths takes them.

    Raises `WrongUse` for an attention whose queries and keys are not proven.
    """
    sites = [n for n in model.sites() if n.endswith(".v")]
    made = [f"{n[:-2]}.{side}" for n in sites for side in ("q_raw", "k_raw")]
    missing = [n for n in made if n not in model.binding.sites]
    if missing:
        raise WrongUse(f"{missing[0]!r} is not proven in {model.id}, so its pattern cannot be held still.")
    with model.edit(*(Replace(n, Tensor.detach) for n in made)):
        yield
