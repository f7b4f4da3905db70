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
from probes.schemes import SCHEMES, Layer, alternating, from_first, perturbed, ratios, scheme_curve
from probes.sinks import mean_spread, sinks
from probes.source import rewritten, source_share

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

GLASSES = "arXiv:2406.04267"  # Transformers need glasses!
ROUND = "arXiv:2410.06205"  # Round and Round We Go!
FIRST = "arXiv:2504.02732"  # Why do LLMs attend to the first token?
RED = "arXiv:2304.04052"  # Decoder-Only or Encoder-Decoder?
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
        f"{slopes}. Sinusoids and rotary positions fall only as averages over more tokens do. ALiBi at slope 0.5 looks at its last "
        "few tokens however long the text, so it does not shrink.",
        all(FALLS[0] < c.slope < FALLS[1] for c in others),
        none.plot(*others),
    )
    long = (400, 2000, 20000)
    near, far = [perturbed(n, seed=seed) for n in long], [alternating(n) for n in long]
    yield Claim(
        "Softmaxes whose logits come together do so themselves; where the logits stay apart they need not.",
        f"{GLASSES}, lemmas B.1, B.2 and B.4, figure 9",
        f"200 logits moved by up to 0.1: {near[0]:.4f} apart at {long[0]}, {near[-1]:.5f} at {long[-1]}. Logits 1 0 1 0 … "
        f"against 0 1 0 1 …: {far[-1]:.5f} at every even n.",
        near[-1] < near[0] / 4 and abs(far[0] - far[-1]) < 1e-9,
        _lines(long, {"200 logits moved": near, "alternating": far}, "Σ|softmax − softmax|"),
    )
    depth = (1, 5, 25, 100, 400)
    share = [from_first(64, layers) for layers in depth]
    yield Claim(
        "With depth, all that arrives at the last token comes from the first.",
        f"{GLASSES}, B.8",
        f"Uniform attention over 64 tokens, the entry of [(Λ + I)/2]^L: {share[1]:.3f} for 5 layers, {share[-1]:.6f} for 400.",
        share[-1] > 1 - 1e-6,
        _lines(depth, {"from the first of 64 tokens": share}, "[(Λ + I)/2]^L", "L"),
    )
    times = (2, 8, 32)
    apart = [ratios(n, seed=seed) for n in times]
    yield Claim(
        "Without positions and without a mask nothing can be counted: 10 and 1100 are represented alike.",
        f"{GLASSES}, theorem 6.1",
        f"Each token {times[-1]} times: outputs differ by {apart[-1]:.1e}.",
        max(apart) < 1e-12,
        _lines(times, {"‖o(10) − o(11…00…)‖∞": [a or 1e-17 for a in apart]}, "Only ratios are known", "times"),
    )
    found = decay(range(0, 256, 4), at=100, seed=seed)
    peak, most = found.distance[int(found.peaked.argmax())], float((found.mean / found.error).abs().max())
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
    """Claims about a trained model: collapse, the remedy, the bound, rollout, rotary frequencies, sinks, the source."""
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
    yield from _source(model, text)


def _flow(model: Model, text: Sequence[int]) -> Iterator[Claim]:
    bound = path_bound(model, list(text))
    loose = bound.looseness.iloc[0]
    yield Claim(
        "Sums over attention paths bound what the last token feels of another.",
        f"{GLASSES}, theorem 5.1",
        f"{model.id}, patterns held: the bound is {loose['least']:.2g} to {loose['most']:.2g} times the norm, {loose['mean']:.2g} in "
        f"the mean; with moving patterns {loose['exact_above']:.0%} of norms lie above it.",
        bool(loose["least"] >= 1 - 1e-4),
        bound.plot(),
    )
    made = paths(model, list(text))
    first = next(iter(made.rollout.values()))
    yield Claim(
        "The same in a trained model.",
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
    if len(ways) == 2:
        kept, lost = (list(mean_spread(model, windows, context=context, bos=bos).values())[-1] for bos in ways)
        yield Claim(
            "Without the start token a changed token changes later ones more.",
            FIRST,
            f"{model.id}: they change by {kept:.3f} of their length with it, by {lost:.3f} without.",
            lost > kept,
            found[1].plot(),
        )


def _source(model: Model, text: Sequence[int]) -> Iterator[Claim]:
    half = len(text) // 2
    source, target = list(text[:half]), list(text[half:])
    found = source_share(model, source, target, probes=16)
    mass = found.mass.mean(0)
    yield Claim(
        "A decoder alone gives its source less attention the more it writes.",
        RED,
        f"{model.id}, {half} tokens read: a share of {float(mass[0]):.2f} at the first step, {float(mass[-1]):.2f} at step "
        f"{len(target)}, (S + t)^{found.exponent:.2f}.",
        bool(mass[-1] < mass[0]),
        found.plot(),
    )
    made = rewritten(model, source, target)
    yield Claim(
        "A decoder alone is an encoder that looks back only and a decoder over its keys and its own.",
        RED,
        f"{model.id} in {str(model.dtype).removeprefix('torch.')}: logits off by {made.error:.1e} of the largest, what heads "
        f"make by {made.mixture:.1e}.",
        made.error < 1e-4,
        made.plot(),
    )


def _lines(x: Sequence[int], curves: dict[str, list[float]], title: str, along: str = "n") -> go.Figure:
    import plotly.graph_objects as go

    figure = go.Figure([go.Scatter(x=list(x), y=y, name=name, mode="lines+markers") for name, y in curves.items()])
    axes = {"xaxis": {"title": along, "type": "log"}, "yaxis": {"type": "log"}}
    return figure.update_layout(title=title, template="plotly_white", **axes)
