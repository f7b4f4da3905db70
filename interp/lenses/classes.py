"""Class-embedding lens: what every token of a picture says of the classes, layer by layer, through the classifier's own head.

p = head(norm(x)) in R^C for the state of any token, or for what a sublayer writes. Where the head averages tokens, what a
sublayer writes first passes the norm of its sublayer, as in the authors' code.
Source: Vilas, Schaumlöffel and Roig 2023 (arXiv:2310.18969, "Analyzing Vision Transformers for Image Classification in Class
Embedding Space").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import WrongUse, nearest
from interp.lenses.lens import Lens
from interp.model.edits import Replace
from interp.model.inputs import probe_inputs
from interp.model.model import Model, teaches

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Float, Int

Label = int | str | Sequence[int | str] | None  # of each picture; None: what the model itself says
TOP = 5  # memories looked at, as the authors do


@dataclass(frozen=True)
class Picture:
    """How tokens lie: `first` of them are no part of the picture (a class token), the others stand row by row."""

    first: int
    rows: int
    columns: int

    def grid(self, x: Float[Tensor, "... pos"]) -> Float[Tensor, "... row column"]:
        """The picture's part, in its shape."""
        return x[..., self.first :].unflatten(-1, (self.rows, self.columns))


def picture_of(pixels: Float[Tensor, "batch channel height width"], patch: int, tokens: int) -> Picture:
    """The picture that `tokens` make, cut into patches whose sides double with each stage that merges four into one.

    Raises `WrongUse` if no such cut fits.
    """
    rows, columns = pixels.shape[-2] // patch, pixels.shape[-1] // patch
    while rows * columns > tokens and rows > 1 and columns > 1:
        rows, columns = rows // 2, columns // 2
    first = tokens - rows * columns
    if not 0 <= first <= 8:  # a class token, one for a teacher, some registers
        raise WrongUse(f"{tokens} tokens make no picture of {tuple(pixels.shape[-2:])} pixels in patches of {patch}.")
    return Picture(first, rows, columns)


@dataclass(frozen=True, eq=False)
class Evolution:
    """Of every token at every row: the class's logit, its rank (1 = highest) among `classes`, and the likeliest class."""

    rows: tuple[str, ...]
    picture: Picture
    labels: Int[Tensor, " batch"]
    classes: int
    logit: Float[Tensor, "row batch pos"]
    rank: Int[Tensor, "row batch pos"]
    top: Int[Tensor, "row batch pos"]

    @property
    def identifiability(self) -> Float[Tensor, "row batch pos"]:
        """1 - (rank - 1) / C: 1 where the class is the likeliest, near 0 where it is the last."""
        return 1 - (self.rank - 1) / self.classes

    @property
    def rate(self) -> Float[Tensor, " row"]:
        """Share of the picture's tokens whose likeliest class is the class: about 1/C by chance."""
        return (self.rank[..., self.picture.first :] == 1).double().mean((1, 2))

    @property
    def change_rate(self) -> Float[Tensor, "row-1"]:
        """Share of the picture's tokens whose logit of the class rises from each row to the next."""
        return (self.logit[..., self.picture.first :].diff(dim=0) > 0).double().mean((1, 2))

    def to_frame(self) -> pd.DataFrame:
        """One row a row: rate, mean identifiability of the picture's tokens and of the first one (NaN without a class token)."""
        import pandas as pd

        seen, first = self.identifiability, self.picture.first
        return pd.DataFrame(
            {
                "site": self.rows,
                "rate": self.rate.tolist(),
                "tokens": seen[..., first:].mean((1, 2)).tolist(),
                "class token": seen[..., 0].mean(1).tolist() if first else [float("nan")] * len(self.rows),
                "change rate": [float("nan"), *self.change_rate.tolist()],
            }
        )

    def plot(self, batch: int = 0) -> go.Figure:
        """One picture: its tokens' identifiability, in the picture's shape, row after row."""
        from interp.lenses.trajectory import short_names

        names = short_names(self.rows)
        return _pictures(
            self.picture.grid(self.identifiability[:, batch]), names, "identifiability of the class", (0, 1)
        )


class ClassLens(Lens):
    """The logit lens of an image classifier, token by token, and the measures of its authors.

    Raises `WrongUse` for a model that has a row of logits for every position, or takes no pictures.
    """

    kind = "class"

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self._example = probe_inputs(model.module, batch=1, seed=7)
        pixels = self._example.get("pixel_values")
        if self.head.per_position or pixels is None or pixels.ndim != 4:
            raise WrongUse(
                f"{model.id} is no classifier of pictures: the class lens reads ViT, DeiT, BEiT, Swin and their like."
            )
        self.pooled = self._pools()

    def _pools(self) -> bool:
        """Whether the head reads the picture's tokens, not the first one or two alone: whether changing them changes it."""
        with torch.no_grad():
            onward, *_ = self.head._carrier
            x = self.model.record(self._example, self.head.last)[self.head.last]
            other = x.clone()
            other[:, 2:] = other[:, 2:].flip(2)
            return not torch.allclose(onward(x, self._example), onward(other, self._example), atol=1e-6)

    def picture(self, inputs: dict[str, Any], tokens: int) -> Picture:
        """How the tokens of these inputs lie. Raises `WrongUse` if the config names no patch size, or it does not fit."""
        patch = getattr(self.model.config, "patch_size", None)
        patch = patch[0] if isinstance(patch, (list, tuple)) else patch
        if not isinstance(patch, int):
            raise WrongUse(f"the config of {self.model.id} has no patch_size, so how its tokens lie is not known.")
        return picture_of(inputs["pixel_values"], patch, tokens)

    def states(
        self, inputs: dict[str, Any], names: Sequence[str]
    ) -> tuple[Float[Tensor, "batch pos d"], dict[str, Float[Tensor, "batch pos d"]]]:
        """As any lens; where the head averages, writes have passed the norm of their sublayer."""
        last, states = super().states(inputs, names)
        if not self.pooled:
            return last, states
        return last, {row: self._norm(row)(x) if row.endswith(".write") else x for row, x in states.items()}

    def _norm(self, row: str) -> Callable[[Tensor], Tensor]:
        """The norm that the sublayer of a write reads through. Raises `WrongUse` if it is not known."""
        site = self.model.binding.sites.get(f"{row.removesuffix('write')}norm.scale")
        if site is None:
            raise WrongUse(
                f"the head of {self.model.id} averages tokens, so {row!r} is read through its sublayer's norm: it has none."
            )
        return self.model.module.get_submodule(site.place.path)

    # ------------------------------------------------------------ the measures

    @teaches
    @torch.no_grad()
    def evolution(self, x: Any, sites: str | Sequence[str] | None = None, *, label: Label = None) -> Evolution:
        """What each token says of the class at each site, by default the stream before the first block and after each.

        `label`: a class (its number or name) for all pictures, or one for each; None: the model's own answer. Raises
        `WrongUse` for a class that is not there, and as the lens does for sites.
        """
        rows, inputs = self.readable(sites), self.inputs(x)
        last, states = self.states(inputs, rows)
        labels = self.labels(inputs, label)
        logit, rank, top = [], [], []
        for row in rows:
            scores = self.logits(row, states[row].flatten(0, 1)).unflatten(0, last.shape[:2])
            own = scores.gather(2, labels[:, None, None].expand(*last.shape[:2], 1))
            logit.append(own[..., 0])
            rank.append(1 + (scores > own).sum(2))
            top.append(scores.argmax(2))
        about = (tuple(rows), self.picture(inputs, last.shape[1]), labels.cpu(), self.head.width)
        return Evolution(*about, *(torch.stack(t).cpu() for t in (logit, rank, top)))

    def labels(self, inputs: dict[str, Any], label: Label = None) -> Int[Tensor, " batch"]:
        """The class meant for each picture."""
        own = self.model.record(inputs, "logits")["logits"].argmax(-1)
        if label is None:
            return own
        given = [self._class(c) for c in ([label] * len(own) if isinstance(label, (int, str)) else label)]
        if len(given) != len(own):
            raise WrongUse(f"{len(given)} classes for {len(own)} pictures: give one for all, or one for each.")
        return torch.tensor(given, device=own.device)

    def _class(self, name: int | str) -> int:
        names = getattr(self.model.config, "id2label", None) or {}
        known = {v: int(i) for i, v in names.items()}
        if isinstance(name, str) and name not in known:
            raise WrongUse(f"{self.model.id} has no class {name!r}.{nearest(name, known)}")
        found = known[name] if isinstance(name, str) else name
        if not 0 <= found < self.head.width:
            raise WrongUse(f"class {found} is not there: classes run from 0 to {self.head.width - 1}.")
        return found

    def updates(self, x: Any, *, label: Label = None) -> pd.DataFrame:
        """Categorical updates, one row a block, shares of the picture's tokens.

        `attn` and `mlp` "raise": the class's logit of what the sublayer writes is above that of the state the block
        receives. "is": the likeliest class after the block is that of the write, or ("before") of the state received; "new":
        none of the three, a composition.
        """
        import pandas as pd

        prefix, count = self.head.stack.prefix, len(self.head.stack.blocks)
        parts = {"before": "resid_pre", "attn": "attn.write", "mlp": "mlp.write", "after": "resid_post"}
        names = {(i, p): f"{prefix}blocks.{i}.{s}" for i in range(count) for p, s in parts.items()}
        seen = self.evolution(x, list(dict.fromkeys(names.values())), label=label)
        at = {key: seen.rows.index(row) for key, row in names.items()}
        first, table = seen.picture.first, []
        for i in range(count):
            logit, top = ({p: t[at[i, p]][:, first:] for p in parts} for t in (seen.logit, seen.top))
            raised = {f"{p} raises": (logit[p] > logit["before"]).double().mean() for p in ("attn", "mlp")}
            same = {p: top[p] == top["after"] for p in ("attn", "mlp", "before")}
            new = ~(same["attn"] | same["mlp"] | same["before"])
            shares = {f"is {p}": s.double().mean() for p, s in same.items()} | {"new": new.double().mean()}
            table.append({"block": i} | {name: float(v) for name, v in (raised | shares).items()})
        return pd.DataFrame(table)

    @torch.no_grad()
    def agreement(self, weight: str) -> Float[Tensor, "class value"]:
        """cos(head row of a class, value vector): P = E W_out, both of unit length; `weight` as "blocks.3.mlp.W_out" or
        "blocks.3.attn.W_O". Compare `.amax(1)` with that of a random model (the authors: Wilcoxon's test).

        Raises `WrongUse` where the head is no one matrix from the stream to the classes.
        """
        head, values = self.model.weights["W_U"].T, self.model.weights[weight].flatten(0, -2)
        if head.shape[1] != values.shape[1]:
            raise WrongUse(
                f"the head of {self.model.id} reads {head.shape[1]} numbers and {weight} writes {values.shape[1]}: they share no space."
            )
        return torch.nn.functional.normalize(head, dim=1) @ torch.nn.functional.normalize(values, dim=1).T

    def key_value_agreement(self, x: Any, weight: str, *, label: Label = None) -> Float[Tensor, ""]:
        """Share of the picture's tokens for which one of the 5 largest coefficients meets one of the 5 values that agree most
        with the class. Coefficients: `mlp.post`, or every head's z. The baseline is a random class.
        """
        site = weight.replace("mlp.W_out", "mlp.post").replace("attn.W_O", "attn.z")
        inputs = self.inputs(x)
        coefficients = self.model.record(inputs, site)[site].flatten(2)
        best = self.agreement(weight)[self.labels(inputs, label)].topk(TOP).indices
        used = coefficients[:, self.picture(inputs, coefficients.shape[1]).first :].topk(TOP).indices
        return (used[..., None] == best[:, None, None]).any(-1).any(-1).double().mean()

    def importance(self, x: Any, *, label: Label = None, batch: int | None = None) -> Importance:
        """How much the class's probability falls when each token of one picture is taken away from every other token.

        No query looks at it any more (-∞ in the scores of all blocks), so to a head that reads the class token it is gone,
        exactly. Raises `WrongUse` for a head that averages tokens, and for attention within windows.
        """
        inputs = self.inputs(x)
        self._check_all("importance by taking tokens away")
        last = self.model.record(inputs, self.head.last)[self.head.last]
        picture, wanted = self.picture(inputs, last.shape[1]), int(self.labels(inputs, label)[0])
        groups = [removed(self.model, [i]) for i in range(picture.first, last.shape[1])]
        metric: Callable[[Tensor], Tensor] = lambda logits: logits.softmax(-1)[:, wanted]  # noqa: E731
        swept = self.model.sweep(groups, inputs, metric, batch=batch)
        drop = swept.clean - swept.values
        return Importance(wanted, swept.clean, drop.unflatten(0, (picture.rows, picture.columns)))

    def _check_all(self, what: str) -> None:
        if self.pooled:
            raise WrongUse(
                f"{what} needs a head that reads the class token: that of {self.model.id} averages over the picture."
            )

    # ------------------------------------------------------------ perturbations of the attention

    def self_only(self, x: Any) -> list[Replace]:
        """Edits under which every token of the picture attends to itself alone; the class token attends as before."""
        first = self._first(x)

        def alone(pattern: Float[Tensor, "batch head query key"]) -> Tensor:
            new = pattern.clone()
            new[:, :, first:] = torch.eye(pattern.shape[-1], dtype=pattern.dtype, device=pattern.device)[first:]
            return new

        return [Replace(self._patterns, alone)]

    def no_class_token(self, x: Any) -> list[Replace]:
        """Edits under which no token of the picture attends to the class token; the rest is not scaled up."""
        first = self._first(x)

        def without(pattern: Float[Tensor, "batch head query key"]) -> Tensor:
            new = pattern.clone()
            new[:, :, first:, :first] = 0.0
            return new

        return [Replace(self._patterns, without)]

    @property
    def _patterns(self) -> str:
        return f"{self.head.stack.prefix}blocks.*.attn.pattern"

    def _first(self, x: Any) -> int:
        self._check_all("a perturbation around the class token")
        inputs = self.inputs(x)
        return self.picture(inputs, self.model.record(inputs, self.head.last)[self.head.last].shape[1]).first


@dataclass(frozen=True, eq=False)
class Importance:
    """What taking each token away costs: the fall of the class's probability, from `probability`."""

    label: int
    probability: float
    drop: Float[Tensor, "row column"]

    def to_frame(self) -> pd.DataFrame:
        """One row a token: row, column, drop."""
        import pandas as pd

        rows, columns = self.drop.shape
        places = [(r, c) for r in range(rows) for c in range(columns)]
        return pd.DataFrame([[r, c, float(self.drop[r, c])] for r, c in places], columns=["row", "column", "drop"])

    def plot(self) -> go.Figure:
        """The picture's tokens, by how much the class needs them."""
        most = float(self.drop.abs().max())
        return _pictures(self.drop[None], ["importance"], "fall of the probability", (-most, most), "RdBu_r")


def removed(model: Model, tokens: Sequence[int], prefix: str = "") -> list[Replace]:
    """Edits under which no query of any block sees these positions."""

    def hidden(scores: Float[Tensor, "batch head query key"]) -> Tensor:
        new = scores.clone()
        new[..., list(tokens)] = float("-inf")
        return new

    return [Replace(f"{prefix}blocks.*.attn.scores", hidden)]


def _pictures(
    grids: Float[Tensor, "n row column"],
    names: Sequence[str],
    title: str,
    ends: tuple[float, float],
    scale: str = "Blues",
) -> go.Figure:
    """Pictures side by side, on one scale, at most six in a line."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    across = min(6, len(names))
    down = -(-len(names) // across)
    figure = make_subplots(
        down, across, subplot_titles=list(names), horizontal_spacing=0.02, vertical_spacing=0.18 / down
    )
    for i, grid in enumerate(grids.double().cpu()):
        told = "row %{y}, column %{x}: %{z:.2f}<extra></extra>"
        heat = go.Heatmap(z=grid.numpy(), coloraxis="coloraxis", hovertemplate=told)
        figure.add_trace(heat, row=1 + i // across, col=1 + i % across)
    figure.update_xaxes(showticklabels=False, constrain="domain")
    figure.update_yaxes(showticklabels=False, autorange="reversed", scaleanchor="x", constrain="domain")
    size = {"width": max(320, 90 + 170 * across), "height": 110 + 190 * down}
    colour = {"colorscale": scale, "cmin": ends[0], "cmax": ends[1], "colorbar": {"thickness": 14}}
    return figure.update_layout(title=title, coloraxis=colour, template="plotly_white", margin={"t": 80}, **size)
