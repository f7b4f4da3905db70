"""A lens maps what stands at a site to the model's output space; the logit lens maps it by the model's own head alone.

logits_l = U(norm_f(h_l)), with the final norm, head, scaling and cap of the model itself; so at the last block the lens is
the model. Sources: nostalgebraist 2020, "interpreting GPT: the logit lens"; Belrose et al. 2023 (arXiv:2303.08112).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import WrongUse
from interp.kernels import largest
from interp.kernels.lens_statistics import Found
from interp.lenses.averages import Averages, averages
from interp.lenses.readout import Readout, token_id
from interp.lenses.statistics import statistics
from interp.lenses.trajectory import Trajectory, trajectory
from interp.model.model import Model, teaches
from interp.sites import head_of, host
from interp.store.recording import batches
from interp.texts import documents, token_texts

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

READS = ("resid_pre", "resid_start", "resid_mid", "resid_post", "resid", "write", "result")


def _rows(name: str, shapes: Mapping[str, tuple[int | str, ...]]) -> list[str]:
    """A site, or each head of one that has heads."""
    return [f"{name}.{head}" for head in range(int(shapes[name][2]))] if name.endswith(".result") else [name]


class Lens:
    """The logit lens of a model, and what every other lens is a kind of: one that maps a state before the head reads it.

    Raises what `Readout` raises: the model has no head, or no proven stream.
    """

    kind = "logit"
    reads: tuple[str, ...] = READS  # last names of the sites that can be read

    def __init__(self, model: Model) -> None:
        self.model, self.head = model, Readout(model)

    def mapped(self, row: str, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """What stands for the stream after the last block, given what stands at a row: itself, in a logit lens."""
        return x

    def logits(self, row: str, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n vocabulary"]:
        """The scores that the lens reads in states of a row: a site, or what a kind of lens makes several of."""
        return self.head(self.mapped(row, x))

    def ahead(self, row: str) -> int:
        """How many tokens further on the model says what a row is compared with; 0 but in a future lens."""
        return 0

    @teaches
    @torch.no_grad()
    def __call__(
        self,
        x: Any,
        sites: str | Sequence[str] | None = None,
        *,
        tokens: Sequence[int | str] = (),
        k: int = 5,
        bos: bool | None = None,
    ) -> Trajectory:
        """Read the sites of a run on `x`, by default the stream before the first block and after each.

        Of a head's `result` every head is read by itself; a `write` is read as if it were all of the stream. `tokens`:
        ids, or strings of one token, whose log-probabilities and ranks are wanted; `k`: how many of the likeliest are kept.
        The scores of all sites are never held at once: those of some tokens are, at up to 256 MB (docs/kernels.md).
        Raises `WrongUse` for a site that the lens cannot read.
        """
        names = self.readable(sites)
        texts = [x] if isinstance(x, str) else x if isinstance(x, (list, tuple)) else []
        if any(isinstance(t, str) and not t.strip() for t in texts):
            raise WrongUse("a text is empty: a lens reads what a model makes of tokens, so give it at least one word.")
        inputs = self.inputs(x, bos)
        last, states = self.states(inputs, names)
        ids, mask = self.places(inputs, last)
        last, states = last[mask], {name: state[mask] for name, state in states.items()}
        asked = self.asked(ids, mask, tokens)
        prompt, pos = mask.nonzero()[:, 0], (mask.cumsum(1) - 1)[mask]
        return trajectory(
            self._compared(states, last, asked, prompt, k),
            kind=self.kind,
            sites=tuple(states),
            ids=None if ids is None else ids[mask].cpu(),
            prompt=prompt.cpu(),
            pos=pos.cpu(),
            chosen=tuple(asked[0, 1:].tolist()),
            words=self.words,
        )

    def _compared(
        self,
        states: Mapping[str, Float[Tensor, "token ..."]],
        last: Float[Tensor, "token ..."],
        asked: Int[Tensor, "token asked"],
        prompt: Int[Tensor, " token"],
        k: int,
    ) -> Found:
        """Every row beside what the model itself says where the row looks, `best` [row, token] with one for each row.

        Where a row looks further ahead than its prompt goes, the model says nothing to compare with: NaN, rank 0, -1.
        """
        found: dict[str, tuple[Tensor, ...]] = {}
        place = torch.arange(len(last), device=last.device)
        for ahead in dict.fromkeys(map(self.ahead, states)):
            rows = [row for row in states if self.ahead(row) == ahead]
            there = (place + ahead).clamp(max=len(last) - 1)
            known = (place + ahead == there) & (prompt[there] == prompt)
            wanted = torch.cat([asked[there, :1].masked_fill(~known[:, None], -1), asked[:, 1:]], dim=1)
            mapped = lambda i, x, rows=rows: self.mapped(rows[i], x)  # noqa: E731
            seen = statistics(self.head, [states[row] for row in rows], mapped, last[there], wanted, k)
            best, *others = seen if ahead == 0 else seen.where(known)
            found |= {row: (best, *(t[i] for t in others)) for i, row in enumerate(rows)}
        return Found(*(torch.stack(parts) for parts in zip(*(found[row] for row in states), strict=True)))

    @teaches
    def over(
        self,
        texts: Path | Iterable[str],
        sites: str | Sequence[str] | None = None,
        *,
        context: int = 256,
        batch: int = 8,
        tokens: int | None = None,
    ) -> Averages:
        """Means over a text file, a folder of them, or texts, with 95 % bands; see `Averages`.

        `context`: tokens of a window; `batch`: windows a pass; `tokens`: stop after this many. Raises `WrongUse` for a
        text that is not there or holds nothing, and as `__call__` does.
        """
        parts, left = [], tokens
        for _, group in batches(self.model, documents(texts), context, batch):
            parts.append(self(self.model.pad(group), sites, k=1))
            left = None if left is None else left - len(parts[-1].pos)
            if left is not None and left <= 0:
                break
        return averages(parts)

    @torch.no_grad()
    def read(
        self, vectors: Float[Tensor, "n ..."], site: str | None = None, k: int = 10
    ) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
        """(Ids, log-probabilities) of the k likeliest for vectors that stand at no token, say `dictionary.W_dec[latents]`."""
        found = []
        for part in vectors.split(256):
            scores = self.logits(site or self.head.last, part).log_softmax(1)
            found.append(largest(scores, None, min(k, self.head.width)))
        return torch.cat([places for _, places in found]).cpu(), torch.cat([values for values, _ in found]).cpu()

    # ------------------------------------------------------------ what can be read

    def readable(self, sites: str | Sequence[str] | None = None) -> list[str]:
        """The rows of the sites asked for, in order: of a `result` one a head, of others the site.

        Raises `WrongUse` for a site that is not there or cannot be read.
        """
        prefix = self.head.stack.prefix
        if sites is None:
            return [self.head.first, *(f"{prefix}blocks.{i}.resid_post" for i in range(len(self.head.stack.blocks)))]
        names = self.model.names(sites)
        if not names:
            raise WrongUse("no site was named: leave `sites` out for the stream after every block.")
        for name in names:
            self._check(name)
        shapes = self.model.sites()
        return [row for name in names for row in _rows(name, shapes)]

    def _check(self, name: str) -> None:
        prefix, shape = self.head.stack.prefix, self.model.sites().get(head_of(name)[0], ())
        site = host(head_of(name)[0])  # where latents stand, or what they do not explain
        width = self.model.sites()[self.head.last][2:]
        held = self.model.sites().get(site, ()) if name.endswith(".latents") else shape
        inside = site.startswith(f"{prefix}blocks.") and site.rsplit(".", 1)[-1] in self.reads
        if not inside or held[-len(width) :] != width or name.endswith((".result.error", ".result.latents")):
            told = f"it holds [{', '.join(map(str, shape))}], and " if shape else ""
            raise WrongUse(
                f"the {self.kind} lens of {self.model.id} cannot read {name!r}: {told}only what stands in the stream that the "
                f"head reads, or is added to it, can be read: {prefix}blocks.*.resid_pre, .resid_mid, .resid_post, "
                f".attn.write, .mlp.write, .attn.result, one head of it (.attn.result.0), or latents of a dictionary there."
            )

    def words(self, ids: Sequence[int]) -> list[str]:
        """Tokens as text; classes by their names; ids in brackets where neither is known."""
        names = getattr(self.model.config, "id2label", None) if not self.head.per_position else None
        if names:
            return [str(names.get(i, f"[{i}]")) for i in ids]
        return token_texts(self.model.tokenizer)(ids)

    # ------------------------------------------------------------ what is run, and what is asked about

    def inputs(self, x: Any, bos: bool | None = None) -> dict[str, Any]:
        """What the wrapped model is given."""
        return self.model.inputs(x, bos)

    def states(
        self, inputs: dict[str, Any], names: Sequence[str]
    ) -> tuple[Float[Tensor, "batch pos ..."], dict[str, Float[Tensor, "batch pos ..."]]]:
        """(The stream after the last block, what stood at each row)."""
        cache = self.model.record(inputs, [*names, self.head.last])
        return cache[self.head.last], {name: self._standing(name, cache[name]) for name in names}

    def _standing(self, row: str, x: Float[Tensor, "batch pos ..."]) -> Float[Tensor, "batch pos ..."]:
        """What a recorded row puts into the stream: of a dictionary's latents f W_dec + b_dec, of others itself."""
        if not row.endswith(".latents"):
            return x
        part = next(part for a in self.model.attached for part in a.parts if part.name == row)
        D, columns = part.dictionary, part.writes[host(row)]
        return (x @ D.W_dec[:, columns] + D.b_dec[columns]).to(x.dtype)

    def places(
        self, inputs: Mapping[str, Any], stream: Float[Tensor, "batch pos ..."]
    ) -> tuple[Int[Tensor, "batch pos"] | None, Bool[Tensor, "batch pos"]]:
        """(Token ids, which are real) of the stream that is read; all of it where the input is no text."""
        start, shape = "decoder_" if self.head.stack.prefix == "decoder." else "", stream.shape[:2]
        ids, mask = inputs.get(f"{start}input_ids"), inputs.get(f"{start}attention_mask")
        ids = ids if isinstance(ids, Tensor) and ids.shape == shape else None
        if not isinstance(mask, Tensor) or mask.shape != shape:
            mask = torch.ones(shape)
        return ids, mask.bool().to(stream.device)

    def asked(
        self, ids: Int[Tensor, "batch pos"] | None, mask: Bool[Tensor, "batch pos"], tokens: Sequence[int | str]
    ) -> Int[Tensor, "token asked"]:
        """For every real token the one that comes next (-1: none is known), and those chosen."""
        following = torch.full(mask.shape, -1, device=mask.device)
        if ids is not None and self.head.per_position:
            ids = ids.to(mask.device)
            if self.head.causal:
                following[:, :-1] = torch.where(mask[:, 1:], ids[:, 1:], -1)
            else:
                following = ids
        chosen = torch.tensor(
            [token_id(self.model, t, self.head.width) for t in tokens], dtype=torch.long, device=mask.device
        )
        return torch.cat([following[mask][:, None], chosen.expand(int(mask.sum()), -1)], dim=1)
