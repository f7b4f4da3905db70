"""Norm gains and means folded into the matrices beside them: another model with the same outputs, the given one untouched."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn

from interp.errors import Failed, WrongUse
from interp.model.inputs import probe_inputs
from interp.model.model import Model
from interp.model.sweep import output_tensor
from interp.model.weights import Weights

WRITERS = ("W_O", "b_O", "W_out", "b_out", "W_E", "W_pos")


@torch.no_grad()
def folded(model: Model) -> Model:
    """A copy whose norms before sublayers and head have gain 1, and whose writes have mean 0 where all norms are centred.

    (γ ⊙ x̂ + β) W = (x̂ + β / γ) (γ ⊙ W), for every matrix W that reads through the norm. A centred norm does not see the
    mean of the stream, so that W_O, W_out, their biases and the embeddings may lose theirs; what has no name keeps its
    mean. W_E and W_U are untied. As `fold_ln` and `center_writing_weights` of TransformerLens, which folds β, too.
    Raises `WrongUse` where norms stand after the sums, or what reads through one has no name in `model.weights`;
    `Failed` if the outputs would change (by more than 1e-4 of them).
    """
    if model.wiring.post_norm:
        raise WrongUse(
            f"{model.id} normalises after adding: nothing reads the stream through a norm that could be folded."
        )
    new = Model(copy.deepcopy(model.module), model.tokenizer, id=f"{model.id}, folded")
    _untie(new)
    weights = Weights(new)
    for norms, readers in _norms(new, weights):
        layout, gain = weights.layout(norms[0]), weights[norms[0]].clone()
        gain += layout.offset
        for name in readers:
            weights.set(name, weights[name] * gain[:, None])
        bias = norms[0].removesuffix("w") + "b"
        if bias in weights:
            weights.set(bias, weights[bias] / gain)
        weights.set(norms[0], torch.full_like(gain, 1.0 - layout.offset))
    if all(site.norm.centred for site in new.binding.sites.values() if site.norm is not None):
        for name in [n for n in weights if n.rsplit(".", 1)[-1] in WRITERS]:
            weights.set(name, weights[name] - weights[name].mean(-1, keepdim=True))
    inputs = probe_inputs(model.module, batch=2, length=7)
    before, after = (output_tensor(m.module(**inputs)) for m in (model, new))
    error = float((before - after).norm() / before.norm())
    if not error < 1e-4:
        raise Failed(
            f"folding would change the outputs of {model.id} by {error:.1e}: something else reads through its norms."
        )
    return new


def _untie(model: Model) -> None:
    """An unembedding of its own."""
    layout = Weights(model).layouts.get("W_U")
    if layout is not None and layout.parameter is not None:
        head = model.module.get_submodule(layout.path)
        setattr(head, layout.parameter, nn.Parameter(getattr(head, layout.parameter).clone()))


def _norms(model: Model, weights: Weights) -> Iterator[tuple[list[str], list[str]]]:
    """(The names of one norm's gain, the matrices that read through it): one norm may serve several sublayers."""
    groups: dict[str, list[str]] = {}
    for name in (n for n in weights if n.endswith(("attn.norm.w", "mlp.norm.w", "mixer.norm.w", "final_norm.w"))):
        groups.setdefault(weights.layout(name).path, []).append(name)
    for names in groups.values():
        read = {n.removesuffix(".w") if n.endswith("final_norm.w") else n.removesuffix("norm.w") + "in" for n in names}
        readers = [n for n in weights if weights.layout(n).reads in read and n.rsplit(".", 1)[-1].startswith("W_")]
        if not readers:
            raise WrongUse(
                f"what reads through {names[0]!r} of {model.id} has no name in model.weights, so its gain cannot be folded."
            )
        yield names, readers
