"""Pictures of what a run recorded: attention head by head or token to token, and the stream layer by layer."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from interp.errors import WrongUse, check_keys
from interp.sites import canonical

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from jaxtyping import Float
    from torch import Tensor

    from interp.model.cache import Cache

HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}  # Unicode categories that show nothing, or turn text around
MARKS = {"\n": "↵", "\t": "⇥", "\r": "␍", "$": "&#36;"}  # a pair of $ would be typeset where MathJax is loaded
BLUES = [[0.0, "#ffffff"], [0.05, "#e4eef5"], [0.25, "#9cc3dd"], [0.6, "#3c7fae"], [1.0, "#0f3552"]]
INK = "31, 95, 139"
FAINT = 0.02  # weights below are not drawn as lines
MOST = 6_000_000  # weights in one picture: about 30 MB of page
TICKS, LETTERS = 18, 12  # labels an axis, letters a label
OWN = ("", "encoder.", "text.")  # stacks that read the recorded tokens


def shown(token: str) -> str:
    """A token as plotly shows it: every character visible, nothing taken for markup, no effect on text around it.

    A line break is ↵, a space that would not show ·, a control mark its code point; `<`, `&` and `$` are escaped.
    """
    if unicodedata.category(token[:1] or " ").startswith("M"):
        token = "◌" + token
    blank = token.isspace() or "  " in token
    return "".join(_character(c, blank) for c in token)


def _character(c: str, blank: bool) -> str:
    if c == " ":
        return "·" if blank else c
    if c in MARKS:
        return MARKS[c]
    return f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in HIDDEN else escape(c, quote=False)


@dataclass(frozen=True)
class Axis:
    """The real tokens along one side: which columns of the tensor they are, and their labels, whole and short."""

    columns: list[int]
    labels: list[str]
    short: list[str]

    @classmethod
    def of(cls, cache: Cache, row: int, size: int, own: bool) -> Axis:
        """`own`: this side holds the recorded tokens (not a decoder's, patches, or some positions only)."""
        if not own or cache.mask is None or cache.tokens is None or cache.mask.shape[1] != size:
            numbers = [str(i) for i in range(size)]
            return cls(list(range(size)), numbers, numbers)
        columns = cache.mask[row].nonzero().flatten().tolist()
        words = cache.words[row] if cache.words is not None else [f"[{i}]" for i in cache.tokens[row, columns].tolist()]
        short = [w if len(w) <= LETTERS else w[: LETTERS - 1] + "…" for w in words]
        return cls(columns, *([f"{i} {shown(w)}" for i, w in enumerate(text)] for text in (words, short)))

    def layout(self, **more: Any) -> dict[str, Any]:
        """A plotly axis with the labels thinned."""
        step = math.ceil(len(self.labels) / TICKS)
        ticks = {"tickvals": self.labels[::step], "ticktext": self.short[::step], "tickfont": {"size": 10}}
        frame = {"showline": True, "mirror": True, "linecolor": "#d8dce2"}
        return {"type": "category", "showgrid": False, "zeroline": False, **frame, **ticks, **more}


@dataclass(frozen=True)
class Attention:
    """One prompt's attention weights at one site, real tokens only."""

    site: str
    weights: Float[Tensor, "head query key"]
    queries: Axis
    keys: Axis


def plot_attention(cache: Cache, layer: int | str, row: int = 0, view: str = "heads") -> go.Figure:
    """Attention weights of every head of one layer for prompt `row`; rows sum to 1 (less what a sink takes).

    `layer`: a block's number, or the name of a pattern ("decoder.blocks.3.cross_attn.pattern"). `view="heads"`: one map
    [query, key] a head; `view="tokens"`: queries on the left, keys on the right, a line's opacity is the weight in steps
    of a tenth (under 0.02: no line), the head picked from a list. Raises `WrongUse` if the pattern was not recorded,
    for a row that is not there, or for more weights than a page can hold.
    """
    check_keys([view], ["heads", "tokens"], "the list of views")
    seen = _attention(cache, layer, row)
    return _heads(seen) if view == "heads" else _tokens(seen)


def _attention(cache: Cache, layer: int | str, row: int) -> Attention:
    site = canonical(f"blocks.{layer}.attn.pattern" if isinstance(layer, int) else layer)
    if not site.endswith(".pattern"):
        raise WrongUse(f"{layer!r} is no pattern: give a block's number, or a name as 'blocks.3.attn.pattern'.")
    whole = cache[site]
    _check_row(row, len(whole))
    prefix = site.split("blocks.")[0]
    crossed = ".cross_attn." in site
    queries = Axis.of(cache, row, whole.shape[2], prefix in OWN)
    keys = Axis.of(cache, row, whole.shape[3], prefix in OWN or crossed)
    if whole.shape[1] * len(queries.columns) * len(keys.columns) > MOST:
        raise WrongUse(
            f"{site!r} holds {whole.shape[1]} heads of {len(queries.columns)} × {len(keys.columns)} weights, too many for "
            f"a page: record a shorter prompt, or look at one head with cache.plot({site!r}, head=...)."
        )
    return Attention(site, whole[row].float().cpu()[:, queries.columns][:, :, keys.columns], queries, keys)


def _check_row(row: int, rows: int) -> None:
    if not -rows <= row < rows:
        raise WrongUse(f"row={row} is not there: the prompts are numbered 0 to {rows - 1}.")


def _heads(seen: Attention) -> go.Figure:
    """One small map a head, zoomed together."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    heads = len(seen.weights)
    across = min(4, heads)
    down = math.ceil(heads / across)
    titles = [f"head {h}" for h in range(heads)]
    gaps = {"horizontal_spacing": 0.02, "vertical_spacing": 0.28 / (down + 3)}
    figure = make_subplots(down, across, shared_xaxes="all", shared_yaxes="all", subplot_titles=titles, **gaps)
    for h, weights in enumerate(seen.weights):
        told = f"query %{{y}}<br>key %{{x}}<br>weight %{{z:.3f}}<extra>head {h}</extra>"
        heat = go.Heatmap(
            z=weights.numpy(), x=seen.keys.labels, y=seen.queries.labels, coloraxis="coloraxis", hovertemplate=told
        )
        figure.add_trace(heat, h // across + 1, h % across + 1)
    figure.update_xaxes(seen.keys.layout(tickangle=-90))
    figure.update_yaxes(seen.queries.layout(autorange="reversed"))
    figure.update_xaxes(title="key token", row=down)
    figure.update_yaxes(title="query token", col=1)
    bar = {"title": "weight", "thickness": 14}
    size = {"width": 1040, "height": 150 + 235 * down, "margin": {"l": 110, "r": 20, "t": 80, "b": 100}}
    return figure.update_layout(
        title=seen.site,
        template="plotly_white",
        coloraxis={"cmin": 0, "cmax": 1, "colorscale": BLUES, "colorbar": bar},
        **size,
    )


def _tokens(seen: Attention) -> go.Figure:
    """Queries left, keys right, lines between, one head at a time."""
    import plotly.graph_objects as go

    step = max(5.0, min(20.0, 1500 / max(len(seen.queries.labels), len(seen.keys.labels))))  # pixels a token
    traces, owners = [], []
    for h in range(len(seen.weights)):
        made = [*_lines(seen.weights[h], h == 0), *_ends(seen, h, math.ceil(14 / step))]
        traces += made
        owners += [h] * len(made)
    buttons = [
        {"label": f"head {h}", "method": "update", "args": [{"visible": [o == h for o in owners]}]}
        for h in range(len(seen.weights))
    ]
    menu = {"buttons": buttons, "x": 0.5, "y": 1.0, "xanchor": "center", "yanchor": "bottom", "pad": {"b": 14}}
    longest = max(len(seen.queries.labels), len(seen.keys.labels))
    axes = {
        "xaxis": {"visible": False, "range": [-0.45, 1.45], "fixedrange": True},
        "yaxis": {"visible": False, "range": [longest - 1 + 12 / step, -12 / step]},
    }
    heads = [
        {"text": text, "x": x, "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False}
        for text, x in (("<b>query token</b>", -0.1), ("<b>key token</b>", 1.1))
    ]
    size = {"width": 720, "height": 150 + step * longest, "margin": {"l": 20, "r": 20, "t": 120, "b": 30}}
    looks = {"title": seen.site, "template": "plotly_white", "showlegend": False, "hovermode": "closest"}
    return go.Figure(traces, {"annotations": heads, "updatemenus": [menu], **axes, **size, **looks})


def _lines(weights: Float[Tensor, "query key"], visible: bool) -> list[go.Scatter]:
    """A trace for every tenth of weight, its lines from (0, query) to (1, key)."""
    import plotly.graph_objects as go

    traces = []
    for tenth in range(1, 11):
        drawn = (weights >= FAINT) & (weights > (tenth - 1) / 10) & ((weights <= tenth / 10) | (tenth == 10))
        pairs = drawn.nonzero().tolist()
        if pairs:
            x = [0, 1, None] * len(pairs)
            y = [v for q, k in pairs for v in (q, k, None)]
            line = {"color": f"rgba({INK}, {tenth / 10})", "width": 2}
            traces.append(go.Scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", visible=visible))
    return traces


def _ends(seen: Attention, head: int, every: int) -> list[go.Scatter]:
    """Both columns of tokens; hovering one says where its weight goes, or who looks at it."""
    import plotly.graph_objects as go

    weights, traces = seen.weights[head], []
    sides = (
        (0, seen.queries, seen.keys, weights, "looks at", "left"),
        (1, seen.keys, seen.queries, weights.T, "is looked at by", "right"),
    )
    for x, mine, others, table, verb, side in sides:
        told = [_told(label, verb, others.labels, table[i]) for i, label in enumerate(mine.labels)]
        text = [label if i % every == 0 else "" for i, label in enumerate(mine.short)]
        traces.append(
            go.Scatter(
                x=[x] * len(told),
                y=list(range(len(told))),
                mode="markers+text",
                text=text,
                textposition=f"middle {side}",
                hovertext=told,
                hoverinfo="text",
                marker={"size": 5, "color": f"rgb({INK})"},
                visible=head == 0,
            )
        )
    return traces


def _told(label: str, verb: str, others: Sequence[str], weights: Float[Tensor, " other"]) -> str:
    top = weights.topk(min(6, len(weights)))
    lines = [f"{w:.3f}  {others[i]}" for w, i in zip(top.values.tolist(), top.indices.tolist(), strict=True) if w > 0]
    return "<br>".join([f"<b>{label}</b> {verb}", *lines])


# ---------------------------------------------------------------- the stream


def plot_stream(cache: Cache, row: int = 0, stack: str = "") -> go.Figure:
    """The stream of prompt `row` by layer and position: ‖x_l‖ above, cos(x_l, x_{l+1}) of neighbouring layers below.

    Shows every recorded `blocks.*.resid_post`, and `blocks.0.resid_pre` before them; norms in the model's own units,
    their colours on a logarithmic scale. `stack` picks one of several ("encoder", "decoder"). Raises `WrongUse` if fewer
    than two of them were recorded.
    """
    names, stream, axis = _stream(cache, row, stack)
    norms = stream.norm(dim=-1)
    alike = torch.nn.functional.cosine_similarity(stream[:-1], stream[1:], dim=-1)
    from plotly.subplots import make_subplots

    titles = ("norm, in the model's own units", "cosine similarity of neighbouring layers")
    figure = make_subplots(2, 1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.12)
    pairs = [f"{a} → {b}" for a, b in pairwise(names)]
    figure.add_trace(_norm_map(norms, names, axis), 1, 1)
    figure.add_trace(_cosine_map(alike, pairs, axis), 2, 1)
    figure.update_xaxes(axis.layout(tickangle=-90))
    figure.update_xaxes(title="token", row=2)
    figure.update_yaxes(title="stream, by block", type="category")
    width = max(640, min(1080, 240 + 22 * len(axis.labels)))
    return figure.update_layout(
        title=f"Residual stream{f', {stack}' if stack else ''}",
        template="plotly_white",
        width=width,
        height=260 + 2 * max(110, min(420, 26 * len(names))),
        margin={"l": 130, "r": 20, "t": 90, "b": 100},
    )


def _stream(cache: Cache, row: int, stack: str) -> tuple[list[str], Float[Tensor, "layer pos d"], Axis]:
    """Names, values at real tokens, and the tokens, of one stack's recorded stream."""
    wanted = re.compile(r"(.*?)blocks\.(?:(0)\.resid_pre|(\d+)\.resid_post)")
    found = {name: m.groups() for name in cache if (m := wanted.fullmatch(name))}
    stacks = dict.fromkeys(prefix.rstrip(".") for prefix, _, _ in found.values())
    if not stack and len(stacks) > 1:
        raise WrongUse(f"several stacks were recorded: add stack={' or stack='.join(map(repr, stacks))}.")
    stack = stack or next(iter(stacks), "")
    order = {
        name: -1 if post is None else int(post)
        for name, (prefix, _, post) in found.items()
        if prefix.rstrip(".") == stack
    }
    names = sorted(order, key=lambda name: order[name])
    if len(names) < 2:
        before = f"{stack}." if stack else ""
        raise WrongUse(
            f"a picture of the stream needs at least two of its layers; recorded: {', '.join(cache) or 'nothing'}. "
            f'Record them: record(x, ["{before}blocks.0.resid_pre", "{before}blocks.*.resid_post"]).'
        )
    _check_row(row, len(cache[names[0]]))
    prefix = f"{stack}." if stack else ""
    axis = Axis.of(cache, row, cache[names[0]].shape[1], prefix in OWN)
    stream = torch.stack([cache[name][row].double().cpu()[axis.columns] for name in names])
    return ["pre 0" if order[n] < 0 else f"post {order[n]}" for n in names], stream, axis


def _norm_map(norms: Float[Tensor, "layer pos"], names: list[str], axis: Axis) -> go.Heatmap:
    import plotly.graph_objects as go

    shade = norms.clamp(min=1e-30).log10()
    low, high = float(shade.min()), float(shade.max())
    powers = range(math.floor(low), math.ceil(high) + 1)
    steps = (1,) if high - low > 2 else (1, 2, 5)
    ticks = [v for p in powers for m in steps if low <= math.log10(v := m * 10.0**p) <= high]
    bar = {"title": "norm", "thickness": 14, "y": 0.78, "len": 0.46}
    bar |= {"tickvals": [math.log10(v) for v in ticks], "ticktext": [f"{v:g}" for v in ticks]}
    told = "%{y}<br>token %{x}<br>norm %{customdata:.4g}<extra></extra>"
    kind = {"colorscale": "Viridis", "colorbar": bar, "hovertemplate": told}
    return go.Heatmap(z=shade.numpy(), customdata=norms.numpy(), x=axis.labels, y=names, **kind)


def _cosine_map(alike: Float[Tensor, "pair pos"], pairs: list[str], axis: Axis) -> go.Heatmap:
    import plotly.graph_objects as go

    bar = {"title": "cosine", "thickness": 14, "y": 0.22, "len": 0.46}
    told = "%{y}<br>token %{x}<br>cosine %{z:.3f}<extra></extra>"
    kind = {"colorscale": "RdBu", "zmin": -1, "zmax": 1, "colorbar": bar, "hovertemplate": told}
    return go.Heatmap(z=alike.numpy(), x=axis.labels, y=pairs, **kind)
