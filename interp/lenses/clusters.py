"""Groups of values that say the same: their scores over the vocabulary compared without being made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from interp.errors import WrongUse

if TYPE_CHECKING:
    from jaxtyping import Float, Int

MOST = 30_000  # values whose distances, one for each pair, still fit in memory
METHODS = ("agglomerative", "kmeans")


def clustered(
    values: Float[Tensor, "n d"], E: Float[Tensor, "d vocabulary"], count: int, method: str, seed: int
) -> Int[Tensor, " n"]:
    """A group for every value, numbered in the order in which their first members come; see `Memories.clusters`."""
    if method not in METHODS:
        raise WrongUse(f"there is no method {method!r}: values are grouped by {' or '.join(METHODS)}.")
    if not 1 <= count <= len(values):
        raise WrongUse(f"{len(values)} values make 1 to {len(values)} groups, not {count}.")
    if method == "agglomerative" and len(values) > MOST:
        raise WrongUse(
            f"{len(values)} values have too many pairs ({MOST} at most): name fewer layers, or method='kmeans'."
        )
    points = normalize(values.double() @ _root(E.double()), dim=1).cpu().numpy()
    if method == "agglomerative":
        from scipy.cluster.hierarchy import fcluster, linkage

        labels = fcluster(linkage(points, "complete"), count, "maxclust")  # ‖x − y‖² = 2 − 2 cos
    else:
        from scipy.cluster.vq import kmeans2

        labels = kmeans2(points, count, minit="++", rng=seed, missing="warn")[1]
    found = torch.as_tensor(labels, dtype=torch.long)
    first = {int(label): number for number, label in enumerate(dict.fromkeys(found.tolist()))}
    return torch.tensor([first[label] for label in found.tolist()])


def _root(E: Float[Tensor, "d vocabulary"]) -> Float[Tensor, "d d"]:
    """L with L Lᵀ = E Eᵀ."""
    values, vectors = torch.linalg.eigh(E @ E.T)
    return vectors * values.clamp(min=0).sqrt()
