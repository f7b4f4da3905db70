"""The wrapper: one model, its sites, and the four things done with it: call, record, edit, generate."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from interp.errors import WrongUse, check_keys
from interp.model import memory
from interp.model.binding import Binding, Site, as_mapping, bind
from interp.model.cache import Cache
from interp.model.edits import Edit, Patch
from interp.model.positions import Pos, Positions
from interp.model.proof import prove_sums
from interp.model.session import Session, Stop, report_unfired
from interp.model.trace import trace
from interp.model.twin import Lifted, probe_inputs, twin_of
from interp.model.wiring import Place, Wiring, solve
from interp.sites import MODULE, expand, explain_unknown

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

F = TypeVar("F", bound=Callable[..., Any])


def teaches(function: F) -> F:
    """Unknown keywords raise `WrongUse` that names the nearest one."""
    known = [p for p in inspect.signature(function).parameters if p != "self"]

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        check_keys(kwargs, known, f"{function.__name__}()")
        return function(*args, **kwargs)

    return checked  # type: ignore[return-value]


@dataclass(frozen=True, eq=False)
class Tokens:
    """A batch of prompts: ids and which of them are real, padded on the right (on the left to generate)."""

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    bos: bool | None = None


class Model:
    """A wrapped model. `model(x)` returns what the wrapped model returns; see `record`, `edit` and `generate`."""

    def __init__(self, module: nn.Module, tokenizer: Any = None, id: str = "") -> None:
        self.module, self.tokenizer = module, tokenizer
        self.id = id or type(module).__name__
        self._active: list[Edit] = []
        self._session: Session | None = None
        self._prompt: Tensor | None = None

    # ------------------------------------------------------------ what it is

    @property
    def config(self) -> Any:
        """The wrapped model's config, or None."""
        return getattr(self.module, "config", None)

    @property
    def device(self) -> torch.device:
        """Where the first parameter lives."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first parameter."""
        return next(self.module.parameters()).dtype

    @cached_property
    def wiring(self) -> Wiring:
        """Who writes to the stream, solved on a small float64 twin and proven on inputs the solver has not seen."""
        with self._bare():
            twin = twin_of(self.module)
        with Lifted(), torch.no_grad():
            wiring = solve(twin, trace(twin, probe_inputs(twin)))
            unseen = trace(twin, probe_inputs(twin, batch=3, length=9, seed=1))
        return prove_sums(wiring, unseen, tolerance=1e-8)

    @cached_property
    def binding(self) -> Binding:
        """Every site of this model, with the real weights checked in their own dtype."""
        if self.config is None:
            return Binding(refused={"*": f"{type(self.module).__name__} has no config; `module:` sites are available"})
        modes = {m: m.training for m in self.module.modules()}
        self.module.eval()
        try:
            with self._bare():
                seen = trace(self.module, probe_inputs(self.module, batch=8, length=5))
        finally:
            for m, mode in modes.items():
                m.training = mode
        return bind(prove_sums(self.wiring, seen, tolerance=_own_tolerance(self.dtype)), seen)

    def sites(self) -> dict[str, tuple[int | str, ...]]:
        """Every site and its shape, in order of depth; "batch", "pos", "query" and "key" stand for lengths of the run."""
        return as_mapping(self.binding.sites)

    def names(self, sites: str | Sequence[str]) -> list[str]:
        """Canonical names of all sites that match; raises `WrongUse` for a name or glob that matches nothing."""
        return self._sites(sites)[0]

    def width(self, site: str) -> int:
        """Size of a site's last axis."""
        names, table = self._sites(site)
        if not table[names[0]].shape:
            raise WrongUse(f"the width of {site!r} is known only once it is recorded: use the site's own name.")
        last = table[names[0]].shape[-1]
        if isinstance(last, str):
            raise WrongUse(f"{site!r} has no fixed width: its last axis is {last!r}.")
        return last

    def _sites(self, patterns: str | Iterable[str]) -> tuple[list[str], dict[str, Site]]:
        """Names that match, and the table of sites with the `module:` ones added."""
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        only_modules = all(p.startswith(MODULE) for p in patterns)
        known = {} if only_modules else self.binding.sites
        refused = {} if only_modules else self.binding.refused
        post_norm = False if only_modules or not known else self.wiring.post_norm
        names = expand(patterns, list(known), refused, post_norm)
        return names, known | {n: self._module_site(n) for n in names if n.startswith(MODULE)}

    def _module_site(self, name: str) -> Site:
        """`module:path`, `module:path:in`, `module:path@2` (its third call)."""
        path, _, side = name.removeprefix(MODULE).partition(":")
        path, _, call = path.partition("@")
        modules = dict(self.module.named_modules())
        if path not in modules or side not in ("", "in", "out") or (call and not call.isdigit()):
            raise explain_unknown(name, [MODULE + m for m in modules], {})
        return Site("module", Place(path, side or "out", None, int(call or 0)), ())

    # ------------------------------------------------------------ what goes in

    def tokens(self, text: str | Sequence[str], bos: bool | None = None) -> Tokens:
        """Token ids of prompts, padded right. `bos` adds or leaves out the beginning-of-sequence token; None: as the tokenizer does."""
        if self.tokenizer is None:
            raise WrongUse(f"{self.id} was loaded without a tokenizer: pass token ids, or load(..., tokenizer=...).")
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise WrongUse("no prompt was given: an empty list has nothing to run.")
        lists = [list(self.tokenizer(t)["input_ids"]) for t in texts]
        start = self.tokenizer.bos_token_id
        if bos is not None and start is None:
            raise WrongUse(
                f"the tokenizer of {self.id} has no beginning-of-sequence token, so bos={bos} means nothing."
            )
        if bos is not None:
            lists = [ids[1:] if ids[:1] == [start] else ids for ids in lists]
            lists = [[start, *ids] if bos else ids for ids in lists]
        if any(not ids for ids in lists):
            raise WrongUse(
                f"prompt {lists.index([])} is empty after tokenisation: give it at least one token, or bos=True."
            )
        return self.pad(lists, bos=bos)

    def pad(self, lists: Sequence[Sequence[int]], left: bool = False, bos: bool | None = None) -> Tokens:
        """Lists of token ids as one batch, padded on the right, or on the left."""
        longest = max(map(len, lists))
        pad = getattr(self.tokenizer, "pad_token_id", None) or 0
        ids = torch.full((len(lists), longest), pad)
        mask = torch.zeros(len(lists), longest, dtype=torch.bool)
        for row, tokens in enumerate(lists):
            place = slice(longest - len(tokens), None) if left else slice(0, len(tokens))
            ids[row, place] = torch.tensor(tokens)
            mask[row, place] = True
        return Tokens(ids.to(self.device), mask.to(self.device), bos)

    def inputs(self, x: Any, bos: bool | None = None) -> dict[str, Any]:
        """Keyword arguments for the wrapped model from text, texts, ids, `Tokens`, a float tensor or a dict."""
        if isinstance(x, Mapping):
            return dict(x)
        if isinstance(x, str) or (isinstance(x, Sequence) and x and isinstance(x[0], str)):
            x = self.tokens(x, bos)
        if isinstance(x, Tensor):
            if x.is_floating_point():
                return {getattr(self.module, "main_input_name", "pixel_values"): x.to(self.device, self.dtype)}
            x = Tokens(torch.atleast_2d(x).to(self.device), torch.atleast_2d(torch.ones_like(x, dtype=torch.bool)))
        if not isinstance(x, Tokens):
            raise WrongUse(
                f"{type(x).__name__} is no input: give text, a list of texts, token ids, a float tensor or a dict."
            )
        if x.ids.numel() == 0:
            raise WrongUse(f"the input has no tokens: its shape is {tuple(x.ids.shape)}.")
        inputs: dict[str, Any] = {"input_ids": x.ids}
        if not bool(x.mask.all()):
            inputs["attention_mask"] = x.mask.long()
        if getattr(self.config, "is_encoder_decoder", False):
            start = getattr(self.config, "decoder_start_token_id", None) or 0
            inputs["decoder_input_ids"] = torch.full_like(x.ids[:, :1], start)
        return inputs

    # ------------------------------------------------------------ what is done with it

    def __call__(self, x: Any, **kwargs: Any) -> Any:
        """What the wrapped model returns, with the edits of the enclosing `with model.edit(...)`."""
        return self.module(**self.inputs(x), **kwargs)

    @teaches
    def record(
        self,
        x: Any,
        sites: str | Sequence[str],
        *,
        edits: Sequence[Edit] = (),
        pos: Pos = "all",
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        bos: bool | None = None,
        strict: bool = False,
    ) -> Cache:
        """Run once and keep the tensors at `sites` (names or globs; add "logits" to run to the end).

        The pass stops after the last site needed. `pos` keeps some positions of each prompt (int, slice, list, "last");
        `dtype` and `device` say what to keep them as; `edits` are applied first, and recorded values show them. With
        `strict`, an edit that changes nothing is an error. Raises `WrongUse` for an unknown site or keyword, `Failed` if
        the recording would not fit in memory.
        """
        names, table = self._sites(sites)
        inputs = self.inputs(x, bos)
        tokens, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        edits = [*self._active, *self._resolved(edits)]
        table |= {e.site: self._sites([e.site])[1][e.site] for e in edits}
        self._plan(names, table, inputs, pos, dtype, device)
        real = (
            mask.bool()
            if mask is not None
            else torch.ones_like(tokens, dtype=torch.bool)
            if tokens is not None
            else None
        )
        for clone in (False, True):
            kept = _Kept(pos, dtype, device, clone)
            self._run(table, edits, names, kept, inputs, strict)
            if not kept.changed():
                break
        values = {n: kept.values[n] for n in names}
        return Cache(
            values, tokens, real, bos, "wiring" in self.__dict__ and self.wiring.post_norm, self._words(tokens, real)
        )

    def _words(self, tokens: Tensor | None, mask: Tensor | None) -> tuple[tuple[str, ...], ...] | None:
        """Each prompt's real tokens as text."""
        if self.tokenizer is None or tokens is None or mask is None:
            return None
        rows = [ids[keep].tolist() for ids, keep in zip(tokens, mask, strict=True)]
        return tuple(tuple(self.tokenizer.decode([i]) for i in row) for row in rows)

    def _run(
        self,
        table: dict[str, Site],
        edits: list[Edit],
        names: list[str],
        kept: _Kept,
        inputs: dict[str, Any],
        strict: bool,
    ) -> None:
        """One forward pass that records; the hooks of an enclosing `edit` step aside, their edits are in `edits`."""
        with (
            self._bare() as outer,
            torch.no_grad(),
            Session(self.module, table, edits, names, kept, stop=True) as session,
        ):
            accepted = inspect.signature(self.module.forward).parameters
            if "use_cache" in accepted and "use_cache" not in inputs and "past_key_values" not in inputs:
                inputs = inputs | {"use_cache": False}
            with suppress(Stop):
                self.module(**inputs)
            if outer is not None:
                outer.fired |= session.fired
        if session.left:
            raise WrongUse(
                f"the run never reached {', '.join(sorted(session.left))}: these modules are not called for this input."
            )
        report_unfired([e for e in session.unfired() if e not in self._active], strict)

    @contextmanager
    def _bare(self) -> Iterator[Session | None]:
        """The hooks of the enclosing `edit` step aside; they are back afterwards."""
        outer, self._session = self._session, None
        if outer is not None:
            outer.close()
        try:
            yield outer
        finally:
            if outer is not None:
                self._session = outer.__enter__()

    def _plan(
        self, names: list[str], table: dict[str, Site], inputs: dict[str, Any], pos: Pos, dtype: Any, device: Any
    ) -> None:
        tokens = inputs.get("decoder_input_ids", inputs.get("input_ids"))
        if tokens is None:
            return
        batch, length = inputs.get("input_ids", tokens).shape
        kept = (
            length
            if isinstance(pos, (str, slice)) and pos != "last"
            else 1
            if isinstance(pos, (int, str))
            else len(pos)
        )
        size = dtype or self.dtype
        costs = {n: memory.site_bytes(table[n], batch, length, kept, size) for n in names if table[n].shape}
        memory.check_plan(costs, memory.available(torch.device(device) if device else self.device))

    def _resolved(self, edits: Iterable[Edit]) -> list[Edit]:
        """Edits with globs expanded and aliases replaced by canonical names."""
        found = []
        for edit in edits:
            if not isinstance(edit, Edit) or type(edit) is Edit:
                raise WrongUse(f"{edit!r} is no edit: use Zero, Mean, Patch, Steer, Project, Scale or Replace.")
            names = self._sites([edit.site])[0]
            source = getattr(edit, "source", None)
            if isinstance(edit, Patch) and isinstance(source, Cache):
                missing = [n for n in names if n not in source]
                if missing:
                    source[missing[0]]
            found += [replace(edit, site=name) for name in names]
        return found

    @contextmanager
    def edit(self, *edits: Edit, strict: bool = False) -> Iterator[Model]:
        """Every call, recording and generation inside the `with` is edited. Contexts nest; leaving removes every hook."""
        mine, before = self._resolved(edits), self._active
        table = self._sites([e.site for e in [*before, *mine]])[1]
        session = Session(self.module, table, [*before, *mine], prompt=lambda: self._prompt)
        with self._bare() as outer:
            self._active = [*before, *mine]
            try:
                with session:
                    self._session = session
                    yield self
            finally:
                self._active, self._session = before, None
            if outer is not None:
                outer.fired |= session.fired
        report_unfired([e for e in session.unfired() if e in mine], strict)

    @torch.no_grad()
    def generate(self, x: Any, max_new_tokens: int = 20, *, bos: bool | None = None, **options: Any) -> Any:
        """Continue prompts; text in, text out, ids in, ids out. Prompts of unequal length are padded on the left.

        `options` go to the wrapped model's own `generate` (greedy unless do_sample=True is given). Raises `WrongUse` if
        the prompts differ in length and the architecture cannot be padded on the left.
        """
        text = isinstance(x, str) or (isinstance(x, (list, tuple)) and x and isinstance(x[0], str))
        tokens = self.tokens(x, bos) if text else x if isinstance(x, Tokens) else None
        if tokens is None:
            ids = self.inputs(x)["input_ids"]
            tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
        lengths = tokens.mask.sum(1)
        if int(lengths.min()) < int(lengths.max()):
            self._check_left_padding()
            tokens = self.pad([i[m].tolist() for i, m in zip(tokens.ids, tokens.mask, strict=True)], left=True, bos=bos)
        self._prompt = lengths
        try:
            options = {"do_sample": False, "pad_token_id": getattr(self.tokenizer, "pad_token_id", None) or 0} | options
            out = self.module.generate(
                tokens.ids, attention_mask=tokens.mask.long(), max_new_tokens=max_new_tokens, **options
            )  # type: ignore[operator]
        finally:
            self._prompt = None
        if not text:
            return out
        texts = self.tokenizer.batch_decode(out, skip_special_tokens=True)
        return texts[0] if isinstance(x, str) else texts

    def _check_left_padding(self) -> None:
        from interp.model.proof import left_padding_error

        with self._bare():
            error = left_padding_error(self)
        if error > 1e-8:
            raise WrongUse(
                f"{self.id} gives other results when prompts are padded on the left (off by {error:.1e} on its float64 twin), "
                "so prompts of different lengths cannot be generated in one batch: call generate once per prompt."
            )

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.module.parameters())
        return f"Model({self.id!r}, {type(self.module).__name__}, {count / 1e6:.1f} M parameters, {self.dtype}, {self.device})"


def _own_tolerance(dtype: torch.dtype) -> float:
    """How far a stream sum may be off, relative to its norm, when the model adds in its own dtype."""
    return {torch.float64: 1e-9, torch.float32: 1e-5}.get(dtype, 4 * torch.finfo(dtype).eps)


class _Kept:
    """Receives recorded tensors; keeps the positions, dtype and device asked for, without a copy where none is needed."""

    def __init__(self, pos: Pos, dtype: torch.dtype | None, device: Any, clone: bool) -> None:
        self.pos, self.dtype, self.device, self.clone = pos, dtype, device, clone
        self.values: dict[str, Tensor] = {}
        self.versions: dict[str, tuple[Tensor, int]] = {}

    def __call__(self, site: str, x: Tensor, positions: Positions) -> None:
        if not (isinstance(self.pos, str) and self.pos == "all"):
            axis = 2 if site.endswith((".scores", ".pattern")) else 1
            chosen = positions.select(self.pos).to(x.device)
            counts = chosen.sum(1)
            if int(counts.min()) != int(counts.max()) or int(counts.max()) == 0:
                raise WrongUse(
                    f"pos={self.pos!r} keeps {counts.tolist()} positions of the prompts: it must keep equally many, at least one."
                )
            x = (
                x.movedim(axis, 1)[chosen]
                .reshape(x.shape[0], int(counts[0]), *x.movedim(axis, 1).shape[2:])
                .movedim(1, axis)
            )
        kept = x.detach().to(device=self.device, dtype=self.dtype)
        self.values[site] = kept.clone() if self.clone and kept.data_ptr() == x.data_ptr() else kept
        self.versions[site] = (self.values[site], self.values[site]._version)

    def changed(self) -> bool:
        """Whether the model later wrote into a recorded tensor in place; then the run is repeated with copies."""
        return any(t._version != version for t, version in self.versions.values())
