"""BatchTopK sparse autoencoder (Bussmann et al. 2024, arXiv 2412.06410): k latents a row on average, not on each row.

f = the B·k largest entries of ReLU(z), over a batch of B rows        z = W_encᵀ (x − b_pre) + b_enc
L = ‖y − ŷ‖² / ‖y − ȳ‖²  +  α AuxK                                    as TopK

A crosscoder (several sites s, ‖d_i‖ = 1 over all) selects by f_i Σ_s ‖d_i^s‖ (Minder et al. 2025, arXiv 2504.02922).

Dead latents are revived by AuxK. In use rows must not depend on each other: f = z·1[z > θ], θ a moving average of the
smallest entry kept in a batch, divided by Σ_s ‖d_i^s‖ in a crosscoder. Its window is a twentieth of the run and 1,000
steps at most, starting at the first batch's value; so nothing is taken from before training, and short runs follow
their own end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.functional import pad

from interp.dictionaries.kinds.kind import Loss, Now
from interp.dictionaries.kinds.topk import TopK
from interp.dictionaries.sparse import Code, encode_topk

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from interp.dictionaries.dictionary import Dictionary

WINDOW = 1000  # steps; β = .999


@dataclass(frozen=True)
class BatchTopK(TopK):
    """k latents a row on average."""

    name = "batchtopk"
    paper = "Bussmann et al. 2024, arXiv 2412.06410"
    equation = "f = the B·k largest of ReLU(z); L = ‖e‖²/‖y − ȳ‖² + α AuxK"
    activation = "jumprelu"
    lr = 3e-4
    betas = (0.9, 0.99)

    def encode(self, D: Dictionary, x: Float[Tensor, "batch d_in"]) -> Code | Float[Tensor, "batch m"]:
        """The B·k largest entries of ReLU(z); among equal ones the first row's, then the lowest index.

        Looked for among the 2k largest of each row, and among more of the rows that have all of these kept.
        """
        w, width, m = self.weight(D), 2 * self.k, D.config.latents
        W, c = (D.W_enc, D.b_enc) if isinstance(w, float) else (D.W_enc * w, D.b_enc * w)
        f = Code(*encode_topk(x, D.b_pre, W, c, min(width, m), D.product))
        while True:
            kept = _largest(f.values.detach(), self.k * len(x))
            rows = kept[:, -1].nonzero().flatten()
            if width >= m or not len(rows):
                break
            width *= 2
            wider = encode_topk(x[rows], D.b_pre, W, c, min(width, m), D.product)
            f = Code(
                *(pad(a, (0, b.shape[1] - a.shape[1])).index_copy(0, rows, b) for a, b in zip(f, wider, strict=True))
            )
        most = max(1, int(kept.sum(1).max()))  # a row's come first, as they are in order
        values, indices = (f.values * kept)[:, :most], f.indices[:, :most]
        return Code(values if isinstance(w, float) else values / w[indices], indices)

    def weight(self, D: Dictionary) -> Float[Tensor, " m"] | float:
        """What f is selected by beside itself: Σ_s ‖d_i^s‖ in a crosscoder, otherwise ‖d_i‖, which is 1."""
        return D.part_norms().detach().sum(1) if D.config.widths_out else 1.0

    def after(self, D: Dictionary, loss: Loss, now: Now) -> None:
        """θ ← θ + (min of what was kept − θ) / window."""
        assert isinstance(loss.code, Code)
        w, (values, indices) = self.weight(D), loss.code
        selected = values * (w if isinstance(w, float) else w[indices])
        if (selected > 0).any():
            self.follow(D, selected[selected > 0].min(), now)

    def follow(self, D: Dictionary, least: Float[Tensor, ""], now: Now) -> None:
        """The moving average that θ is; it starts at the first batch's value."""
        window = max(1, min(WINDOW, now.steps // 20))
        D.threshold.lerp_(least.expand_as(D.threshold), 1 / window if now.step else 1.0)

    def fold(self, D: Dictionary, new: Dictionary) -> None:
        """θ_i = θ / Σ_s ‖d_i^s‖."""
        new.threshold.div_(self.weight(D))


def _largest(values: Float[Tensor, "batch n"], count: int) -> Bool[Tensor, "batch n"]:
    """Which entries, of those above 0, are among the `count` largest; of equal ones the first."""
    flat = values.flatten()
    edge = flat.kthvalue(max(1, len(flat) - count + 1)).values
    above, equal = flat > edge, flat == edge
    kept = above | (equal & (equal.cumsum(0) <= count - above.sum()))
    return (kept & (flat > 0)).view_as(values)
