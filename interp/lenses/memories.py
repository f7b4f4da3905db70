"""Feed-forward layers as key-value memories: FF(x) = Σ_i m_i v_i + b, m_i = f(x · k_i).

A neuron i of an MLP is a memory: its key k_i says when it is used, its coefficient m_i how much, and its value v_i, a row
of the last matrix, what it then adds to the stream, which is a vector of scores over the vocabulary, r_i = v_i E.
Sources: Geva et al. 2021 (arXiv:2012.14913); Geva et al. 2022 (arXiv:2203.14680).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import Failed, WrongUse, nearest
from interp.kernels import largest
from interp.lenses.direct import freeze
from interp.lenses.lens import Lens
from interp.model.edits import Replace, in_range
from interp.model.inputs import probe_inputs
from interp.model.model import Model
from interp.model.positions import Pos

if TYPE_CHECKING:
    from jaxtyping import Float, Int

ROWS = 256  # values whose scores over the vocabulary exist at one time
EXACT, EXACT_16 = 1e-4, 0.05  # relative; how far the sum over memories may be from what the layer was seen to write


@dataclass(frozen=True, eq=False)
class Layer:
    """write = scale · (m V + bias) + constant, for the coefficients m at `role`.post.

    V is W_out with what follows it multiplied in: a multiplier, a layer scale, the gain of a norm. Such a norm divides by
    another number at every token: then `divided`, and `scale` says which; else scale = 1.
    """

    role: str
    values: Float[Tensor, "memory d"]
    bias: Float[Tensor, " d"]
    constant: Float[Tensor, " d"]
    divided: bool

    def scale(self, m: Float[Tensor, "n memory"], write: Float[Tensor, "n d"]) -> Float[Tensor, "n 1"]:
        """The number that makes the sum the write, by least squares; 1 where no norm follows the layer."""
        if not self.divided:
            return torch.ones_like(m[:, :1])
        along = m @ self.values + self.bias
        return ((write - self.constant) * along).sum(1, keepdim=True) / along.square().sum(1, keepdim=True)

    def write(self, m: Float[Tensor, "n memory"], scale: Float[Tensor, "n 1"]) -> Float[Tensor, "n d"]:
        """The sum over all memories, with both biases."""
        return scale * (m @ self.values + self.bias) + self.constant


class Memories:
    """The feed-forward layers of the stream that a model's head reads, by the name of the MLP ("blocks.3.mlp").

    E is the unembedding with its multiplier, without bias and cap, so r_i is what a unit of memory i adds to the scores.
    With `norm`, v_i goes through the linear part of the final norm first (its gain, its centring), so that scores are logits
    up to the norm's divisor at a token; without, v_i is read as it is, as the papers do.

    A GLU's coefficient is act(gate) · up, which may be negative, as GELU's may. Raises `WrongUse` for a model without head,
    without a stream, without an MLP whose last matrix is found (a mixture of experts has another at every token), with
    `norm` but no final norm that the head reads; `Failed` if a layer's write is not the sum that it is taken for.
    """

    def __init__(self, model: Model, *, norm: bool = False) -> None:
        self.model, self.lens, self.norm = model, Lens(model), norm
        self.head = self.lens.head
        self.layers = {role: self._layer(role) for role in self._roles()}
        if not self.layers:
            raise WrongUse(f"{model.id} has no feed-forward memories: {self._why()}.")
        _ = self.unembedding  # raises if scores cannot be had

    # ------------------------------------------------------------ which layers

    def _roles(self) -> list[str]:
        prefix, weights, sites = f"{self.head.stack.prefix}blocks.", self.model.weights, self.model.binding.sites
        roles = [n.removesuffix(".W_out") for n in weights if n.startswith(prefix) and n.endswith(".W_out")]
        return [r for r in roles if weights.layout(f"{r}.W_out").makes == f"{r}.out" and f"{r}.write" in sites]

    def _why(self) -> str:
        sites = self.model.binding.sites
        if any(n.endswith("experts.post") for n in sites):
            return "its MLPs are mixtures of experts, whose neurons are others at every token"
        known = self.model.weights.refused | self.model.binding.refused
        return next((why for name, why in known.items() if "mlp" in name or name == "*"), "it has no MLP")

    @torch.no_grad()
    def _layer(self, role: str) -> Layer:
        """A layer's values and biases, and the proof that with them it writes what it was seen to write."""
        W, sites = self._wide(self.model.weights[f"{role}.W_out"]), self.model.binding.sites
        b = self.model.weights.get(f"{role}.b_out")
        b = W.new_zeros(W.shape[1]) if b is None else self._wide(b)
        inputs = probe_inputs(self.model.module, batch=4, length=7, seed=6)
        cache = self.model.record(inputs, [f"{role}.{part}" for part in ("post", "out", "write")])
        m, out, write = (self._wide(cache[f"{role}.{part}"].flatten(0, 1)) for part in ("post", "out", "write"))
        made = self._channels(role, W, b, out, write)
        if made is None:
            frozen = freeze(self.model.module.get_submodule(sites[f"{role}.write"].place.path), *_rows(out, write))
            if frozen is None:
                raise Failed(
                    f"what {role} returns is bent before it is added to the stream: it is no sum over memories."
                )
            V, bias = (frozen.along(t.cpu()).to(W) for t in (W, b[None]))
            size = V.norm() / W.norm()  # near zero a norm divides by √eps, which is no size for a value
            made = Layer(role, V / size, bias[0] / size, frozen.bias[0].to(W), True)
        far, size = (float(t.norm()) for t in (made.write(m, made.scale(m, write)) - write, write))
        if not far <= (EXACT if self.model.dtype.itemsize >= 4 else EXACT_16) * size:
            raise Failed(f"the memories of {role} miss what it writes by {far / size:.1e}, relative to it.")
        return made

    @staticmethod
    def _channels(role: str, W: Tensor, b: Tensor, out: Tensor, write: Tensor) -> Layer | None:
        """Where each channel of the write is a multiple of what the layer returns, plus a constant."""
        if torch.equal(out, write):
            return Layer(role, W, b, torch.zeros_like(b), False)
        x, y = out - out.mean(0), write - write.mean(0)
        slope = (x * y).sum(0) / x.square().sum(0).clamp(min=1e-30)
        constant = (write - slope * out).mean(0)
        if float((slope * out + constant - write).norm()) > EXACT * float(write.norm()):
            return None
        return Layer(role, slope * W, slope * b, constant, False)

    def _wide(self, t: Tensor) -> Tensor:
        return t.detach().to(torch.promote_types(t.dtype, torch.float32))

    def named(self, layers: str | Sequence[str] | None = None) -> list[str]:
        """Layers by name or glob, all of them by default. Raises `WrongUse` for one that is not there."""
        patterns = [layers] if isinstance(layers, str) else list(self.layers if layers is None else layers)
        found = [[r for r in self.layers if fnmatchcase(r, p)] for p in patterns]
        if not all(found) or not patterns:
            odd = patterns[found.index([])] if patterns else ""
            raise WrongUse(
                f"{self.model.id} has no layer of memories {odd!r}.{nearest(odd, self.layers)} It has: {', '.join(self.layers)}."
            )
        return list(dict.fromkeys(r for some in found for r in some))

    # ------------------------------------------------------------ what values say

    @cached_property
    def unembedding(self) -> Float[Tensor, "d vocabulary"]:
        """E, from the stream's space to the scores; with `norm` the linear part of the final norm is part of it."""
        layout, d = self.head.layout, next(iter(self.layers.values())).values.shape[1]
        W = None if layout is None else self._wide(self.model.weights["W_U"])
        if layout is None or W is None or W.shape[0] != d:
            raise WrongUse(
                f"{self.model.id} has no matrix from its stream ({d} wide) to its logits to read values with."
            )
        E = layout.multiplier * layout.scale * W
        if not self.norm:
            return E
        name = f"{self.head.stack.prefix}final_norm"
        site = self.model.binding.sites.get(f"{name}.scale")
        if layout.reads != name or site is None or site.norm is None or f"{name}.w" not in self.model.weights:
            raise WrongUse(f"the head of {self.model.id} reads no final norm with a gain: leave norm out.")
        gain = self._wide(self.model.weights[f"{name}.w"]) + self.model.weights.layout(f"{name}.w").offset
        E = gain[:, None] * E
        return E - E.mean(0) if site.norm.centred else E

    def scores(self, vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n vocabulary"]:
        """r = v E of vectors in the stream's space."""
        return vectors.to(self.unembedding) @ self.unembedding

    def values(self, layer: str, memories: Sequence[int] | None = None) -> Float[Tensor, "memory d"]:
        """v_i, as they are added to the stream. Raises `WrongUse` for a layer or a memory that is not there."""
        values = self.layers[self.named(layer)[0]].values
        if memories is None:
            return values
        in_range(len(values), list(memories), "memory", layer)
        return values[list(memories)]

    @torch.no_grad()
    def read(
        self, layer: str, memories: Sequence[int] | None = None, k: int = 10, sign: int = 1
    ) -> tuple[Int[Tensor, "memory k"], Float[Tensor, "memory k"]]:
        """(Ids, probabilities) of the k likeliest tokens under p_i = softmax(r_i); `sign` -1: softmax(-r_i).

        -v_i is what a memory adds whose coefficient is negative.
        """
        found = []
        for part in self.values(layer, memories).split(ROWS):
            best, places = largest(sign * self.scores(part), None, min(k, self.unembedding.shape[1]))
            found.append((places, best, (sign * self.scores(part)).logsumexp(1, keepdim=True)))
        ids, best, total = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
        return ids, (best - total).exp()

    # ------------------------------------------------------------ what is done with coefficients

    def clamp(self, layer: str, memories: int | Sequence[int], coefficient: float, *, pos: Pos = "all") -> Replace:
        """The edit m_i ← coefficient of some memories: `with model.edit(memories.clamp("blocks.3.mlp", [17], 3.0)): …`.

        0 turns a memory off. The coefficient is that of the value, after the activation (and the gate): Geva et al. 2022,
        section 6.1, set what goes *into* a GELU, which is almost the same for a large one. Raises `WrongUse` for a layer or
        memory that is not there.
        """
        role, which = self.named(layer)[0], [memories] if isinstance(memories, int) else list(memories)
        self.values(role, which)
        return Replace(f"{role}.post", torch.tensor(float(coefficient)), index=which, pos=pos)

    def coefficients(self, x: Any, layer: str, bos: bool | None = None) -> Float[Tensor, "batch pos memory"]:
        """m of a layer in a run on x."""
        site = f"{self.named(layer)[0]}.post"
        return self.model.record(x, site, bos=bos)[site]

    @torch.no_grad()
    def clusters(
        self, count: int, layers: str | Sequence[str] | None = None, *, method: str = "agglomerative", seed: int = 0
    ) -> dict[str, Int[Tensor, " memory"]]:
        """Values in `count` groups by the cosine of their scores, cos(r_i, r_j): a number from 0 for each memory of a layer.

        "agglomerative": complete linkage (Geva et al. 2022, appendix), from all distances, so for up to 30,000 values;
        "kmeans": on r_i / ‖r_i‖, for any number. Scores are never made: with E Eᵀ = L Lᵀ, r_i · r_j = (v_i L) · (v_j L).
        Raises `WrongUse` for another method, too many values, or fewer values than groups.
        """
        from interp.lenses.clusters import clustered

        names = self.named(layers)
        labels = clustered(torch.cat([self.layers[n].values for n in names]), self.unembedding, count, method, seed)
        return dict(zip(names, labels.split([len(self.layers[n].values) for n in names]), strict=True))

    # ------------------------------------------------------------ the stream around a layer

    def around(self, role: str) -> list[str]:
        """The sites that say what a layer does to the stream: its coefficients, its write, the stream before and after."""
        block = role.rsplit(".", 1)[0]
        mid = f"{block}.resid_mid"
        return [
            f"{role}.post",
            f"{role}.write",
            f"{block}.resid_post",
            *([mid] if mid in self.model.binding.sites else []),
        ]

    def before(self, role: str, states: dict[str, Tensor]) -> Tensor:
        """The stream without what the layer adds: `resid_mid`, or `resid_post` less the write where there is none."""
        block = role.rsplit(".", 1)[0]
        mid = states.get(f"{block}.resid_mid")
        return states[f"{block}.resid_post"] - states[f"{role}.write"] if mid is None else mid


def _rows(*tensors: Tensor) -> list[Tensor]:
    """As `freeze` takes them: float64, on the CPU."""
    return [t.to("cpu", torch.float64) for t in tensors]
