"""Latents as a result: which fire where, as a table and a picture, and which have to do with a token or a direction."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from interp.dictionaries.sparse import Code
from interp.errors import WrongUse

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Bool, Float, Int

    from interp.dictionaries.dictionary import Dictionary
    from interp.model import Cache, Model


CHANGES = re.compile(r".*[^_]_|__(set|setitem|delitem|i(add|sub|mul|div|truediv|floordiv|mod|pow|and|or|xor))__")


class Latents(Tensor):
    """f [*batch, m], of which only what fires is held: `code`, values and indices [*batch, k].

    To every torch function and operator it is the dense tensor, made for the occasion; `dense()` makes it once.
    """

    code: Code
    count: int  # m

    @staticmethod
    def __new__(cls, code: Code, count: int) -> Latents:
        values = code.values
        shape = (*values.shape[:-1], count)
        new = values.new_zeros(()).expand(shape).as_subclass(cls)  # one number of memory
        new.code, new.count = code, count
        return new

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The function of the dense tensor. Raises `WrongUse` for one that would change it: nobody would see the change."""
        if CHANGES.fullmatch(function.__name__) and args and isinstance(args[0], cls):
            raise WrongUse(
                "latents from encode() are not changed in place: take f = dictionary.encode(x).dense() first."
            )
        args, kwargs = tree_map(lambda t: t.dense() if isinstance(t, cls) else t, (args, dict(kwargs or {})))
        return function(*args, **kwargs)

    @classmethod
    def of(cls, f: Float[Tensor, "*batch m"]) -> Latents:
        """The latents of a dense f ≥ 0, such as a recorded SITE.latents."""
        code = Code.of(f.flatten(0, -2))
        return cls(Code(*(t.view(*f.shape[:-1], -1) for t in code)), f.shape[-1])

    def dense(self) -> Float[Tensor, "*batch m"]:
        """f with its zeros written out."""
        return self.code.dense(self.count)

    def to_frame(self, cache: Cache | None = None) -> pd.DataFrame:
        """One row a token and latent that fires: prompt, position, token, latent, activation; strongest first within a token.

        `cache`: what the rows were recorded in. It names the tokens, and padding is left out.
        """
        import pandas as pd

        values, indices = (t if t.ndim == 3 else t.reshape(1, -1, t.shape[-1]) for t in self.code)
        mask = None if cache is None else cache.mask
        fires = values > 0
        if mask is not None:
            if mask.shape != values.shape[:2]:
                raise WrongUse(
                    f"these latents are of {tuple(values.shape[:2])} tokens, the cache is of {tuple(mask.shape)}: "
                    "give the cache whose activations were encoded, of every position."
                )
            fires = fires & mask[..., None].to(fires.device)
        prompt, column, _ = (n.tolist() for n in fires.nonzero(as_tuple=True))
        first = [0] * len(values) if mask is None else mask.long().argmax(1).tolist()
        words = None if cache is None else cache.words
        position = [c - first[p] for p, c in zip(prompt, column, strict=True)]
        token = [words[p][t] if words else None for p, t in zip(prompt, position, strict=True)]
        frame = pd.DataFrame({"prompt": prompt, "position": position, "token": token})
        frame["latent"], frame["activation"] = (t[fires].detach().float().cpu().numpy() for t in (indices, values))
        order = ["prompt", "position", "activation", "latent"]
        frame = frame.astype({"latent": int}).sort_values(order, ascending=[True, True, False, True])
        return frame.reset_index(drop=True)

    def plot(self, cache: Cache | None = None, row: int = 0, top: int = 30) -> go.Figure:
        """One prompt's `top` latents of largest activation, in order of where they are strongest, by position."""
        import plotly.graph_objects as go

        from interp.model.pictures import shown

        frame = self.to_frame(cache).query("prompt == @row")
        if frame.empty:
            raise WrongUse(f"no latent fires in prompt {row}: there is nothing to draw.")
        table = frame.pivot_table("activation", "latent", "position", fill_value=0.0)
        strongest = table.max(axis=1).nlargest(top).index
        table = table.loc[table.loc[strongest].idxmax(axis=1).sort_values(kind="stable").index]
        words = dict(zip(frame["position"], frame["token"], strict=True))
        across = [f"{p} {shown(words[p]) if words[p] else ''}".strip() for p in table.columns]
        heat = go.Heatmap(z=table.to_numpy(), x=across, y=[str(i) for i in table.index], colorscale="Blues", zmin=0)
        down = {"title": "latent", "type": "category", "autorange": "reversed"}
        return go.Figure(heat, {"xaxis": {"title": "position"}, "yaxis": down, "template": "plotly_white"})


# ---------------------------------------------------------------- search


@torch.no_grad()
def search_token(
    D: Dictionary,
    model: Model,
    texts: Iterable[str],
    token: str,
    tokens: int = 50_000,
    batch: int = 4,
    context: int = 512,
) -> pd.DataFrame:
    """Latents that tell where `token` stands in the first `tokens` tokens of `texts`: one row each, best F1 first.

    recall = P(fires | token), precision = P(token | fires), f1 = 2 / (1/recall + 1/precision); mean: the activation on the
    token, zeros included; firings: on all tokens. A string of several tokens stands at its last one. Latents that never
    fire on it are left out. Raises `WrongUse` if the string does not occur.
    """
    import pandas as pd

    from interp.store.recording import batches, padded

    wanted = torch.tensor(model.tokenizer(token, add_special_tokens=False)["input_ids"])
    on, total, firings = (torch.zeros(D.config.latents, dtype=torch.float64) for _ in range(3))
    seen = found = 0
    for _, group in batches(model, texts, context, batch):
        if seen >= tokens:
            break
        inputs, keep = padded(model, group)
        cache = model.record(inputs, list(D.config.reads))
        x = torch.cat([cache[site].flatten(2)[keep] for site in D.config.reads], dim=-1)
        code = Code(*(t.cpu() for t in D.active(x.to(D.b_dec.device))))
        here = _ends(inputs.ids.cpu(), wanted)[keep.cpu()]
        seen, found = seen + len(here), found + int(here.sum())
        firings += _counts(code, D.config.latents)
        at = Code(code.values[here], code.indices[here])
        on += _counts(at, D.config.latents)
        total += torch.bincount(at.indices.flatten(), at.values.flatten().double(), D.config.latents)
    if not found:
        parts = [model.tokenizer.decode([i]) for i in wanted.tolist()]
        raise WrongUse(f"{token!r}, tokens {parts}, does not occur among {seen} tokens of text: spaces count.")
    frame = pd.DataFrame({"latent": range(D.config.latents), "recall": on / found, "precision": on / firings})
    frame["f1"] = 2 * on.numpy() / (found + firings.numpy())
    frame["mean"], frame["firings"] = total.numpy() / found, firings.long().numpy()
    return frame[on.numpy() > 0].sort_values("f1", ascending=False, kind="stable").reset_index(drop=True)


def _ends(ids: Int[Tensor, "batch pos"], wanted: Int[Tensor, " n"]) -> Bool[Tensor, "batch pos"]:
    """Where the tokens `wanted` end."""
    here, n = torch.zeros_like(ids, dtype=torch.bool), len(wanted)
    if 0 < n <= ids.shape[1]:
        here[:, n - 1 :] = (ids.unfold(1, n, 1) == wanted).all(-1)
    return here


def _counts(code: Code, m: int) -> Float[Tensor, " m"]:
    """How often each latent fires."""
    return torch.bincount(code.indices[code.values > 0], minlength=m).double()


@torch.no_grad()
def search_direction(
    D: Dictionary, direction: Float[Tensor, " d"], of: str = "decoder", site: str | None = None
) -> pd.DataFrame:
    """Cosine of every latent's decoder row, or encoder column, with a direction: latent, cosine; largest |cosine| first.

    The direction may be a token's unembedding, a probe, another dictionary's row. `site`: which of several sites its
    numbers belong to. Raises `WrongUse` for another width, a direction of zeros, and a kind without an encoder.
    """
    import pandas as pd

    c = D.config
    if of not in ("decoder", "encoder") or (of == "encoder" and not hasattr(D, "W_enc")):
        raise WrongUse(
            f"of={of!r}: give 'decoder'{' or encoder' * hasattr(D, 'W_enc')}, of which {c.activation} has rows."
        )
    rows, sites, widths = (D.W_dec, c.writes, c.widths_out) if of == "decoder" else (D.W_enc.T, c.reads, c.widths_in)
    if site is not None:
        if site not in sites:
            raise WrongUse(f"the {of} has no {site!r}: it has {', '.join(sites)}.")
        rows = rows.split(widths or (rows.shape[1],), dim=1)[sites.index(site)]
    given = torch.as_tensor(direction).flatten().to(rows)
    if given.shape[0] != rows.shape[1] or not bool(given.any()):
        told = f" (or {dict(zip(sites, widths, strict=True))} with site=)" if widths and site is None else ""
        raise WrongUse(
            f"the direction has {len(given)} numbers, not all zero; the {of} has rows of {rows.shape[1]}{told}."
        )
    cosine = torch.nn.functional.cosine_similarity(rows, given[None], dim=1).float().cpu()
    order = cosine.abs().argsort(descending=True, stable=True)
    return pd.DataFrame({"latent": order.numpy(), "cosine": cosine[order].numpy()})
