"""Direct logit attribution: a logit as an exact sum over what every part of the model added to the stream.

The stream before the head is a sum, x = embed + Σ_l (Σ_h head_{l,h} + bias_l + mlp_l). With the divisor of the final norm
held at this run's value the norm is affine, norm(x) = A x + b, so the logit of token t is linear in every part of x:
logit_t = (A^T w_t) · x + w_t · b + c_t, w_t the head's row and c_t its bias.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interp.errors import Failed, WrongUse
from interp.lenses.readout import token_id
from interp.model.model import Model, teaches
from interp.model.wiring import Block, Stack

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Float

Answer = int | str | tuple[int | str, int | str]
CLOSE, CLOSE_16 = 1e-5, 0.05  # relative; how well a norm, a head or a sum must be what it is taken for


@dataclass(frozen=True)
class Part:
    """One term of the sum: "embed", "pos_embed", "attn", "attn bias", "mlp", "norm bias", …; its layer and head, if any."""

    component: str
    layer: int | None = None
    head: int | None = None


@dataclass(frozen=True, eq=False)
class DirectLogits:
    """`values` [prompt, part], in logits, sum over parts to `total` [prompt]: what `of` says, for the answers asked."""

    parts: tuple[Part, ...]
    values: Float[Tensor, "prompt part"]
    total: Float[Tensor, " prompt"]
    of: str

    @property
    def heads(self) -> Float[Tensor, "prompt layer head"]:
        """What each head of the self-attention adds; NaN where a layer has no such head."""
        found = [(i, p.layer, p.head) for i, p in enumerate(self.parts) if p.component == "attn" and p.head is not None]
        layers, heads = (1 + max((f[k] or 0 for f in found), default=-1) for k in (1, 2))
        table = self.values.new_full((len(self.values), layers, heads), torch.nan)
        for i, layer, head in found:
            table[:, layer, head] = self.values[:, i]
        return table

    def to_frame(self) -> pd.DataFrame:
        """One row a prompt and part: prompt, component, layer, head, value (in logits)."""
        import pandas as pd

        rows = [
            [prompt, p.component, p.layer, p.head, value]
            for prompt, values in enumerate(self.values.tolist())
            for p, value in zip(self.parts, values, strict=True)
        ]
        frame = pd.DataFrame(rows, columns=["prompt", "component", "layer", "head", "value"])
        return frame.astype({"layer": "Int64", "head": "Int64"})

    def plot(self) -> go.Figure:
        """Bars by layer and component with their running sum, and a map of the heads; means over prompts."""
        return _plot(self)


@teaches
@torch.no_grad()
def direct_logit_attribution(
    model: Model, x: Any, tokens: Answer | Sequence[Answer], *, pos: int = -1, bos: bool | None = None
) -> DirectLogits:
    """logit_t = Σ_parts (A^T w_t) · part + w_t · b + c_t, where norm(x) = A x + b with A's divisor held as in this run.

    `tokens`: an id, or a string that is one token; a tuple (answer, other) stands for logit(answer) - logit(other); a
    list has one of these per prompt. `pos`: the position whose logits are meant, counted over real tokens, from the end
    if negative. Parts: the token embedding and the position embedding, every head, the attention's bias, every MLP or
    mixer with its bias, the final norm's bias, the head's bias. A norm or layer scale after a sublayer is held too;
    where what follows the heads is not linear then, the sublayer is one part. Where the model bends its logits at the
    end (a soft cap), the sum is the logit before that, and `of` says so. Exact up to the model's own rounding.

    Raises `WrongUse` for a model whose stream is no sum of parts (post-norm blocks), has no final norm or no head, and
    for an answer that is no single token; `Failed` if a norm or the head is not what the formula takes it for.
    Sources: nostalgebraist 2020 (the logit lens); Elhage et al. 2021 (A Mathematical Framework for Transformer
    Circuits); Wang et al. 2022 (arXiv:2211.00593).
    """
    run = _Run(model, x, pos, bos)
    if run["logits"].ndim != 2:
        raise WrongUse(f"{model.id} makes no logits for every position, so there is no token to attribute.")
    answer = _answers(model, tokens, *run["logits"].shape)
    gradient, constant, total, of = _through_head(run, answer)
    frozen = freeze(run.module(run.norm), run[run.last], run[run.norm])
    if frozen is None:
        raise Failed(f"{run.norm} of {model.id} is no linear map once its divisor is held: its output cannot be split.")
    pull, shift = frozen.back(gradient)
    terms = [(part, (v * pull).sum(-1)) for part, v in run.embeddings()]
    for layer, block in enumerate(run.stack.blocks):
        for write, coefficient in _writes(block):
            terms += _write_terms(run, layer, write, coefficient, pull)
    terms += [(Part("norm bias"), shift), (Part("unembed bias"), constant)]
    terms = [(part, v) for part, v in terms if not part.component.endswith("bias") or bool(v.any())]
    return DirectLogits(tuple(part for part, _ in terms), torch.stack([v for _, v in terms], dim=1), total, of)


# ---------------------------------------------------------------- what is recorded


class _Run:
    """One recorded run at one position: `run[site]` [prompt, ...] in float64 on the CPU."""

    def __init__(self, model: Model, x: Any, pos: int, bos: bool | None) -> None:
        self.model, self.stack = model, _stack(model)
        p = self.stack.prefix
        self.norm, self.first = f"{p}final_norm", f"{p}blocks.0.resid_pre"
        self.last = f"{p}blocks.{len(self.stack.blocks) - 1}.resid_post"
        self.embed = f"{p}embed" if f"{p}embed" in model.binding.sites else "embed"
        wanted = [self.first, self.last, self.norm, "logits"] + [self.embed] * (self.embed in model.binding.sites)
        for layer, block in enumerate(self.stack.blocks):
            for write, _ in _writes(block):
                write, *inner = self.around(layer, write)
                wanted += [write, *inner] if inner[1] in model.binding.sites else [write]
        self.recorded = set(wanted)
        self.cache = model.record(x, list(dict.fromkeys(wanted)), pos=pos, bos=bos)
        # Position embeddings may come once for all prompts, so their position is picked from the whole.
        places = model.record(x, "pos_embed", bos=bos).at("pos_embed", pos) if self.has_places() else None
        self.places = None if places is None else places.to("cpu", torch.float64)

    def __getitem__(self, site: str) -> Float[Tensor, "prompt ..."]:
        return self.cache[site][:, 0].to("cpu", torch.float64)

    def has_places(self) -> bool:
        return "pos_embed" in self.model.binding.sites and self.embed in self.model.binding.sites

    def around(self, layer: int, write: str) -> tuple[str, str, str]:
        """The sites of a sublayer: its write, what it returns, and what its heads make."""
        role = f"{self.stack.prefix}blocks.{layer}.{write.rsplit('.', 1)[0]}"
        return f"{role}.write", f"{role}.out", f"{role}.result"

    def module(self, site: str) -> nn.Module:
        return self.model.module.get_submodule(self.model.binding.sites[site].place.path)

    def embeddings(self) -> list[tuple[Part, Tensor]]:
        """What stands in the stream before the first block, in two if it is the sum of both embeddings."""
        whole = self[self.first]
        if self.places is not None:
            rest = whole - self.places
            if _same(self[self.embed], rest, _tolerance(self.model.module)):
                return [(Part("embed"), rest), (Part("pos_embed"), whole - rest)]
        return [(Part("embed"), whole)]


def _stack(model: Model) -> Stack:
    """The blocks whose stream the head reads. Raises `WrongUse` if that stream is no sum."""
    sites = model.binding.sites
    stacks = [s for s in model.wiring.stacks if f"{s.prefix}final_norm" in sites] if sites else []
    for stack in stacks[-1:] or (model.wiring.stacks if sites else ()):
        for layer, block in enumerate(stack.blocks):
            if block.norms:
                raise WrongUse(
                    f"{model.id} normalises after adding: block {layer} returns norm(stream + write), and each such norm "
                    "rescales all that was written before it, so no logit is a sum over parts. Ablate or patch instead."
                )
            if any(t.scale != 1.0 or t.constant or any(isinstance(c, str) for _, c in t.writes) for t in block.sums):
                raise WrongUse(
                    f"block {layer} of {model.id} scales the stream, or each channel of a write, on the way: direct logit "
                    "attribution follows plain sums only. Ablate or patch instead."
                )
            if not block.sums:
                raise WrongUse(f"the stream of block {layer} of {model.id} is not proven: {block.refused.get('*')}.")
    if not stacks or "logits" not in sites:
        why = model.binding.refused.get("*", "no norm reads the last block's output, or nothing is called logits")
        raise WrongUse(f"{model.id} has no final norm followed by a head that this could be read through: {why}.")
    return stacks[-1]


def _writes(block: Block) -> list[tuple[str, float]]:
    return [(write, c) for total in block.sums for write, c in total.writes if not isinstance(c, str)]


def _answers(model: Model, tokens: Any, prompts: int, size: int) -> Float[Tensor, "prompt vocabulary"]:
    """+1 at each prompt's answer and -1 at the other."""
    tokens = tokens.tolist() if isinstance(tokens, Tensor) else tokens
    given = tokens if isinstance(tokens, list) else [tokens] * prompts
    if len(given) != prompts:
        raise WrongUse(f"{len(given)} answers for {prompts} prompts: give one for all, or a list with one per prompt.")
    table = torch.zeros(prompts, size, dtype=torch.float64)
    for row, answer in enumerate(given):
        pair = answer if isinstance(answer, tuple) else (answer,)
        if len(pair) > 2:
            raise WrongUse(f"{answer!r} has {len(pair)} tokens: a tuple is (answer, other); one per prompt is a list.")
        for sign, token in zip((1, -1), pair, strict=False):
            table[row, token_id(model, token, size)] += sign
    return table


# ---------------------------------------------------------------- backwards from the logit


def _same(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """|a - b| is small beside |b|, for every prompt."""
    return bool(((a - b).norm(dim=-1) <= tolerance * b.norm(dim=-1)).all())


def _tolerance(module: nn.Module) -> float:
    return CLOSE if all(p.dtype.itemsize >= 4 for p in module.parameters() if p.is_floating_point()) else CLOSE_16


def _through_head(run: _Run, answer: Float[Tensor, "prompt vocabulary"]) -> tuple[Tensor, Tensor, Tensor, str]:
    """(w [prompt, d], c [prompt], the logits' total [prompt], its name), with answer · logits = w · norm(x) + c."""
    head, x = _head(run.model, run.cache[run.norm]), run.cache[run.norm]
    out, back = torch.func.vjp(head, x)[:2]
    made, logits, tolerance = out[:, 0].to("cpu", torch.float64), run["logits"], _tolerance(head)
    factor = (made * logits).sum(-1, keepdim=True) / made.square().sum(-1, keepdim=True)
    bent = not _same(factor * made, logits, tolerance)
    if bent:
        order = made.argsort(-1)
        steps = logits.gather(-1, order).diff(dim=-1)
        if made.shape != logits.shape or float(steps.min()) < -tolerance * float(logits.abs().max()):
            raise Failed(f"the logits of {run.model.id} are no rising function of what its head makes of {run.norm}.")
        factor = torch.ones_like(factor)
    weight = back((factor * answer)[:, None].to(out))[0][:, 0].to("cpu", torch.float64)
    constant = (factor * head(torch.zeros_like(x))[:, 0].to("cpu", torch.float64) * answer).sum(-1)
    total = (made if bent else logits).mul(answer).sum(-1)
    kind = "logit difference" if bool((answer < 0).any()) else "logit"
    return weight, constant, total, f"{kind} before the cap" if bent else kind


def _head(model: Model, x: Tensor) -> nn.Module:
    get = getattr(model.module, "get_output_embeddings", lambda: None)
    head = get()
    if head is None or head.weight.shape[-1] != x.shape[-1]:
        raise WrongUse(f"{model.id} names no matrix that reads its final norm, so nothing is known to make its logits.")
    return head


@dataclass(frozen=True, eq=False)
class Frozen:
    """y = scale · J x + b, J the module's derivative at zero, where a norm divides by a constant."""

    module: nn.Module
    zero: Tensor
    scale: Float[Tensor, "prompt 1"]
    bias: Float[Tensor, "prompt d"]

    def along(self, vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """J of each vector: what becomes of it but for the scale, which differs from prompt to prompt."""
        wide = vectors.to(self.zero)[:, None]
        return torch.func.jvp(self.module, (torch.zeros_like(wide),), (wide,))[1][:, 0].double()

    def back(self, gradient: Float[Tensor, "prompt d"]) -> tuple[Float[Tensor, "prompt d"], Float[Tensor, " prompt"]]:
        """(scale · J^T gradient, b · gradient)."""
        back = torch.func.vjp(self.module, self.zero)[1]
        pulled = back((self.scale * gradient).to(self.zero)[:, None])[0][:, 0]
        return pulled.double(), (self.bias * gradient).sum(-1)


def freeze(module: nn.Module, x: Float[Tensor, "prompt d"], y: Float[Tensor, "prompt d"]) -> Frozen | None:
    """The affine map that a norm (or any channelwise scale) is in this run, found from the module; None if it is none.

    norm(x) = W C x / s(x) + b with s constant near zero, so J = W C / s(0); one number a prompt, s(0) / s(x), is left,
    and y says which. Kept only if it then gives all of y.
    """
    dtype = torch.promote_types(next(module.parameters(), x).dtype, torch.float32)
    wide, zero = copy.deepcopy(module).to("cpu", dtype), torch.zeros_like(x[:, None], dtype=dtype)
    bias, along = (t[:, 0].double() for t in torch.func.jvp(wide, (zero,), (x[:, None].to(zero),)))
    scale = ((y - bias) * along).sum(-1, keepdim=True) / along.square().sum(-1, keepdim=True)
    if not _same(scale * along + bias, y, _tolerance(module)):
        return None
    return Frozen(wide, zero, scale, bias)


def _write_terms(
    run: _Run, layer: int, write: str, coefficient: float, pull: Float[Tensor, "prompt d"]
) -> list[tuple[Part, Tensor]]:
    """A sublayer's terms: its heads and its bias where what follows them is linear in this run, else all of it."""
    role = write.rsplit(".", 1)[0]
    names = run.around(layer, write)
    whole = [(Part(role, layer), (run[names[0]] * pull).sum(-1))]
    if names[2] not in run.recorded:
        return whole
    written, out, results = (run[n] for n in names)
    matrix = run.module(names[2])
    bias = getattr(matrix, "bias", None)
    bias = torch.zeros_like(out[0]) if bias is None else bias.to(out)
    if not _same(results.sum(1) + bias, out, _tolerance(matrix)):
        return whole
    shift, pull = torch.zeros(len(out), dtype=torch.float64), coefficient * pull
    if not _same(written, coefficient * out, 0.0 if coefficient == 1.0 else _tolerance(matrix)):
        frozen = freeze(run.module(names[0]), out, written / coefficient)
        if frozen is None:
            return whole
        pull, shift = frozen.back(pull)
    heads = [(Part(role, layer, h), (results[:, h] * pull).sum(-1)) for h in range(results.shape[1])]
    return [*heads, (Part(f"{role} bias", layer), (bias * pull).sum(-1) + shift)]


# ---------------------------------------------------------------- the picture

COLOURS = {"bias": "#4d7a1f", "attn": "#1f5f8b", "mlp": "#b3470f", "mixer": "#7a3f96", "embed": "#5b606a"}


def _plot(found: DirectLogits) -> go.Figure:
    from plotly.subplots import make_subplots

    heads = found.heads.mean(0)
    many = heads.numel() > 0
    figure = make_subplots(1, 2 if many else 1, column_widths=[0.62, 0.38] if many else None, horizontal_spacing=0.09)
    _bars(figure, found)
    if many:
        _head_map(figure, heads)
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom"}
    size = {"width": 1040 if many else 660, "height": 460, "legend": legend}
    return figure.update_layout(title="Direct logit attribution", template="plotly_white", barmode="relative", **size)


def _bars(figure: go.Figure, found: DirectLogits) -> None:
    """A stack for every block, and one for what stands outside the blocks; a line adds them up."""
    place = [p.component if p.layer is None else str(p.layer) for p in found.parts]
    places, mean = list(dict.fromkeys(place)), found.values.mean(0).tolist()
    for component in dict.fromkeys(p.component for p in found.parts):
        sums = dict.fromkeys(places, 0.0)
        for part, where, value in zip(found.parts, place, mean, strict=True):
            sums[where] += value * (part.component == component)
        here = list(dict.fromkeys(w for w, p in zip(place, found.parts, strict=True) if p.component == component))
        colour = next((c for name, c in COLOURS.items() if name in component), COLOURS["embed"])
        bar = {"x": here, "y": [sums[w] for w in here], "name": component, "marker_color": colour}
        figure.add_bar(hovertemplate=f"{component}, %{{x}}: %{{y:.3f}}<extra></extra>", row=1, col=1, **bar)
    steps = [sum(v for w, v in zip(place, mean, strict=True) if w == where) for where in places]
    line = {"color": "#1d1f23", "width": 1.5, "dash": "dot"}
    figure.add_scatter(
        x=places, y=list(accumulate(steps)), name="sum so far", mode="lines+markers", line=line, row=1, col=1
    )
    figure.update_xaxes(title="part, by block", type="category", categoryarray=places, row=1, col=1)
    figure.update_yaxes(title=found.of, row=1, col=1)


def _head_map(figure: go.Figure, heads: Float[Tensor, "layer head"]) -> None:
    bar = {"title": "logits", "thickness": 14}
    told = "block %{y}, head %{x}: %{z:.3f}<extra></extra>"
    figure.add_heatmap(z=heads.numpy(), colorscale="RdBu", zmid=0, colorbar=bar, hovertemplate=told, row=1, col=2)
    figure.update_xaxes(title="head", dtick=1 + heads.shape[1] // 16, row=1, col=2)
    figure.update_yaxes(title="block", dtick=1 + heads.shape[0] // 16, row=1, col=2)
