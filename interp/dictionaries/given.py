"""A dictionary of several models as it is in one of them: what the others hold is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from interp.dictionaries.dictionary import Dictionary, DictionaryConfig
from interp.errors import WrongUse
from interp.sites import OF, of_model

if TYPE_CHECKING:
    from jaxtyping import Float

    from interp.dictionaries.sparse import Code


def models_of(D: Dictionary) -> list[str]:
    """The models that a dictionary reads, by the names of its sites; empty if it is of one model, whose sites are unnamed."""
    return list(dict.fromkeys(model for _, model in map(of_model, D.config.reads) if model is not None))


class Given(Dictionary):
    """f(x) = activation(W_encᵀ ((x, x_others) − b_pre) + b_enc), ŷ the columns of f W_dec + b_dec that are this model's.

    An autoencoder of the sites of `model`, named as they are there, with all latents of the whole. `others` holds the rows
    of every other site, of the same batch and positions as those it will read: so its latents are those of the whole
    dictionary, and `Model.attach` takes it.
    """

    def __init__(self, whole: Dictionary, model: str, others: Mapping[str, Float[Tensor, "batch pos ..."]]):
        c = whole.config
        mine = [of_model(site)[1] == model for site in c.reads]
        if c.reads != c.writes or not any(mine):
            raise WrongUse(
                f"there is no part of {model} in this dictionary: it is of {', '.join(models_of(whole)) or 'one model'}."
            )
        missing = [site for site, own in zip(c.reads, mine, strict=True) if not own and site not in others]
        if missing:
            raise WrongUse(f"the rows of {missing[0]!r} are needed: interp.Together(models).record(x, D.config.reads).")
        own = [(s.removesuffix(OF + model), w) for s, w, m in zip(c.reads, c.widths_in, mine, strict=True) if m]
        sites, widths = (tuple(part) for part in zip(*own, strict=True))
        with torch.device("meta"):
            super().__init__(
                DictionaryConfig(
                    sites, sites, sum(widths), sum(widths), c.latents, c.k, c.activation,
                    widths_in=widths, widths_out=widths,
                ),
                whole.product,
            )  # fmt: skip
        self.whole, self.mine = [whole], mine  # a list: its parameters are not this one's again
        self.others = {s: others[s].flatten(2) for s, m in zip(c.reads, mine, strict=True) if not m}
        columns = torch.tensor(mine).repeat_interleave(torch.tensor(c.widths_in)).nonzero().flatten()
        parts = {"W_enc": whole.W_enc[columns], "b_enc": whole.b_enc, "W_dec": whole.W_dec[:, columns]}
        for name, part in (parts | {"b_dec": whole.b_dec[columns]}).items():
            setattr(self, name, nn.Parameter(part.detach()))
        if c.activation == "jumprelu":
            self.threshold = whole.threshold

    def active(self, x: Float[Tensor, "*batch d_in"]) -> Code:
        """The code of the whole dictionary. Raises `WrongUse` if there are other rows than those given."""
        rows = x.reshape(-1, x.shape[-1])
        given = {site: y.flatten(0, 1).to(rows) for site, y in self.others.items()}
        odd = next((site for site, y in given.items() if len(y) != len(rows)), None)
        if odd is not None:
            raise WrongUse(
                f"{len(rows)} rows are read, but {len(given[odd])} of {odd!r} were given: both models must run on the "
                "same batch and positions, in one pass (no generation, no sweep)."
            )
        parts = iter(rows.split(self.config.widths_in, dim=1))
        D = self.whole[0]
        whole = [next(parts) if own else given[site] for site, own in zip(D.config.reads, self.mine, strict=True)]
        return D.active(torch.cat(whole, 1))
