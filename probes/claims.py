"""What the papers claim, beside what is measured here, with a figure each; a claim that fails as stated has its counter-example."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from interp.model.model import Model
from probes.collapse import REMEDY, collapse_curve, family
from probes.paths import path_bound, paths
from probes.rotary import decay, usage
from probes.schemes import SCHEMES, Layer, alternating, scheme_curve
from probes.sinks import sinks

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

GLASSES = "arXiv:2406.04267"  # Transformers need glasses!
ROUND = "arXiv:2410.06205"  # Round and Round We Go!
FIRST = "arXiv:2504.02732"  # Why do LLMs attend to the first token?
FALLS = (-1.2, -0.8)  # exponents that count as falling like 1/n


@dataclass(frozen=True, eq=False)
class Claim:
    """What a source says, what was measured, and whether that agrees; None: it depends on the model, so the number is told."""

    said: str
    source: str
    measured: str
    holds: bool | None
    figure: go.Figure

    @property
    def verdict(self) -> str:
        """`holds` in words."""
        return {True: "holds", False: "does not hold as stated", None: "depends on the model"}[self.holds]


@dataclass(frozen=True, eq=False)
class Claims:
    """Claims in the order of the papers."""

    rows: tuple[Claim, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row a claim: said, source, measured, holds, verdict."""
        import pandas as pd

        names = ("said", "source", "measured", "holds", "verdict")
        return pd.DataFrame([[getattr(c, n) for n in names] for c in self.rows], columns=names)

    def plot(self, number: int = 0) -> go.Figure:
        """The figure of one claim."""
        return self.rows[number].figure


def constructed(lengths: Sequence[int] = (16, 64, 256, 1024, 4096), seed: int = 0) -> Iterator[Claim]:
    """Claims about one constructed layer; no model is needed."""
    curves = {s: scheme_curve(Layer(s), lengths, seed=seed) for s in SCHEMES}
    none, others = curves["none"], [c for s, c in curves.items() if s != "none"]
    yield Claim(
        "Without positions, a sequence and the same with its last token once more are represented alike as n grows.",
        f"{GLASSES}, theorem 4.2, figure 8",
        f"‖o_n − o*‖₁ falls as n^{none.slope:.2f}.",
        FALLS[0] < none.slope < FALLS[1],
        none.plot(),
    )
    slopes = ", ".join(f"{c.layer.scheme} n^{c.slope:.2f}" for c in others)
    yield Claim(
        "The same holds with positions, whose information decays with distance.",
        f"{GLASSES}, theorem 4.2, figure 10",
        f"{slopes}. ALiBi at slope 0.5 looks at its last few tokens however long the text, so it does not shrink.",
        all(FALLS[0] < c.slope < FALLS[1] for c in others),
        none.plot(*others),
    )
    far = [alternating(n) for n in lengths]
    yield Claim(
        "Attention over more tokens is less and less different: softmaxes of logits that differ come together.",
        f"{GLASSES}, lemmas B.1 and B.4",
        f"Only where the logits' difference goes to 0: 1 0 1 0 … against 0 1 0 1 … stay {far[-1]:.5f} apart at every n.",
        False,
        _line(lengths, far, "Σ|softmax − softmax| of alternating logits"),
    )
    found = decay(range(256), at=100, seed=seed)
    peak, most = int(found.peaked.argmax()), float((found.mean / found.error).abs().max())
    yield Claim(
        "Rotary logits decay with distance.",
        f"{ROUND}, against it",
        f"A key made for distance 100 has its largest logit at {peak}; Gaussian queries and keys have mean 0 at every "
        f"distance (within {most:.1f} errors).",
        False,
        found.plot(),
    )


def of_model(
    model: Model, text: Sequence[int], windows: Sequence[Sequence[int]], lengths: Sequence[int]
) -> Iterator[Claim]:
    """Claims about a trained model: collapse, the remedy, the bound, rollout, rotary frequencies, sinks."""
    curve, remedy = (collapse_curve(model, family(model, n), lengths) for n in ("repeat_last", REMEDY))
    at = curve.equal_at["bf16"]
    yield Claim(
        "In 16 bits the two become the same after 50 to 100 repeated tokens.",
        f"{GLASSES}, Gemma 7B in bf16",
        f"{model.id}: ‖·‖∞ from {curve.linf[0]:.2g} at {lengths[0]} to {curve.linf[-1]:.2g} at {lengths[-1]}; "
        + (f"the same bits in bf16 from {at}." if at else f"not the same bits in bf16 by {lengths[-1]}."),
        None,
        curve.plot(),
    )
    yield Claim(
        "Another token put in every third place keeps them apart.",
        GLASSES,
        f"{model.id} at {lengths[-1]}: {remedy.linf[-1]:.2g} with separators, {curve.linf[-1]:.2g} without.",
        remedy.linf[-1] > curve.linf[-1],
        curve.plot(remedy),
    )
    yield from _flow(model, text)
    yield from _rotary(model, text)
    yield from _sinks(model, windows)


def _flow(model: Model, text: Sequence[int]) -> Iterator[Claim]:
    bound = path_bound(model, list(text))
    loose = bound.looseness.iloc[0]
    yield Claim(
        "Sums over attention paths bound what the last token feels of another.",
        f"{GLASSES}, theorem 5.1",
        f"{model.id}, patterns held: the bound is {loose['least']:.1f} to {loose['most']:.1f} times the norm, {loose['mean']:.1f} in "
        f"the mean; with moving patterns {loose['exact_above']:.0%} of norms lie above it.",
        bool(loose["least"] >= 1 - 1e-4),
        bound.plot(),
    )
    made = paths(model, list(text))
    first = next(iter(made.rollout.values()))
    yield Claim(
        "With depth, all that arrives at the last token comes from the first.",
        f"{GLASSES}, B.8",
        f"{model.id}: over all its layers {float(first[0]):.1%} of the rollout comes from the first of {len(first)} tokens.",
        None,
        made.plot(),
    )


def _rotary(model: Model, text: Sequence[int]) -> Iterator[Claim]:
    found = usage(model, list(text))
    lengths = torch.stack([q.mean(0) for q in found.q.values()])
    half = lengths.shape[1] // 2
    fast, slow = float(lengths[:, :half].mean()), float(lengths[:, half:].mean())
    yield Claim(
        "The slow frequencies have the longest queries and keys.",
        f"{ROUND}, Gemma 7B",
        f"{model.id}: mean length of a pair of a query {slow:.2f} in the slower half, {fast:.2f} in the faster.",
        slow > fast,
        found.plot(),
    )


def _sinks(model: Model, windows: Sequence[Sequence[int]]) -> Iterator[Claim]:
    context = min(map(len, windows)) - 1
    ways = (True, False) if getattr(model.tokenizer, "bos_token_id", None) is not None else (None,)
    found = [sinks(model, windows, context=context, bos=bos) for bos in ways]
    names = {True: "with the start token", False: "without", None: "as it is"}
    told = "; ".join(
        f"{names[s.bos]} mass {float(s.mass.mean()):.2f}, {s.rate():.1%} of heads above 0.8" for s in found
    )
    yield Claim(
        "Heads of large models send most of their attention to the first token: 46 % of them in Llama 3.1 8B.",
        FIRST,
        f"{model.id}, windows of {context}: {told}.",
        None,
        found[0].plot(),
    )


def _line(x: Sequence[int], y: Sequence[float], title: str) -> go.Figure:
    import plotly.graph_objects as go

    axes = {"xaxis": {"title": "n", "type": "log"}, "yaxis": {"range": [0, 1.1 * max(y)]}}
    figure = go.Figure(go.Scatter(x=list(x), y=list(y), mode="lines+markers"))
    return figure.update_layout(title=title, template="plotly_white", **axes)
