"""Which weights inside a model's blocks are kept: as bits, on disk, as a model, and against chance."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from circuits.bigram.places import Place, places
from interp.errors import Failed, WrongUse
from interp.files import load_tensors, save_tensors

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Bool, Float

    from interp.model import Model

FORMAT = 1
DRAWS = 10_000


def model_hash(model: Model) -> str:
    """SHA-256 of all parameters in float32, which is exact for what is stored in 16 bits."""
    digest = hashlib.sha256()
    for _, p in model.module.named_parameters():
        digest.update(p.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Mask:
    """One bit for each entry of the matrices inside the blocks of one model: a subnetwork.

    bits: by parameter, in its shape; model, hash: the name and the `model_hash` of the model it belongs to; about: how it
    was made (JSON).
    """

    bits: dict[str, Bool[Tensor, "..."]]
    model: str
    hash: str
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        """How many entries are kept."""
        return sum(int(b.sum()) for b in self.bits.values())

    @property
    def size(self) -> int:
        """How many entries there are."""
        return sum(b.numel() for b in self.bits.values())

    # ------------------------------------------------------------ other masks

    def complement(self) -> Mask:
        """The rest of the model: what is left when the subnetwork is ablated."""
        return self._with({name: ~b for name, b in self.bits.items()})

    def random_like(self, model: Model, seed: int) -> Mask:
        """Random entries, as many in every matrix as this mask keeps there. Raises `WrongUse` for another model."""
        self.check(model)
        generator, bits = torch.Generator().manual_seed(seed), {}
        for place in places(model):
            old, owner = self.bits[place.parameter].flatten(), _matrices(place)
            new = torch.zeros_like(old)
            for matrix in owner.unique():
                at = (owner == matrix).nonzero()[:, 0]
                new[at[torch.randperm(len(at), generator=generator)[: int(old[at].sum())]]] = True
            bits[place.parameter] = new.view(place.shape)
        return self._with(bits)

    def _with(self, bits: dict[str, Tensor]) -> Mask:
        return Mask(bits, self.model, self.hash)

    # ------------------------------------------------------------ the model

    def check(self, model: Model) -> None:
        """Raise `WrongUse` unless the mask is one of this model's."""
        found = model_hash(model)
        if found != self.hash:
            raise WrongUse(
                f"the mask is of another model ({self.model}, hash {self.hash[:8]}); {model.id} has the hash {found[:8]}."
            )

    @torch.no_grad()
    def apply(self, model: Model) -> Model:
        """A copy of the model without the other weights of its blocks (they are 0), for every other tool; the given one is untouched.

        Its sites and the names of its weights are those of the whole model. Raises `WrongUse` for another model.
        """
        self.check(model)
        module = copy.deepcopy(model.module)
        for name, p in module.named_parameters():
            if name in self.bits:
                p.masked_fill_(~self.bits[name].to(p.device), 0)
        return model.around(module, f"{model.id}, {self.kept} of {self.size} weights of its blocks")

    # ------------------------------------------------------------ what is kept where

    def to_frame(self, model: Model) -> pd.DataFrame:
        """A row for each head of each matrix: block, part, matrix, head (None: no heads), kept, size, share of it that is kept.

        Raises `WrongUse` for another model.
        """
        import pandas as pd

        self.check(model)
        rows: list[list[Any]] = []
        for place in places(model):
            owner, bits = place.owners().flatten(), self.bits[place.parameter].flatten().double()
            size = torch.bincount(owner, minlength=len(place.cells)).tolist()
            kept = torch.bincount(owner, bits, len(place.cells)).long().tolist()
            rows += [
                [c.block, c.part, c.kind, c.head, k, n, k / n]
                for c, k, n in zip(place.cells, kept, size, strict=True)
                if n
            ]
        frame = pd.DataFrame(rows, columns=["block", "part", "matrix", "head", "kept", "size", "share"])
        return frame.astype({"head": object}).where(frame.notna(), None)

    def plot(self, model: Model) -> go.Figure:
        """Kept weights of each matrix, block by block, as shares of all that are kept."""
        import plotly.graph_objects as go

        frame, figure = self.to_frame(model), go.Figure()
        for matrix, rows in frame.groupby("matrix", sort=False):
            by_block = rows.groupby("block", sort=False)["kept"].sum() / max(self.kept, 1)
            figure.add_bar(x=by_block.index, y=by_block, name=str(matrix))
        title = f"{self.kept:,} of {self.size:,} weights are kept ({self.kept / self.size:.2%}): where they are"
        axis = {"title": "share of the kept weights", "tickformat": ".0%"}
        return figure.update_layout(barmode="stack", title=title, template="plotly_white", yaxis=axis)

    # ------------------------------------------------------------ on disk

    def save(self, path: str | Path) -> None:
        """Eight bits to a byte, first bit highest, a parameter's entries in their order in memory; the hash beside them."""
        packed = {n: torch.from_numpy(np.packbits(b.cpu().numpy())) for n, b in self.bits.items()}
        shapes = {n: list(b.shape) for n, b in self.bits.items()}
        about = {"format": FORMAT, "model": self.model, "hash": self.hash, "shapes": shapes, "about": self.about}
        save_tensors(path, packed, about)

    @classmethod
    def load(cls, path: str | Path) -> Mask:
        """What `save` wrote; a folder stands for its mask.safetensors. Raises `WrongUse` for a path that holds no mask, `Failed`
        for a damaged file."""
        path = Path(path)
        path = path / "mask.safetensors" if path.is_dir() else path
        if not path.is_file():
            raise WrongUse(
                f"there is no mask {path}: `interp bigram train MODEL` makes one (an unfinished run has none yet)."
            )
        try:
            packed, meta = load_tensors(path)
            bits = {n: _unpacked(packed[n], shape) for n, shape in meta["shapes"].items()}
            return cls(bits, meta["model"], meta["hash"], meta["about"])
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise Failed(f"{path} is no whole mask: {error}") from error


def whole(model: Model, value: bool = True) -> Mask:
    """The mask that keeps everything, or (`value=False`) nothing but biases, norms and embeddings."""
    bits = {p.parameter: torch.full(p.shape, value) for p in places(model)}
    return Mask(bits, model.id, model_hash(model))


def _unpacked(packed: Tensor, shape: Sequence[int]) -> Tensor:
    size = int(np.prod(shape))
    if len(packed) != (size + 7) // 8:
        raise ValueError(f"{len(packed)} bytes are not the bits of the shape {tuple(shape)}")
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=size).astype(bool)).view(*shape)


def _matrices(place: Place) -> Tensor:
    """The number of the matrix of each entry, heads together [entries]."""
    names = list(dict.fromkeys(c.matrix for c in place.cells))
    return torch.tensor([names.index(c.matrix) for c in place.cells])[place.owners().flatten()]


# ---------------------------------------------------------------- two masks


@dataclass(frozen=True, eq=False)
class Overlap:
    """How much two masks share, and how much they would by chance.

    share: |A ∩ B| / |M|; expected: Σ_b a_b b_b / n_b / |M|, its mean when the entries of every matrix b are shuffled; null: what
    such shuffles share [draws]; contained: |A ∩ B| / |A|.
    """

    share: float
    expected: float
    contained: float
    null: Float[np.ndarray, " draws"]

    @property
    def p(self) -> float:
        """The share of shuffles, and of the masks themselves, with as much overlap or more."""
        return (1 + int((self.null >= self.share).sum())) / (1 + len(self.null))

    @property
    def ratio(self) -> float:
        """share over expected; NaN where nothing is expected."""
        return self.share / self.expected if self.expected else float("nan")

    def to_frame(self) -> pd.DataFrame:
        """One row: share, expected, sampled (the mean of the shuffles), sd, p, ratio, contained, draws."""
        import pandas as pd

        drawn = {"sampled": float(self.null.mean()), "sd": float(self.null.std()), "p": self.p, "ratio": self.ratio}
        ends = {"contained": self.contained, "draws": len(self.null)}
        return pd.DataFrame([{"share": self.share, "expected": self.expected} | drawn | ends])

    def plot(self) -> go.Figure:
        """What the shuffles share, and what the masks do."""
        import plotly.graph_objects as go

        figure = go.Figure(go.Histogram(x=self.null, marker={"color": "#9ab8cc"}, name="shuffled"))
        figure.add_vline(x=self.share, line={"color": "#1f5f8b"}, annotation_text="the masks")
        axis = {"title": "share of all weights that both keep", "tickformat": ".2%"}
        return figure.update_layout(template="plotly_white", xaxis=axis, showlegend=False)


def overlap(a: Mask, b: Mask, model: Model, draws: int = DRAWS, seed: int = 0) -> Overlap:
    """Compare two masks of a model with entry-wise shuffles of both within every matrix.

    Such a shuffle leaves in a matrix of n entries, of which a and b are kept, a hypergeometric number in common, so the
    null is drawn from that law, matrix by matrix, and nothing is shuffled. Chang & Bergen 2025, appendix; their code
    shuffles rows. Raises `WrongUse` for masks of another model.
    """
    a.check(model)
    b.check(model)
    rng, common, expected, drawn = np.random.default_rng(seed), 0, 0.0, np.zeros(draws)
    for place in places(model):
        owner = _matrices(place)
        in_a, in_b = (m.bits[place.parameter].flatten() for m in (a, b))
        for matrix in owner.unique():
            x, y = in_a[owner == matrix], in_b[owner == matrix]
            n, kept_a, kept_b = len(x), int(x.sum()), int(y.sum())
            common, expected = common + int((x & y).sum()), expected + kept_a * kept_b / n
            drawn += rng.hypergeometric(kept_a, n - kept_a, kept_b, draws)
    return Overlap(common / a.size, expected / a.size, common / max(a.kept, 1), drawn / a.size)
