"""The wrapper: one model, its sites, and the four things done with it: call, record, edit, generate."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from interp.errors import Failed, WrongUse, check_keys
from interp.model import memory
from interp.model.attach import Attached, attached
from interp.model.binding import Binding, Site, as_mapping, bind
from interp.model.cache import Cache
from interp.model.edits import KINDS, Edit
from interp.model.heads import head_site
from interp.model.inputs import dtype_of, first_name, home, probe_inputs
from interp.model.keep import Joined, Kept
from interp.model.live import (
    check_differentiable,
    check_mask,
    check_options,
    main_inputs,
    right_padding_error,
    uncompiled,
)
from interp.model.positions import Pos, of_call
from interp.model.proof import prove_sums
from interp.model.session import Keep, Session, Stop, report_unfired, submodule
from interp.model.stacks import solve
from interp.model.sweep import Metric, Probe, Sweep, by_site, grouped, measure, output_tensor, slopes
from interp.model.trace import Trace, trace
from interp.model.twin import Lifted, twin_of
from interp.model.weights import Weights
from interp.model.wiring import Place, Wiring
from interp.sites import MODULE, NO_GRADIENT, READ_ONLY, expand, explain_unknown, head_of, host, refuse

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

F = TypeVar("F", bound=Callable[..., Any])
GIVEN = "text, a list of texts, token ids (a tensor, or a list for each prompt), a float tensor or a dict"


def teaches(function: F) -> F:
    """Unknown keywords raise `WrongUse` that names the nearest one."""
    known = dict.fromkeys(p for p in inspect.signature(function).parameters if p != "self")

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if not kwargs.keys() <= known.keys():
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
        self.module, self.tokenizer = uncompiled(module), tokenizer
        self.id = id or type(self.module).__name__
        self.attached: tuple[Attached, ...] = ()
        self._active: list[Edit] = []
        self._tally: WeakKeyDictionary[Edit, int] = WeakKeyDictionary()
        self._session: Session | None = None
        self._prompt: Tensor | None = None

    # ------------------------------------------------------------ what it is

    @property
    def config(self) -> Any:
        """The wrapped model's config, or None."""
        return getattr(self.module, "config", None)

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs: its first parameter's device."""
        return home(self.module)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first parameter."""
        return dtype_of(self.module)

    @cached_property
    def wiring(self) -> Wiring:
        """Who writes to the stream, solved on a small float64 twin and proven on inputs the solver has not seen."""
        with self._bare():
            twin = twin_of(self.module)
        with Lifted(), torch.no_grad():
            wiring = solve(twin, _probed(twin))
            unseen = _probed(twin, batch=3, length=9, seed=1)
            return prove_sums(wiring, unseen, tolerance=1e-8)

    @cached_property
    def binding(self) -> Binding:
        """Every site of this model, with the real weights checked in their own dtype."""
        modes = {m: m.training for m in self.module.modules()}
        self.module.eval()
        try:
            with self._bare():
                seen = _probed(self.module, batch=8, length=5)
        finally:
            for m, mode in modes.items():
                m.training = mode
        return bind(prove_sums(self.wiring, seen, tolerance=_own_tolerance(self.dtype)), seen)

    @cached_property
    def weights(self) -> Weights:
        """Every weight by canonical name: `model.weights["blocks.3.attn.W_Q"]` [head, d_model, d_head]; see `Weights`."""
        return Weights(self)

    def take_wiring(self, wiring: Wiring) -> None:
        """Use another wiring than the solved one, unproven: for the doctor, who puts it to the proof."""
        with torch.no_grad():
            seen = _probed(self.module, batch=8, length=5)
        self.__dict__ |= {"wiring": wiring, "binding": bind(wiring, seen)}
        self._forget()

    def _forget(self) -> None:
        """The sites are others than they were."""
        for known in ("_table", "_expanded", "_ready", "_numbers"):
            self.__dict__.pop(known, None)

    def to_transformer_lens(self) -> Any:
        """A TransformerLens bridge around a copy of this model; see `interp.interop.lens.to_transformer_lens`."""
        from interp.interop.lens import to_transformer_lens  # on the way out: nothing in this room rests on it

        return to_transformer_lens(self)

    def sites(self) -> dict[str, tuple[int | str, ...]]:
        """Every site and its shape, in order of depth; "batch", "pos", "query" and "key" stand for lengths of the run."""
        return as_mapping(self._table)

    @cached_property
    def _table(self) -> dict[str, Site]:
        """The model's own sites, and those of attached dictionaries behind the sites they belong to."""
        derived = self._derived
        if not derived:
            return self.binding.sites
        table: dict[str, Site] = {}
        for name, site in self.binding.sites.items():
            table |= {name: site} | {d: s for d, s in derived.items() if host(d) == name}
        return table | derived

    @property
    def _derived(self) -> dict[str, Site]:
        return {name: site for a in self.attached for name, site in a.sites.items()}

    def names(self, sites: str | Sequence[str]) -> list[str]:
        """Canonical names of all sites that match; raises `WrongUse` for a name or glob that matches nothing."""
        return self._sites(sites)[0]

    def width(self, site: str) -> int:
        """Numbers a position has at a site: heads and their entries together."""
        names, table = self._sites(site)
        shape = table[names[0]].shape
        if not shape:
            raise WrongUse(f"the width of {site!r} is known only once it is recorded: use the site's own name.")
        sizes = [size for size in shape if size not in ("batch", "pos")]
        if not all(isinstance(size, int) for size in sizes):
            raise WrongUse(f"{site!r} has no fixed width: its shape is [{', '.join(map(str, shape))}].")
        return math.prod(sizes)  # type: ignore[arg-type]

    def _sites(self, patterns: str | Iterable[str]) -> tuple[list[str], dict[str, Site]]:
        """Names that match, and the table of sites with the `module:` ones added."""
        patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
        if all(p.startswith(MODULE) for p in patterns):
            return list(dict.fromkeys(patterns)), {n: self._module_site(n) for n in patterns}
        names = self._expanded(patterns)
        others = {n: self._module_site(n) for n in names if n.startswith(MODULE)}
        others |= {n: head_site(n, self._table[head_of(n)[0]]) for n in names if n not in self._table | others}
        return list(names), self._table | others if others else self._table

    @cached_property
    def _expanded(self) -> Callable[[tuple[str, ...]], list[str]]:
        """`expand` for this model; the globs last asked for are remembered."""
        sites, refused = self._table, self.binding.refused
        return lru_cache(maxsize=64)(lambda patterns: expand(patterns, sites, refused, self.wiring.post_norm))

    def _module_site(self, name: str) -> Site:
        """`module:path`, `module:path:in`, `module:path@2` (its third call), and what is attached there."""
        if name in self._derived:
            return self._derived[name]
        path, _, side = name.removeprefix(MODULE).partition(":")
        path, _, call = path.partition("@")
        found = None
        with suppress(KeyError, AttributeError):
            found = submodule(self.module, path)
        if found is None or side not in ("", "in", "out") or (call and not call.isdigit()):
            raise explain_unknown(name, [MODULE + m for m, _ in self.module.named_modules()], {})
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
        """Keyword arguments for the wrapped model from text, texts, ids, lists of ids, `Tokens`, a float tensor or a dict."""
        if isinstance(x, Tensor):
            if x.is_floating_point():
                return {getattr(self.module, "main_input_name", "pixel_values"): x.to(self.device, self.dtype)}
            return self._named(x if x.ndim > 1 else x.reshape(1, -1))
        if isinstance(x, Mapping):
            empty = next((n for n, t in x.items() if isinstance(t, Tensor) and t.numel() == 0), None)
            if empty is not None:
                raise WrongUse(f"the input {empty!r} holds nothing: its shape is {tuple(x[empty].shape)}.")
            return dict(x)
        if isinstance(x, str) or (isinstance(x, Sequence) and x and isinstance(x[0], str)):
            x = self.tokens(x, bos)
        x = self._listed(x) if isinstance(x, (list, tuple)) else x
        if not isinstance(x, Tokens):
            raise WrongUse(f"{type(x).__name__} is no input: give {GIVEN}.")
        return self._named(x.ids) | ({} if bool(x.mask.all()) else {"attention_mask": x.mask.long()})

    def _listed(self, x: Sequence[Any]) -> Tokens:
        """Token ids of one prompt, or a list of them for each of several."""
        lists = [x] if x and isinstance(x[0], int) else x
        if not lists or any(
            not isinstance(ids, (list, tuple)) or not all(type(i) is int for i in ids) for ids in lists
        ):
            raise WrongUse(f"{x!r:.80} is no input: give {GIVEN}.")
        if [] in [list(ids) for ids in lists]:
            raise WrongUse(f"prompt {[len(ids) for ids in lists].index(0)} has no tokens.")
        return self.pad(lists)

    def _named(self, ids: Int[Tensor, "batch pos"]) -> dict[str, Any]:
        """Token ids under the name the wrapped model gives them, with a decoder's first token if it has one."""
        if ids.numel() == 0:
            raise WrongUse(f"the input has no tokens: its shape is {tuple(ids.shape)}.")
        ids = ids.to(self.device)
        if not self._has_decoder:
            return {self._main_input: ids}
        start = getattr(self.config, "decoder_start_token_id", None) or 0
        return {self._main_input: ids, "decoder_input_ids": torch.full_like(ids[:, :1], start)}

    @cached_property
    def _main_input(self) -> str:
        """What the wrapped model calls its token ids."""
        return first_name(self.module)

    @cached_property
    def _has_decoder(self) -> bool:
        """Whether the wrapped model is an encoder and a decoder."""
        return bool(getattr(self.config, "is_encoder_decoder", False))

    # ------------------------------------------------------------ what is done with it

    def __call__(self, x: Any, **kwargs: Any) -> Any:
        """What the wrapped model returns, with the edits of the enclosing `with model.edit(...)`."""
        inputs = self.inputs(x)
        self._check_mask(inputs)
        return self.module(**inputs, **kwargs)

    @teaches
    def record(
        self,
        x: Any,
        sites: str | Sequence[str],
        *,
        edits: Sequence[Edit] = (),
        grad: Metric | None = None,
        pos: Pos = "all",
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        bos: bool | None = None,
        strict: bool = False,
    ) -> Cache:
        """Run once and keep the tensors at `sites` (names or globs; add "logits" to run to the end).

        The pass stops after the last site needed. `pos` keeps some positions of each prompt (int, slice, list, "last");
        `dtype` and `device` say what to keep them as; `edits` are applied first, and recorded values show them. With
        `grad`, a function from the logits [batch, pos, vocab] to a scalar, the pass runs to its end and `cache.grad[site]`
        is d grad(logits) / d site; parameters are left as they are. With `strict`, an edit that changes nothing is an
        error. Raises `WrongUse` for an unknown site or keyword, an edit that cannot fire or does not fit, and gradients of
        a quantised model; `Failed` if the recording would not fit in memory.
        """
        names = self._sites(sites)[0]
        if not names:
            raise WrongUse("no site was named, so there is nothing to record: sites=['blocks.*.resid_post'], say.")
        inputs, mine = self.inputs(x, bos), self._resolved(edits)
        tokens, mask = inputs.get(self._main_input), inputs.get("attention_mask")
        tokens = None if tokens is None or tokens.is_floating_point() else tokens
        self._check_mask(inputs)
        if mine:
            self._check_edits(mine, inputs)
        if grad is not None:
            check_differentiable(self.module)
            refuse(
                [*names, *(e.site for e in [*self._active, *mine])],
                NO_GRADIENT | self._fixed(),
                "has no gradient, nor lets one through",
            )
        self._afford(names, inputs, pos, dtype, device, copies=1 if grad is None else 2)
        for clone in (False, True):
            kept, slope = Kept(pos, dtype, device, clone), Kept(pos, dtype, device, False)
            self._run(mine, names, kept, inputs, strict, grad, slope)
            if not kept.changed():
                break
        if mask is not None:
            mask = mask.bool()
        elif tokens is not None:
            mask = torch.ones_like(tokens, dtype=torch.bool)
        return Cache(
            {n: kept.values[n] for n in names},
            tokens,
            mask,
            bos,
            self._post_norm,
            getattr(self.tokenizer, "decode", None),
            pos,
            None if grad is None else {n: slope.values[n] for n in names},
        )

    def linked(self, x: Any, sites: str | Sequence[str], until: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(A zero added at each site, the tensors at the sites and at `until`) of one run, still in their graph.

        torch.autograd.grad of something made of `until`, to the zeros, gives its derivative to the sites. Raises what
        `record` with `grad` raises.
        """
        names, inputs = self._sites(sites)[0], self.inputs(x)
        self._check_mask(inputs)
        check_differentiable(self.module)
        refuse(names, NO_GRADIENT | self._fixed(), "has no gradient")
        probes, found = [Probe(n) for n in names], {}
        keep = lambda site, t, _: found.update({site: t})  # noqa: E731
        with (
            self._watched(probes, [*names, until], keep=keep, stop=True),
            torch.inference_mode(False),
            torch.enable_grad(),
            suppress(Stop),
        ):
            self.module(**main_inputs(self.module, _usable(inputs)))
        return {p.site: p.zeros[0][0] for p in probes}, found

    @property
    def _post_norm(self) -> bool:
        """Whether aliases mean sums before the norm; False while nothing but `module:` sites was asked for."""
        return "wiring" in self.__dict__ and self.wiring.post_norm

    @contextmanager
    def _watched(
        self, edits: Sequence[Edit], reads: Sequence[str] = (), keep: Keep | None = None, stop: bool = False
    ) -> Iterator[Session]:
        """Hooks for these edits after those of the enclosing `edit`, whose own hooks step aside."""
        edits = [*self._active, *edits]
        session = self._hooks(edits, reads) if edits else self._ready(tuple(reads))
        if session.undo:  # in use: a recording within a recording
            session = self._hooks(edits, reads)
        session.keep, session.stop = keep, stop
        with nullcontext() if self._session is None else self._bare() as outer, session:
            yield session
        if outer is not None:
            outer.fired |= session.fired

    def _hooks(self, edits: Sequence[Edit], reads: Sequence[str] = ()) -> Session:
        hosts = [site for a in self.attached for site in a.hosts]
        table = self._sites([*(e.site for e in edits), *reads, *hosts])[1]
        prompt, attached = (lambda: self._prompt), self.attached
        return Session(self.module, table, edits, reads, prompt=prompt, tally=self._tally, attached=attached)

    @cached_property
    def _ready(self) -> Callable[[tuple[str, ...]], Session]:
        """Hooks that only read; the last ones are kept."""
        return lru_cache(maxsize=8)(lambda reads: self._hooks((), reads))

    def _run(
        self,
        edits: Sequence[Edit],
        names: list[str],
        kept: Kept,
        inputs: dict[str, Any],
        strict: bool,
        grad: Metric | None,
        slope: Kept,
    ) -> None:
        """One forward pass that records, and with `grad` a backward pass after it."""
        probes = [Probe(n) for n in names] if grad is not None else []
        for edit in edits:
            self._tally[edit.origin] = 0
        with (
            self._watched([*edits, *probes], names, keep=kept, stop=grad is None) as session,
            torch.inference_mode(False),
            torch.set_grad_enabled(grad is not None),
        ):
            with suppress(Stop):
                output = self.module(**main_inputs(self.module, _usable(inputs)))
            if grad is not None:
                slopes(output, grad, probes, slope)
        if session.left:
            raise WrongUse(
                f"the run never reached {', '.join(sorted(session.left))}: these modules are not called for this input."
            )
        report_unfired([e for e in session.unfired() if e in edits], strict)

    @contextmanager
    def _bare(self) -> Iterator[Session | None]:
        """The hooks of the enclosing `edit` step aside; they are back afterwards."""
        outer, self._session, attached = self._session, None, self.attached
        if outer is not None:
            outer.close()
        try:
            yield outer
        finally:
            self._session = outer
            if self.attached is not attached:
                self._renew()
            elif outer is not None:
                outer.__enter__()

    def _renew(self) -> None:
        """The hooks of the enclosing `edit`, with what is attached now; also without one, where an error is dropped."""
        old, self._session = self._session, None
        if old is not None:
            old.close()
        if self._active or not all(a.error for a in self.attached):
            self._session = self._hooks(self._active)
            self._session.fired = self._session.fired if old is None else old.fired
            self._session.__enter__()

    # ------------------------------------------------------------ checked before a run

    @cached_property
    def _padding_error(self) -> float | None:
        with self._bare():
            return right_padding_error(self)

    def _check_mask(self, inputs: Mapping[str, Any]) -> None:
        mask = inputs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2 and not bool(mask.bool().all()):
            check_mask(self)

    def _check_edits(self, edits: Sequence[Edit], inputs: Mapping[str, Any]) -> None:
        """Every edit can fire and fits, as far as the inputs tell."""
        table = self._sites([e.site for e in edits])[1]
        for edit in edits:
            prefix = "decoder_" if edit.site.startswith("decoder.") else ""
            where = of_call(inputs, prefix)
            lone = where is None or inputs.get("past_key_values") is not None or "cross_attn" in edit.site
            sizes = {} if where is None else {"batch": len(where.index)}
            if where is not None and not lone:
                sizes |= dict.fromkeys(("pos", "query", "key"), where.index.shape[1])
            edit.check(table[edit.site].shape, sizes if edit.site != "pos_embed" else {}, None if lone else where)

    @teaches
    def plan(
        self,
        x: Any,
        sites: str | Sequence[str],
        *,
        pos: Pos = "all",
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> memory.Plan:
        """The bytes `record` would hold with the same arguments, found by recording a few tokens and scaling up.

        What sites share (a stream handed on, parts of a fused projection) is counted once. `plan.bytes`,
        `plan.by_site`, `plan.to_frame()`.
        """
        names, table = self._sites(sites)
        inputs = self.inputs(x)
        large = _lengths(inputs)
        small = {"batch": 2, "pos": min(4, large["pos"]), "decoder": min(3, large["decoder"])}
        kept = Kept("all", dtype, device, clone=False)
        with self._watched([], names, keep=kept, stop=True), torch.no_grad(), suppress(Stop):
            self.module(**main_inputs(self.module, memory.cut(inputs, small, 2)))
        share = _share(pos, inputs)
        costs = memory.held(kept.values) if share is None else {n: t.nbytes for n, t in kept.values.items()}
        ratios = {n: memory.growth(n, table[n], t, small, large) for n, t in kept.values.items()}
        return memory.Plan({n: round(costs[n] * ratios[n] * (1 if share is None else share)) for n in names})

    def _afford(
        self,
        names: list[str],
        inputs: dict[str, Any],
        pos: Pos,
        dtype: torch.dtype | None,
        device: Any,
        copies: int = 1,
    ) -> None:
        """Refuse a recording that will not fit: by a quick count, and exactly (see `plan`) where that comes near."""
        if not any(isinstance(inputs.get(k), Tensor) for k in ("input_ids", "decoder_input_ids")):
            return
        large, share = _lengths(inputs), _share(pos, inputs)
        length = max(large["pos"], large["decoder"])
        kept = length if share is None else round(share * large["pos"])
        numbers = copies * self._numbers(tuple(names), large["batch"], length, kept)
        if 8 * numbers < memory.SMALL:
            return
        rough = numbers * (dtype or self.dtype).itemsize
        free = memory.available(torch.device(device) if device else self.device)
        if free is not None and rough > 0.2 * free:
            costs = self.plan(inputs, names, pos=pos, dtype=dtype, device=device).by_site
            memory.check_plan({n: copies * size for n, size in costs.items()}, free)

    @cached_property
    def _numbers(self) -> Callable[[tuple[str, ...], int, int, int], int]:
        """How many numbers sites hold for a batch of a length, of which some positions are kept; the last counts stay."""
        return lru_cache(maxsize=64)(
            lambda names, *run: sum(memory.numbers(self._sites(names)[1][n].shape, *run) for n in names)
        )

    # ------------------------------------------------------------ edits

    def _resolved(self, edits: Iterable[Edit]) -> list[Edit]:
        """Edits with globs expanded and aliases replaced by canonical names."""
        found = []
        for edit in edits:
            if not isinstance(edit, Edit) or type(edit) is Edit:
                raise WrongUse(f"{edit!r} is no edit: use one of {', '.join(KINDS)}.")
            names = self._sites(edit.site)[0]
            refuse(names, READ_ONLY | self._fixed(), "can be recorded, but not edited")
            source = getattr(edit, "source", None)
            if isinstance(source, Cache):
                for name in names:
                    source[name]  # raises if it was not recorded
            found += [edit.at(name) for name in names]
        return found

    @contextmanager
    def edit(self, *edits: Edit, strict: bool = False) -> Iterator[Model]:
        """Every call, recording and generation inside the `with` is edited. Contexts nest; leaving removes every hook.

        `model.fired(edit)` says how often each fired. An edit that did not warns, or raises `Failed` under `strict`.
        Raises `WrongUse` for an unknown site, a head or index out of range, and a tensor that does not fit the site.
        """
        mine, before = self._resolved(edits), self._active
        table = self._sites([e.site for e in [*before, *mine]])[1]
        for edit in mine:
            edit.check(table[edit.site].shape, {})
            self._tally[edit.origin] = 0
        session = self._hooks([*before, *mine])
        with self._bare() as outer:
            self._active = [*before, *mine]
            try:
                self._session = session.__enter__()
                yield self
            finally:
                if self._session is not None:  # another one, if a dictionary was attached meanwhile
                    self._session.__exit__()
                self._active, self._session = before, None
            if outer is not None:
                outer.fired |= session.fired
        report_unfired([e for e in session.unfired() if e in mine], strict)

    def fired(self, edit: Edit) -> int:
        """How many tensors an edit has changed since it was last put in place: one a site and forward pass."""
        if edit.origin not in self._tally:
            raise WrongUse(f"{edit!r} was never used with this model: with model.edit(edit): ...")
        return self._tally[edit.origin]

    @teaches
    def sweep(
        self, edits: Sequence[Edit | Sequence[Edit]], x: Any, metric: Metric, *, batch: int | None = None
    ) -> Sweep:
        """The metric under each edit, one edit a row of a batch that repeats the prompt `x`.

        An element of `edits` may be a list of edits made together. `metric` maps logits [batch, pos, vocab] to [batch].
        Equal to running each alone. `batch`: rows a pass; by default as many as fit in memory, 64 at most. Raises
        `WrongUse` if `x` is more than one prompt, or an edit cannot fire.
        """
        groups, inputs = grouped(edits), self.inputs(x)
        self._check_mask(inputs)
        large = _lengths(inputs)
        if large["batch"] != 1:
            raise WrongUse(f"a sweep repeats one prompt, but x has {large['batch']}: sweep each one.")
        resolved = [self._resolved(group) for group in groups]
        for group in resolved:
            self._check_edits(group, inputs)
        shared, self._active = self._active, []  # an enclosing edit applies to each row as if it were alone
        try:
            clean = self._measured([shared], inputs, metric)
            size = batch or _rows_that_fit(clean[1], memory.available(self.device))
            rows = [[*shared, *group] for group in resolved]
            values = [self._measured(rows[i : i + size], inputs, metric)[0] for i in range(0, len(rows), size)]
        finally:
            self._active = shared
        return Sweep(tuple(groups), torch.cat(values), float(clean[0][0]))

    def _measured(
        self, rows: Sequence[Sequence[Edit]], inputs: Mapping[str, Any], metric: Metric
    ) -> tuple[Tensor, Tensor]:
        """(Metric of each row, one row's logits) for one pass whose row r has the edits rows[r]."""
        n, edits = len(rows), by_site(rows)
        many = {k: v.expand(n, *v.shape[1:]) if isinstance(v, Tensor) and v.ndim else v for k, v in inputs.items()}
        with self._watched(edits), torch.no_grad():
            logits = output_tensor(self.module(**main_inputs(self.module, many)))
        fired = set().union(*(e.fired for e in edits))
        report_unfired([e for row in rows for e in row if id(e) not in fired], strict=False)
        return measure(metric, logits), logits[:1]

    # ------------------------------------------------------------ dictionaries

    @teaches
    def attach(self, dictionary: Any, *, error: bool = True) -> Attached:
        """Make SITE.latents [batch, pos, m] and SITE.error sites: recorded, edited, swept and differentiated as any other.

        `error=True`: the model goes on from site + (f' − f) W_dec + (e' − e), so nothing changes until something is
        edited. `error=False`: the site is replaced by its reconstruction. SITE is what the dictionary writes; see
        `interp.model.attach` for gradients and for dictionaries of several sites. `with model.attach(D):` takes it
        away at the end, else `model.detach(D)`. Raises `WrongUse` for a site that the model does not have or that
        is written already, for a width that does not fit, and for error=False where a site is passed too early.
        """
        new = attached(self, dictionary, error)
        self._attach((*self.attached, new))
        return new

    def detach(self, dictionary: Any = None) -> None:
        """Take a dictionary away, or all of them. Raises `WrongUse` if it is not attached, or an edit still needs it."""
        gone = [a for a in self.attached if dictionary is None or a.dictionary is dictionary]
        if dictionary is not None and not gone:
            raise WrongUse("this dictionary is not attached to this model.")
        needed = [e.site for e in self._active if any(e.site in a.sites for a in gone)]
        if needed:
            raise WrongUse(f"an edit of {needed[0]!r} is in place: leave its `with model.edit(...)` before detaching.")
        self._attach(tuple(a for a in self.attached if a not in gone))

    def _attach(self, attached: tuple[Attached, ...]) -> None:
        self.attached = attached
        self._forget()
        self._renew()

    def _fixed(self) -> dict[str, str]:
        """Errors that cannot be edited, and why."""
        return {name: why for a in self.attached for name, why in a.fixed.items()}

    # ------------------------------------------------------------ generation

    @torch.no_grad()
    def generate(
        self,
        x: Any,
        max_new_tokens: int = 20,
        *,
        seed: int | None = None,
        record: str | Sequence[str] | None = None,
        bos: bool | None = None,
        **options: Any,
    ) -> Any:
        """Continue prompts; text in, text out, ids in, ids out. Prompts of unequal length are padded on the left.

        Greedy, or sampled under `seed`. With `record=[sites]` it returns (what was generated, `Cache`), whose rows are
        those of one forward pass over all tokens but the last, which the model never read. `options` go to the wrapped
        model's own `generate`. Raises `WrongUse` if the prompts differ in length and the architecture cannot be padded
        on the left, and for an option nobody knows.
        """
        check_options(self.module, options)
        text = isinstance(x, str) or (isinstance(x, (list, tuple)) and x and isinstance(x[0], str))
        tokens = self._prompts(self.tokens(x, bos) if text else x, bos)
        names = [] if record is None else self._recordable(record, tokens, max_new_tokens, options)
        fixed = {"do_sample": seed is not None, "pad_token_id": getattr(self.tokenizer, "pad_token_id", None) or 0}
        options = fixed | {"max_new_tokens": max_new_tokens, "attention_mask": tokens.mask.long()} | options
        if "logits" in names and "logits_to_keep" in inspect.signature(self.module.forward).parameters:
            options["logits_to_keep"] = 0  # all of them; transformers keeps the last position's alone
        kept, self._prompt = Joined(), tokens.mask.sum(1)
        if self._session is not None:
            self._session.fresh()
        try:
            with self._seeded(seed), self._reading(names, kept):
                out = self.module.generate(tokens.ids, **options)  # type: ignore[operator]
        finally:
            self._prompt = None
        told = out
        if text:
            texts = self.tokenizer.batch_decode(getattr(out, "sequences", out), skip_special_tokens=True)
            told = texts[0] if isinstance(x, str) else texts
        missed = [n for n in names if n not in kept.parts]
        if missed:
            raise WrongUse(f"the generation never reached {', '.join(missed)}.")
        ends = options.get("eos_token_id", getattr(self.module.generation_config, "eos_token_id", None))
        return told if record is None else (told, self._joined(kept, tokens, out, ends, bos))

    def _prompts(self, x: Any, bos: bool | None) -> Tokens:
        """Prompts as `generate` takes them: on the left where they differ in length, on the right for an encoder."""
        if not isinstance(x, Tokens):
            inputs = self.inputs(x)
            ids, mask = inputs["input_ids"], inputs.get("attention_mask")
            x = Tokens(ids, torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool())
        lengths = x.mask.sum(1)
        if int(lengths.min()) == int(lengths.max()) == x.mask.shape[1]:
            return x
        left = not self._has_decoder
        if left and int(lengths.min()) < int(lengths.max()):
            self._check_left_padding()
        return self.pad([i[m].tolist() for i, m in zip(x.ids, x.mask, strict=True)], left=left, bos=bos)

    @contextmanager
    def _seeded(self, seed: int | None) -> Iterator[None]:
        """Random numbers from a seed; the generators are afterwards as they were."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            yield

    @contextmanager
    def _reading(self, names: Sequence[str], kept: Joined) -> Iterator[None]:
        if not names:
            yield
            return
        with self._watched([], names, keep=kept):
            yield

    def _recordable(self, record: Any, tokens: Tokens, more: int, options: Mapping[str, Any]) -> list[str]:
        """Names to record while generating, refused where they cannot be or will not fit."""
        if options.get("num_beams", 1) != 1 or options.get("num_return_sequences", 1) != 1:
            raise WrongUse("record= follows one sequence a prompt: leave num_beams and num_return_sequences out.")
        names = self._sites(record)[0]
        longest = torch.zeros(len(tokens.ids), tokens.ids.shape[1] + more, dtype=torch.long, device=self.device)
        self._afford(names, {"input_ids": longest}, "all", None, None)
        return names

    def _joined(self, kept: Joined, tokens: Tokens, out: Any, ends: Any, bos: bool | None) -> Cache:
        """What was recorded while generating, for the tokens that were read, padded on the right."""
        ids = getattr(out, "sequences", out)[:, :-1]
        mask = torch.ones_like(ids, dtype=torch.bool)
        start = 1 if self._has_decoder else tokens.ids.shape[1]
        mask[:, :start] = tokens.mask if start > 1 else True
        if ends is not None:
            ended = torch.isin(ids[:, start:], torch.as_tensor(ends, device=ids.device)).long().cumsum(1)
            mask[:, start + 1 :] &= ended[:, :-1] == 0
        values = kept.values(mask)
        order = (~mask).long().argsort(dim=1, stable=True)
        ids, mask = ids.gather(1, order), mask.gather(1, order)
        return Cache(values, ids, mask, bos, self._post_norm, getattr(self.tokenizer, "decode", None))

    @cached_property
    def _left_padding_error(self) -> float:
        from interp.model.proof import left_padding_error

        with self._bare():
            return left_padding_error(self)

    def _check_left_padding(self) -> None:
        error = self._left_padding_error
        if error > 1e-8:
            raise WrongUse(
                f"{self.id} gives other results when prompts are padded on the left (off by {error:.1e} on its float64 twin), "
                "so prompts of different lengths cannot be generated in one batch: call generate once per prompt."
            )

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.module.parameters())
        return f"Model({self.id!r}, {type(self.module).__name__}, {count / 1e6:.1f} M parameters, {self.dtype}, {self.device})"


def _probed(module: nn.Module, **how: int) -> Trace:
    """One traced run on made-up inputs."""
    try:
        return trace(module, probe_inputs(module, **how))
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        raise Failed(
            f"{type(module).__name__} did not run on inputs made up for it ({type(error).__name__}: {error}). Give "
            "load(model, example=...) one that it takes: a tensor, or a dict of arguments. `module:` sites need none."
        ) from error


def _own_tolerance(dtype: torch.dtype) -> float:
    """How far a stream sum may be off, relative to its norm, when the model adds in its own dtype."""
    return {torch.float64: 1e-9, torch.float32: 1e-5}.get(dtype, 4 * torch.finfo(dtype).eps)


def _lengths(inputs: Mapping[str, Any]) -> dict[str, int]:
    """Batch, tokens and decoder tokens of a run; 1 token where the input is no text."""
    tensors = [v for v in inputs.values() if isinstance(v, Tensor) and v.ndim]
    shapes = {k: v.shape for k, v in inputs.items() if isinstance(v, Tensor) and v.ndim > 1}
    main = next((shapes[k] for k in ("input_ids", "inputs_embeds") if k in shapes), (1, 1))
    decoder = next((shapes[k] for k in ("decoder_input_ids", "decoder_inputs_embeds") if k in shapes), main)
    return {"batch": tensors[0].shape[0] if tensors else 1, "pos": main[1], "decoder": decoder[1]}


def _usable(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs without tensors made in the caller's inference mode, which no gradient may be computed with."""
    return {k: v.clone() if isinstance(v, Tensor) and v.is_inference() else v for k, v in inputs.items()}


def _share(pos: Pos, inputs: Mapping[str, Any]) -> float | None:
    """The part of each prompt's positions that `pos` keeps; None: all, and nothing is copied."""
    where = None if isinstance(pos, str) and pos == "all" else of_call(inputs)
    if where is None:
        return None
    return int(where.select(pos).sum(1).max()) / where.index.shape[1]


def _rows_that_fit(logits: Tensor, free: int | None) -> int:
    """Rows of a sweep: up to 64, while eight copies of their logits fit in half of what is free."""
    return 64 if free is None else max(1, min(64, free // (16 * logits.nbytes)))
