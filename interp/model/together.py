"""Several models that read the same tokens, recorded as one: for dictionaries of two models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interp.errors import WrongUse
from interp.sites import OF, of_model

if TYPE_CHECKING:
    import torch

    from interp.model.model import Model, Tokens


BOTH = " + "  # between the names of models that are loaded together


class Together:
    """Models by name; "SITE of NAME" is a site of one of them, and SITE alone, or a glob, means that of each.

    The first model's tokenizer, device and padding serve all. Raises `WrongUse` for fewer than two models, and for
    tokenizers that give other ids: rows of two models stand beside each other token by token.
    """

    def __init__(self, models: Mapping[str, Model]):
        if len(models) < 2:
            raise WrongUse(f"two models or more are recorded together, not {', '.join(models) or 'none'}.")
        self.models = dict(models)
        self.id = BOTH.join(models)
        (name, first), *others = models.items()
        self.first, self.tokenizer, self.module = first, first.tokenizer, first.module
        for other, model in others:
            if _vocabulary(model) != _vocabulary(first):
                raise WrongUse(
                    f"{other} has another tokenizer than {name}: the same text would not be the same tokens."
                )

    @property
    def device(self) -> torch.device:
        """The first model's: where tokens are put."""
        return self.first.device

    @property
    def dtype(self) -> torch.dtype:
        """The first model's."""
        return self.first.dtype

    def names(self, sites: str | Sequence[str]) -> list[str]:
        """Canonical names, model by model. Raises `WrongUse` for a model or a site that is not there."""
        found: dict[str, None] = {}
        for pattern in [sites] if isinstance(sites, str) else sites:
            site, asked = of_model(pattern)
            if asked is not None and asked not in self.models:
                raise WrongUse(f"{pattern!r} is of a model that is not here: there are {', '.join(self.models)}.")
            for name in self.models if asked is None else [asked]:
                found |= {f"{one}{OF}{name}": None for one in self.models[name].names(site)}
        return list(found)

    def width(self, site: str) -> int:
        """Numbers a position has at SITE of NAME."""
        name, model = of_model(self.names(site)[0])
        return self.models[str(model)].width(name)

    def pad(self, lists: Sequence[Sequence[int]]) -> Tokens:
        """Lists of token ids as one batch, padded on the right."""
        return self.first.pad(lists)

    def record(self, x: Any, sites: str | Sequence[str], **how: Any) -> dict[str, Tensor]:
        """What `Model.record` keeps of the same input in each model, by SITE of NAME. Raises what it raises."""
        names = self.names(sites)
        found: dict[str, Tensor] = {}
        if isinstance(x, str) or (isinstance(x, Sequence) and x and isinstance(x[0], str)):
            x = self.first.tokens(x, how.pop("bos", None))  # once: models may add a start token or not
        for name, model in self.models.items():
            mine = [site for site, of in map(of_model, names) if of == name]
            if mine:
                cache = model.record(_on(x, model.device), mine, **how)
                found |= {f"{site}{OF}{name}": cache[site] for site in mine}
        return {name: found[name] for name in names}


def load_together(
    name: str, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> Model | Together:
    """The model of that name, or those of "NAME + NAME". Raises what `load` and `Together` raise."""
    from interp.model.load import load

    names = [part.strip() for part in name.split(BOTH)]
    models = {one: load(one, device=device, dtype=dtype) for one in names}
    if len(models) < len(names):
        raise WrongUse(f"{name!r} names a model twice.")
    return models[names[0]] if len(names) == 1 else Together(models)


def _on(x: Any, device: torch.device) -> Any:
    """Tokens, ids or ready inputs on a device."""
    if isinstance(x, Mapping):
        return {name: _on(value, device) for name, value in x.items()}
    if isinstance(x, Tensor):
        return x.to(device)
    return replace(x, ids=x.ids.to(device), mask=x.mask.to(device)) if hasattr(x, "mask") else x


def _vocabulary(model: Model) -> Any:
    """What tokens are called, and which one begins a text; None without a tokenizer, where inputs come ready."""
    t = model.tokenizer
    return None if t is None else (t.get_vocab(), t.bos_token_id)
