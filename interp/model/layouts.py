"""Where a named weight lives and how it is read and written there; and the questions asked of values to find out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from interp.model.binding import output_matrix
from interp.model.trace import same


def close(dtype: torch.dtype) -> float:
    """How far the same product, computed again, may be off relative to its norm; models compute norms in float32 at best."""
    return max(1e-5, 4 * torch.finfo(dtype).eps)


@dataclass(frozen=True, eq=False)
class Layout:
    """One named weight, and what it does: makes = cap(multiplier · (scale · reads @ W + b)).

    A matrix is meant as [in, out]: `turned` says that it is stored the other way round. `columns` along `axis` are the
    part that is meant (None: all of it), split into `heads` (0: no heads). `parameter` is None where the matrix is only
    known by feeding the module the identity of size `width`. For norms, out = (offset + w) · x / ||x|| + b up to √d.
    """

    path: str
    parameter: str | None
    reads: str = ""
    makes: str = ""
    turned: bool = False
    axis: int = 0
    columns: Tensor | None = None
    heads: int = 0
    width: int = 0
    scale: float = 1.0
    multiplier: float = 1.0
    cap: float | None = None
    offset: float = 0.0

    @property
    def steps(self) -> tuple[int, int] | None:
        """Distances between heads and between a head's columns, if they are regular, so that a view will do."""
        assert self.columns is not None
        c = self.columns.view(max(self.heads, 1), -1)
        head, inner = (int(c[1, 0] - c[0, 0]) if len(c) > 1 else 0, int(c[0, 1] - c[0, 0]) if c.shape[1] > 1 else 1)
        made = c[0, 0] + head * torch.arange(len(c))[:, None] + inner * torch.arange(c.shape[1])
        return (head, inner) if head >= 0 and inner > 0 and torch.equal(made, c.cpu()) else None

    @property
    def is_view(self) -> bool:
        """Whether the named weight shares the parameter's memory."""
        return self.parameter is not None and (self.columns is None or self.steps is not None)

    @property
    def note(self) -> str:
        """What multiplies, offsets or caps it, in one line."""
        said = [f"{self.scale:g} · what it reads"] if self.scale != 1 else []
        said += [f"output · {self.multiplier:g}"] if self.multiplier != 1 else []
        said += [f"capped: {self.cap:g} · tanh(x / {self.cap:g})"] if self.cap else []
        return ", ".join(said + ([f"gain is {self.offset:g} + w"] if self.offset else []))

    def read(self, stored: Tensor) -> Tensor:
        """The stored tensor in the named weight's shape; a view where the layout allows."""
        t = stored.mT if self.turned else stored
        if self.columns is None:
            return t
        shape, steps = (max(self.heads, 1), len(self.columns) // max(self.heads, 1)), self.steps
        if steps is None:
            part = t.index_select(self.axis, self.columns.to(t.device)).unflatten(self.axis, shape)
        else:
            size, stride, step = list(t.shape), list(t.stride()), t.stride(self.axis)
            size[self.axis : self.axis + 1], stride[self.axis : self.axis + 1] = shape, [s * step for s in steps]
            part = t.as_strided(size, stride, t.storage_offset() + int(self.columns[0]) * step)
        return part.movedim(self.axis, 0) if self.heads else part.squeeze(self.axis)

    def write(self, stored: Tensor, value: Tensor) -> None:
        """Put `value`, in the named weight's shape, where it lives; the rest of `stored` is left as it is."""
        t, value = stored.mT if self.turned else stored, value.to(stored)
        if self.columns is None:
            t.copy_(value)
        else:
            flat = value.movedim(0, self.axis).flatten(self.axis, self.axis + 1) if self.heads else value
            t.index_copy_(self.axis, self.columns.to(t.device), flat)


# ---------------------------------------------------------------- questions asked of values


def off(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||, or ||a|| if b is zero."""
    scale = float(b.norm())
    return float((a - b).norm()) / (scale or 1.0)


def rows(t: Tensor) -> Tensor:
    """[batch, pos, ..., d] as [n, d]."""
    return t.reshape(-1, t.shape[-1])


def ratio(a: Tensor, b: Tensor) -> float | None:
    """s with a = s · b, exactly 1.0 for equal tensors, or None if no number does."""
    if a.numel() != b.numel():
        return None
    if same(a, b):
        return 1.0
    x, y = a.flatten().double(), b.flatten().double()
    s = float(x @ y / (y @ y))
    return s if off(s * y, x) <= close(a.dtype) else None


def tanh_cap(made: Tensor, x: Tensor) -> float | None:
    """c with made = c · tanh(x / c), or None: solved at the largest |x|, where the ratio tells most, then checked on all."""
    made, x = made.flatten().double(), x.flatten().double()
    most = int(x.abs().argmax())
    wanted, low, high = float(made[most] / x[most]), 0.0, 1e4
    if not 0 < wanted < 1:
        return None
    for _ in range(200):  # tanh(u) / u falls from 1 to 0
        u = (low + high) / 2
        low, high = (u, high) if float(torch.tensor(u, dtype=torch.float64).tanh()) / u > wanted else (low, u)
    c = abs(float(x[most])) / u
    return c if off(c * torch.tanh(x / c), made) <= 1e-5 else None


def norm_off(x: Tensor, y: Tensor, w: Tensor, b: Tensor | None, offset: float) -> float:
    """How far y is from α (offset + w) · t + b, with t = x or x - mean(x) and one free α a row, relative to y."""
    x, y, gain = rows(x).double(), rows(y).double(), offset + w.double()
    bare = y if b is None else y - b.double()
    errors = []
    for t in (x * gain, (x - x.mean(-1, keepdim=True)) * gain):
        alpha = (bare * t).sum(-1, keepdim=True) / t.square().sum(-1, keepdim=True).clamp(min=1e-300)
        errors.append(off(alpha * t, bare) * float(bare.norm() / y.norm().clamp(min=1e-300)))
    return min(errors)


def fits(x: Tensor, matrix: Tensor, bias: Tensor | None, y: Tensor, within: float = 0.0) -> bool:
    """x @ matrix + bias = y, up to roundings of the dtype, or `within` what is asked."""
    if matrix.shape != (x.shape[-1], y.shape[-1]) or matrix.dtype != x.dtype:
        return False
    made = x @ matrix
    return off(made if bias is None else made + bias, y) <= max(within, close(y.dtype))


def fed(module: nn.Module, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """(W, b) with module(x) = x @ W + b if the module is affine: what it makes of the identity, and of zero."""
    return output_matrix(module, width, like), module.forward(torch.zeros_like(like[:1, :1]).expand(1, width))[0]


def increasing(a: Tensor, b: Tensor) -> bool:
    """Every entry of a grows with the entry of b at its place."""
    return bool((a.flatten()[b.flatten().argsort()].diff() >= 0).all())
