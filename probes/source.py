"""What is left of the source while a target is written: a decoder alone against an encoder and a decoder.

A decoder's softmax runs over source and target together, so the share of the source, s_t = Σ_{j in source} a_tj, falls as the
target grows; with uniform attention s_t = S/(S + t). Cross-attention has a softmax of its own over the source: its share
is 1 at every step. Source: Fu et al. 2023 (arXiv:2304.04052), "Decoder-Only or Encoder-Decoder? Interpreting Language Model
as a Regularized Encoder-Decoder".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.model.model import Model, teaches
from probes import prompts
from probes.paths import Patterns, attentions
from probes.sensitivity import sensitivity

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Float


@dataclass(frozen=True, eq=False)
class SourceShare:
    """One model over the steps t of one target.

    `mass` [layer, step]: s_t, the mean over heads; 1 in cross-attention. `source`, `target` [step]: √Σ J_i² over the tokens of
    the source, and of the target so far, J_i = ‖∂y_t/∂e_i‖_F of the output at step t to the embedding of token i.
    """

    model: str
    encoder: bool
    length: int
    mass: Float[Tensor, "layer step"]
    source: Float[Tensor, " step"]
    target: Float[Tensor, " step"]

    @property
    def share(self) -> Float[Tensor, " step"]:
        """The source's part of all that the output feels, source / √(source² + target²)."""
        return self.source / (self.source.square() + self.target.square()).sqrt()

    @property
    def exponent(self) -> float:
        """b of the mean mass ~ (S + t)^b by least squares, S tokens of source: -1 for uniform attention, 0 for a share that stays."""
        x = (self.length + torch.arange(self.mass.shape[1], dtype=torch.float64)).log()
        y, x = self.mass.double().mean(0).clamp(min=1e-300).log(), x - x.mean()
        return float((x * y).sum() / x.square().sum().clamp(min=1e-300))

    def to_frame(self) -> pd.DataFrame:
        """One row a step: model, step, mass (mean over layers), source, target, share."""
        import pandas as pd

        numbers = {"mass": self.mass.mean(0), "source": self.source, "target": self.target, "share": self.share}
        table = {"step": range(len(self.source)), **{k: v.tolist() for k, v in numbers.items()}}
        return pd.DataFrame({"model": self.model, **table})

    def plot(self, *others: SourceShare) -> go.Figure:
        """Attention mass and share of sensitivity over steps, beside other models."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for m in (self, *others):
            figure.add_scatter(y=m.mass.mean(0).tolist(), name=f"{m.model}: mass on the source", mode="lines+markers")
            line = {"dash": "dot"}
            figure.add_scatter(y=m.share.tolist(), name=f"{m.model}: share felt", mode="lines+markers", line=line)
        axes = {"xaxis": {"title": "step of the target"}, "yaxis": {"range": [0, 1.05]}}
        return figure.update_layout(title="What is left of the source", template="plotly_white", **axes)


@teaches
def source_share(
    model: Model, source: Sequence[int], target: Sequence[int], *, probes: int | None = None, seed: int = 0
) -> SourceShare:
    """s_t and the output's sensitivities at every step of a target of fixed tokens; step t has read t of them.

    An encoder reads `source`, its decoder its start token and the target; a decoder alone reads both in one row, so step
    0 is the last token of the source. `probes`, `seed`: as `sensitivity` takes them.
    Raises `WrongUse` for an empty source or target, and a decoder that is not causal.
    """
    if not source or not target:
        raise WrongUse(f"{len(source)} tokens of source and {len(target)} of target: give one of each at least.")
    steps = len(target)
    if prompts.has_encoder(model):
        inputs = model.inputs(torch.tensor([list(source)], device=model.device))
        written = torch.tensor([list(target)[:-1]], dtype=torch.long, device=model.device)
        inputs["decoder_input_ids"] = torch.cat([inputs["decoder_input_ids"], written], dim=1)
        roles = [n[:-2] for n in model.sites() if n.endswith("cross_attn.v")]
        if not roles:
            raise WrongUse(f"no cross-attention of {model.id} is proven.")
        mass, start, own = torch.ones(len(roles), steps), 0, "decoder.blocks.0.resid_pre"
        read = "encoder.blocks.0.resid_pre"
    else:
        prompts.check_causal(model)
        row = torch.tensor([[*source, *list(target)[:-1]]], device=model.device)
        inputs, start = model.inputs(row), len(source) - 1
        mass = _mass(model, inputs, len(source), steps)
        read = own = prompts.stream(model)[0]
    felt = []
    for t in range(steps):
        found = sensitivity(
            model, inputs, list(dict.fromkeys([read, own])), pos=start + t, probes=probes, seed=seed
        ).norms
        parts = (
            (found[read][: len(source)], found[read][len(source) : start + t + 1])
            if read == own
            else (found[read], found[own][: t + 1])
        )
        felt.append([float(p.double().square().sum().sqrt()) for p in parts])
    both = torch.tensor(felt, dtype=torch.float64)
    return SourceShare(model.id, read != own, len(source), mass, both[:, 0], both[:, 1])


def _mass(model: Model, inputs: dict[str, Any], source: int, steps: int) -> Float[Tensor, "layer step"]:
    """s_t, the mean over heads: queries at the last token of the source and at the target's."""
    roles = attentions(model)
    patterns = Patterns(model, inputs, roles)
    mass = torch.zeros(len(roles), steps)
    for layer, role in enumerate(roles):
        heads = patterns.heads(role)
        for t in range(steps):
            r = torch.zeros(patterns.length, heads, 1)
            r[source - 1 + t] = 1 / heads
            mass[layer, t] = patterns.back(role, r)[:source].sum()
    return mass


# ---------------------------------------------------------------- the exact rewriting


@dataclass(frozen=True, eq=False)
class Rewritten:
    """A decoder as encoder and decoder: `error`, the largest difference of its logits on the target, relative to them; `mixture`,
    the same of every head's output from s · cross + (1 - s) · self; `share` [layer, head, step], s.
    """

    error: float
    mixture: float
    share: Float[Tensor, "layer head step"]

    def to_frame(self) -> pd.DataFrame:
        """One row a layer, head and step: layer, head, step, share."""
        import pandas as pd

        index = torch.cartesian_prod(*(torch.arange(n) for n in self.share.shape)).reshape(-1, 3)
        table = dict(zip(("layer", "head", "step"), index.T.tolist(), strict=True))
        return pd.DataFrame(table | {"share": self.share.flatten().tolist()})

    def plot(self) -> go.Figure:
        """Steps across, layers upwards, the mean share over heads."""
        import plotly.graph_objects as go

        heat = go.Heatmap(
            z=self.share.mean(1).tolist(), zmin=0, zmax=1, colorscale="Blues", colorbar={"title": "share"}
        )
        axes = {"xaxis": {"title": "step"}, "yaxis": {"title": "layer"}}
        return go.Figure(heat).update_layout(
            title="Share of the source in the mixture", template="plotly_white", **axes
        )


@teaches
@torch.no_grad()
def rewritten(model: Model, source: Sequence[int], target: Sequence[int]) -> Rewritten:
    """A language model is an encoder-decoder with shared weights: an encoder that looks back only reads the source, layer by
    layer, and a decoder reads the target with attention over the keys of both; its logits are the model's own.

    The encoder hands on its keys and values (the model's own cache). In every head z_t = s_t cross_t + (1 - s_t) self_t, with
    softmaxes over the source alone and over the target alone. Raises `WrongUse` for a model that is not causal, that
    takes no cache, and for an empty source or target.
    """
    prompts.check_causal(model)
    if not source or not target:
        raise WrongUse(f"{len(source)} tokens of source and {len(target)} of target: give one of each at least.")
    ids = torch.tensor([[*source, *target]], device=model.device)
    whole = model.module(ids, use_cache=False).logits[:, len(source) :]
    encoded = model.module(ids[:, : len(source)], use_cache=True)
    cache = getattr(encoded, "past_key_values", None)
    if cache is None:
        raise WrongUse(f"{model.id} hands on no keys and values (past_key_values), so no decoder can read them.")
    decoded = model.module(ids[:, len(source) :], past_key_values=cache, use_cache=True).logits
    error = float((decoded - whole).double().abs().max() / whole.double().abs().max())
    return Rewritten(error, *_mixtures(model, ids, len(source)))


def _mixtures(model: Model, ids: Tensor, source: int) -> tuple[float, Float[Tensor, "layer head step"]]:
    """(The largest relative error of z = s cross + (1 - s) self over layers and heads, s)."""
    far, shares = 0.0, []
    for role in attentions(model):
        cache = model.record(ids, [f"{role}.{n}" for n in ("scores", "pattern", "v", "z")])
        scores, pattern, v, z = (cache[f"{role}.{n}"][0] for n in ("scores", "pattern", "v", "z"))
        scores, pattern = scores[:, source:], pattern[:, source:]
        v = v.repeat_interleave(z.shape[1] // v.shape[1], 1).transpose(0, 1).to(scores)
        s, rest = (pattern[..., part].sum(-1, keepdim=True) for part in (slice(source), slice(source, None)))
        cross = torch.softmax(scores[..., :source], -1).nan_to_num(0.0) @ v[:, :source]
        own = torch.softmax(scores[..., source:], -1) @ v[:, source:]
        made = (s * cross + rest * own).transpose(0, 1)
        far = max(far, float((made - z[source:]).abs().max() / z.abs().max()))
        shares.append(s[..., 0].cpu())
    return far, torch.stack(shares)
