"""Part of a model: what it makes of a stream that is put in place at one site, up to another; or of a run, its beginning."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from interp.kernels.attention_statistics import of_pattern
from interp.model.edits import Replace
from interp.model.live import main_inputs
from interp.model.session import Session, Stop
from interp.model.trace import Key, replace_in
from interp.model.wiring import Block, Place

if TYPE_CHECKING:
    from jaxtyping import Float

    from interp.model.model import Model


def run_until(
    model: Model, x: Any, sites: str | Sequence[str], enough: Callable[[str, Tensor], bool], *, statistics: bool = False
) -> None:
    """Run on `x` and show `enough(site, tensor)` what stands at each site when it is made; the pass ends once that is true.

    What would have come after is not computed. Edits in force apply. `statistics`: in place of each pattern, what
    `attention_statistics` says of its queries [batch, head, query, 4]; fused attention then makes no pattern. Raises `WrongUse`
    for a padding mask that the model would ignore.
    """
    names, inputs = model.names(sites), model.inputs(x)
    model._check_mask(inputs)
    patterns = {n for n in names if statistics and n.endswith(".pattern")}
    made = patterns and not (model._active or model.attached)  # edits change patterns: these are then there

    def keep(site: str, t: Tensor, where: Any) -> None:
        if enough(site, of_pattern(t) if site in patterns and not made else t):
            raise Stop

    with _measured(model, names, patterns) if made else model._watched([], names) as session, suppress(Stop):
        session.keep, session.stop = keep, True
        model.module(**main_inputs(model.module, inputs))


@contextmanager
def _measured(model: Model, names: list[str], patterns: set[str]) -> Iterator[Session]:
    """Hooks that read statistics in place of patterns."""
    table = model._sites(names)[1]
    table = table | {name: replace(table[name], inner="statistics") for name in patterns}
    with model._bare(), Session(model.module, table, [], names) as session:
        yield session


class Onward:
    """`onward(x, inputs)`: the tensor at `until` in a run on `inputs` when `x` stands at `start`, a last block's resid_post.

    Blocks whose own module receives and returns the stream hand it on unread, so what comes before `start` costs next
    to nothing. Edits in force do not apply. Differentiable in `x` where gradients are on. `example`: inputs for one whole
    run, which shows in what form each block returns its stream.
    """

    def __init__(self, model: Model, start: str, until: str, example: Mapping[str, Any]) -> None:
        self.model, self.start, self.until = model, start, until
        self.forms = _forms(model, example)

    def __call__(self, x: Float[Tensor, "batch pos ..."], inputs: Mapping[str, Any]) -> Float[Tensor, "batch ..."]:
        found: dict[str, Tensor] = {}
        put = Replace(self.start, lambda t: x.to(t).reshape(t.shape))
        table = self.model._sites([self.start, self.until])[1]
        session = Session(self.model.module, table, [put], [self.until])
        session.keep, session.stop = lambda site, t, _: found.update({site: t}), True
        with self.model._bare(), _skipped(self.forms), session, suppress(Stop):
            self.model.module(**main_inputs(self.model.module, dict(inputs)))
        return found[self.until]


def _forms(model: Model, inputs: Mapping[str, Any]) -> dict[nn.Module, tuple[Place, Place, Any]]:
    """By block that can be skipped: where the stream enters, where it leaves, and what one call returned."""
    places = [_ends(b) for stack in model.wiring.stacks for b in stack.blocks]
    seen: dict[nn.Module, tuple[Place, Place, Any]] = {}
    handles = []
    for ends in (p for p in places if p is not None):
        module = model.module.get_submodule(ends[0].path)
        keep = lambda m, _, out, ends=ends: seen.update({m: (*ends, out)})  # noqa: E731
        handles.append(module.register_forward_hook(keep))
    try:
        with model._bare():
            model.module(**main_inputs(model.module, dict(inputs)))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _ends(block: Block) -> tuple[Place, Place] | None:
    """Where a block's own module receives and returns the stream; None where it is not the module that does."""
    into, out = block.sites["resid_pre"], block.sites["resid_post"]
    own = {into.path, out.path} == {block.path} and (into.side, out.side) == ("in", "out")
    return (into, out) if own and not block.until else None


@contextmanager
def _skipped(returned: Mapping[nn.Module, tuple[Place, Place, Any]]) -> Iterator[None]:
    """These modules return the stream that they receive, in the form of what they returned before."""
    before = {m: vars(m).get("forward") for m in returned}
    try:
        for module, (into, out, form) in returned.items():
            module.forward = _handing_on(into.key, out.key, form)
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                vars(module).pop("forward", None)
            else:
                module.forward = forward


def _handing_on(into: Key, out: Key, form: Any) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        stream = args[into] if isinstance(into, int) else kwargs[into]  # type: ignore[index]
        return replace_in(copy.copy(form), out, stream)

    return forward
