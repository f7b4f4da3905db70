"""What a lens saw: how a prediction forms from site to site, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interp.errors import WrongUse, nearest
from interp.model.pictures import shown

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Bool, Float, Int

    from interp.kernels.lens_statistics import Found

VALUES = {
    "prob": "probability of the likeliest token",
    "entropy": "entropy, in nats",
    "kl_forward": "KL(model ‖ lens), in nats",
    "kl_backward": "KL(lens ‖ model), in nats",
    "cross_entropy": "cross-entropy of the token that comes next, in nats",
    "rank": "rank of what the model itself ends with",
    "agreement": "whether the likeliest token is the model's own",
}


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The distributions that a lens of a `kind` reads at `sites`, one for every real token, beside the model's own last one.

    Tokens stand prompt after prompt: token i is the `pos[i]`-th real one of prompt `prompt[i]`. `top` holds the k
    likeliest, and of the tokens asked about (`chosen`) there is `chosen_log_prob` and `chosen_rank`. A rank is 1 + how
    many others score higher. Logarithms are natural. `words` names ids.
    """

    kind: str
    sites: tuple[str, ...]
    ids: Int[Tensor, " token"] | None  # None: the input is no text
    prompt: Int[Tensor, " token"]
    pos: Int[Tensor, " token"]
    top: Int[Tensor, "site token k"]
    top_log_prob: Float[Tensor, "site token k"]
    entropy: Float[Tensor, "site token"]
    kl_forward: Float[Tensor, "site token"]
    kl_backward: Float[Tensor, "site token"]
    log_prob: Float[Tensor, "site token asked"]  # of the model's own likeliest, of what comes next, of the chosen
    ranks: Int[Tensor, "site token asked"]
    chosen: tuple[int, ...]
    finals: Int[
        Tensor, "site token"
    ]  # the model's own likeliest where the site is compared; -1: nothing to compare with
    words: Callable[[Sequence[int]], list[str]]

    @property
    def prob(self) -> Float[Tensor, "site token"]:
        """Probability of the likeliest token."""
        return self.top_log_prob[..., 0].exp()

    @property
    def rank(self) -> Int[Tensor, "site token"]:
        """Rank of the token that the model itself ends with."""
        return self.ranks[..., 0]

    @property
    def agreement(self) -> Bool[Tensor, "site token"]:
        """Whether the likeliest token is the one that the model itself ends with."""
        return self.top[..., 0] == self.finals

    @property
    def final(self) -> Int[Tensor, " token"]:
        """The token that the model itself ends with."""
        return self.finals[-1]

    @property
    def cross_entropy(self) -> Float[Tensor, "site token"]:
        """-log p of the next token (of the token itself, if the model looks both ways); NaN where none is known."""
        return -self.log_prob[..., 1]

    @property
    def next_rank(self) -> Int[Tensor, "site token"]:
        """Rank of that token; 0 where none is known."""
        return self.ranks[..., 1]

    @property
    def chosen_log_prob(self) -> Float[Tensor, "site token chosen"]:
        """log p of the tokens asked about."""
        return self.log_prob[..., 2:]

    @property
    def chosen_rank(self) -> Int[Tensor, "site token chosen"]:
        """Ranks of the tokens asked about."""
        return self.ranks[..., 2:]

    @property
    def tokens(self) -> list[str]:
        """Every token as text, or its place where the input is no text."""
        return [str(p) for p in self.pos.tolist()] if self.ids is None else self.words(self.ids.tolist())

    def of(self, prompt: int) -> Trajectory:
        """One prompt's part. Raises `WrongUse` if there is no such prompt."""
        keep = self.prompt == prompt
        if not bool(keep.any()):
            raise WrongUse(f"there is no prompt {prompt}: they are numbered from 0 to {int(self.prompt.max())}.")
        return self.at(keep)

    def at(self, tokens: Any) -> Trajectory:
        """Some of the tokens: a slice, a mask or places."""
        flat = {n: getattr(self, n)[tokens] for n in ("prompt", "pos")}
        names = ("top", "top_log_prob", "entropy", "kl_forward", "kl_backward", "log_prob", "ranks", "finals")
        deep = {n: getattr(self, n)[:, tokens] for n in names}
        return replace(self, ids=None if self.ids is None else self.ids[tokens], **flat, **deep)

    def to_frame(self) -> pd.DataFrame:
        """One row a site and token: site, prompt, pos, token, top, prob, entropy, kl_forward, kl_backward, cross_entropy,
        rank, agreement, and for each chosen token "log p(…)" and "rank(…)".
        """
        import pandas as pd

        s, n = self.entropy.shape
        rows: dict[str, Any] = {"site": [site for site in self.sites for _ in range(n)]}
        rows |= {"prompt": self.prompt.tolist() * s, "pos": self.pos.tolist() * s, "token": self.tokens * s}
        rows["top"] = self.words(self.top[..., 0].flatten().tolist())
        rows |= {name: getattr(self, name).flatten().tolist() for name in VALUES}
        for i, word in enumerate(self.words(self.chosen)):
            rows[f"log p({word})"] = self.chosen_log_prob[..., i].flatten().tolist()
            rows[f"rank({word})"] = self.chosen_rank[..., i].flatten().tolist()
        return pd.DataFrame(rows)

    def plot(self, value: str = "entropy", prompt: int = 0, view: str = "grid") -> go.Figure:
        """One prompt. "grid": tokens across, sites upwards, the likeliest token in each cell, the k likeliest on hover,
        coloured by `value`, one of `VALUES`; "lines": `value` from site to site, a line for every token.

        Raises `WrongUse` for another view or value, or a prompt that is not there.
        """
        if value not in VALUES:
            raise WrongUse(
                f"{value!r} is no value of a trajectory.{nearest(value, VALUES)} It has: {', '.join(VALUES)}."
            )
        if view not in ("grid", "lines"):
            raise WrongUse(f"view={view!r} is neither 'grid' nor 'lines'.")
        return (_grid if view == "grid" else _lines)(self.of(prompt), value)


def trajectory(found: Found, **about: Any) -> Trajectory:
    """The statistics of each site's tokens as one `Trajectory`, on the CPU."""
    _, *others, rank = (t.cpu() for t in found)
    return Trajectory(**about | dict(zip(found._fields[1:-1], others, strict=True)), ranks=rank)


# ---------------------------------------------------------------- the pictures

SHORT = 10  # characters of a token in a cell


def short_names(sites: Sequence[str]) -> list[str]:
    """Sites without the stack that they all belong to, and without `blocks.`."""
    stacks = {s.partition("blocks.")[0] for s in sites}
    shared = stacks.pop() if len(stacks) == 1 and all("blocks." in s for s in sites) else ""
    return [s.removeprefix(shared).replace("blocks.", "") for s in sites]


def _columns(t: Trajectory) -> list[str]:
    return [f"{p} {shown(w)}" if t.ids is not None else w for p, w in zip(t.pos.tolist(), t.tokens, strict=True)]


def _told(t: Trajectory) -> list[list[str]]:
    """For every cell the k likeliest tokens and the numbers, one a line."""
    cells = []
    for s in range(len(t.sites)):
        row = []
        for i in range(len(t.pos)):
            words = map(shown, t.words(t.top[s, i].tolist()))
            best = [f"{p:.3f}  {w}" for w, p in zip(words, t.top_log_prob[s, i].exp().tolist(), strict=True)]
            numbers = (
                f"entropy {t.entropy[s, i]:.2f}, KL {t.kl_forward[s, i]:.2f}, rank of the model's own {t.rank[s, i]}"
            )
            row.append("<br>".join([*best, numbers]))
        cells.append(row)
    return cells


def _grid(t: Trajectory, value: str) -> go.Figure:
    import plotly.graph_objects as go

    z = getattr(t, value).double()
    z = z.log10() if value == "rank" else z
    texts = [[shown(w)[:SHORT] for w in t.words(row)] for row in t.top[..., 0].tolist()]
    bar = {"title": {"text": ("log₁₀ of the " if value == "rank" else "") + VALUES[value], "side": "right"}}
    scale = "Blues_r" if value in ("entropy", "kl_forward", "kl_backward", "cross_entropy", "rank") else "Blues"
    heat = go.Heatmap(z=z, x=_columns(t), y=short_names(t.sites), text=texts, texttemplate="%{text}", colorscale=scale)
    heat.update(customdata=_told(t), colorbar=bar, hovertemplate="%{y}, %{x}<br>%{customdata}<extra></extra>")
    size = {"width": max(520, 170 + 74 * len(t.pos)), "height": max(300, 130 + 24 * len(t.sites))}
    title = f"{t.kind[:1].upper()}{t.kind[1:]} lens: the likeliest token at each site"
    return go.Figure(heat).update_layout(title=title, template="plotly_white", xaxis={"tickangle": -45}, **size)


def _lines(t: Trajectory, value: str) -> go.Figure:
    import plotly.graph_objects as go

    figure = go.Figure()
    for i, name in enumerate(_columns(t)):
        figure.add_scatter(x=short_names(t.sites), y=getattr(t, value)[:, i].double(), name=name, mode="lines+markers")
    axis = {"title": VALUES[value], "type": "log" if value == "rank" else "linear"}
    title = f"{t.kind[:1].upper()}{t.kind[1:]} lens, from site to site"
    return figure.update_layout(title=title, template="plotly_white", yaxis=axis, xaxis={"title": "site"})
