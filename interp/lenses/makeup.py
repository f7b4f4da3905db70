"""How a layer's output is made up of its memories, and the model's prediction of its layers' outputs.

At a token, r is the stream without what the layer adds, y what it adds and o = r + y. Source: Geva et al. 2021
(arXiv:2012.14913), section 5.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.lenses.memories import Memories
from interp.lenses.statistics import chunks
from interp.model.model import teaches
from interp.store.recording import batches, padded
from interp.texts import documents

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Float, Int

KINDS = ("residual", "both", "ffn", "composition")


@dataclass(frozen=True, eq=False)
class Makeup:
    """Sums over `tokens` tokens, a row a layer; `to_frame()` gives means."""

    layers: tuple[str, ...]
    sums: dict[str, Float[Tensor, " layer"]]
    sizes: Int[Tensor, " layer"]  # memories of each layer
    tokens: int

    def to_frame(self) -> pd.DataFrame:
        """One row a layer: the layer; active: memories with m_i > 0 at a token, in the mean, and active_share of all;
        own_top: share of tokens where top(y) is no used memory's top; kept: top(o) = top(r); final_kept: top(r) is what the
        model ends with, and final_prob its probability under r; and the four kinds of outputs, which sum to 1: `residual`
        (top(o) = top(r) only), `ffn` (top(y) only), `both`, `composition` (neither).
        """
        import pandas as pd

        frame = pd.DataFrame({"layer": self.layers} | {n: (s / self.tokens).tolist() for n, s in self.sums.items()})
        frame.insert(2, "active_share", frame["active"] / self.sizes.numpy())
        return frame

    def plot(self) -> go.Figure:
        """What the prediction after each layer is due to, as shares of the tokens."""
        import plotly.graph_objects as go

        table, figure = self.to_frame(), go.Figure()
        for name, colour in zip(KINDS, ("#1f5f8b", "#4d7a1f", "#b3470f", "#7a3f96"), strict=True):
            figure.add_bar(x=table["layer"], y=table[name], name=name, marker_color=colour)
        axis = {"title": "share of tokens", "tickformat": ".0%"}
        title = f"What the likeliest token after each layer is due to, {self.tokens:,} tokens"
        return figure.update_layout(title=title, barmode="stack", template="plotly_white", yaxis=axis)


@teaches
@torch.no_grad()
def makeup(
    memories: Memories,
    texts: Path | Iterable[str],
    layers: str | Sequence[str] | None = None,
    *,
    context: int = 64,
    batch: int = 16,
    tokens: int | None = None,
) -> Makeup:
    """Statistics of each layer over a text file, a folder of them, or texts.

    Streams r and o are read by the model's own head, norm included, as predictions; what is only added to the stream,
    y and each m_i v_i, by E alone (`Memories.scores`). The top of a memory is that of sign(m_i) v_i; memories with m_i = 0
    are not used. Start tokens are left out. Raises `WrongUse` for an empty text, or a layer that is not there.
    """
    from tqdm.auto import tqdm

    names, model, last = memories.named(layers), memories.model, memories.head.last
    wanted = list(dict.fromkeys([last, *(s for r in names for s in memories.around(r))]))
    tops = {r: [memories.read(r, k=1, sign=s)[0][:, 0].to(model.device) for s in (1, -1)] for r in names}
    sums: dict[str, Tensor] = {}
    seen = 0
    with tqdm(total=tokens, desc="layers", unit=" tokens", mininterval=1, leave=False) as bar:
        for _, group in batches(model, documents(texts), context, batch):
            inputs, real = padded(model, group)
            cache = model.record(inputs, wanted)
            states = {site: cache[site][real] for site in wanted}
            for part in chunks(int(real.sum()), 5 * memories.head.width, states[last]):
                here = {site: t[part] for site, t in states.items()}
                final = memories.head(here[last]).argmax(1)
                for number, role in enumerate(names):
                    for name, value in _counts(memories, role, here, final, tops[role]).items():
                        row = sums.setdefault(name, torch.zeros(len(names), dtype=torch.float64))
                        row[number] += float(value.double().sum())
            seen += int(real.sum())
            bar.update(int(real.sum()))
            if tokens is not None and seen >= tokens:
                break
    if not seen:
        raise WrongUse("the text is empty: there is no token to look at.")
    return Makeup(tuple(names), sums, torch.tensor([len(memories.layers[r].values) for r in names]), seen)


def _counts(
    memories: Memories, role: str, states: dict[str, Tensor], final: Tensor, tops: Sequence[Int[Tensor, " memory"]]
) -> dict[str, Tensor]:
    """Each number at each token; see `Makeup.to_frame`."""
    m, y, o = states[f"{role}.post"], states[f"{role}.write"], states[f"{role.rsplit('.', 1)[0]}.resid_post"]
    scores = memories.head(memories.before(role, states))
    of_r, of_o, of_y = scores.argmax(1), memories.head(o).argmax(1), memories.scores(y).argmax(1)[:, None]
    own = ~(((tops[0] == of_y) & (m > 0)) | ((tops[1] == of_y) & (m < 0))).any(1)
    by_r, by_y = of_o == of_r, of_o == of_y[:, 0]
    kinds = by_r & ~by_y, by_r & by_y, by_y & ~by_r, ~by_r & ~by_y
    found = {"active": (m > 0).sum(1), "own_top": own, "kept": by_r, "final_kept": of_r == final}
    found["final_prob"] = scores.softmax(1).gather(1, final[:, None])[:, 0]
    return found | dict(zip(KINDS, kinds, strict=True))
