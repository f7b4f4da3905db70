"""What formats of dictionaries have in common: a dictionary from its tensors, and hooks that are sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from interp.dictionaries.dictionary import Dictionary, DictionaryConfig, check_tensors
from interp.errors import Failed, WrongUse
from interp.sites import ALIASES, canonical

if TYPE_CHECKING:
    from jaxtyping import Float

# Names of hooks beside those that `interp.sites` knows: what a sublayer receives and returns.
HOOKS = {
    "ln1.hook_normalized": "attn.in",
    "ln2.hook_normalized": "mlp.in",
    "mlp.hook_in": "mlp.in",
    "mlp.hook_out": "mlp.out",
}


class Read(NamedTuple):
    """A dictionary, and what its file says beside it."""

    dictionary: Dictionary
    about: dict[str, Any]  # JSON: {"format": its name, "config": the file's own}


def site_of(hook: str) -> str:
    """The site that a TransformerLens hook is; other names as they are."""
    name = canonical(hook)
    return next((name.removesuffix(h) + site for h, site in HOOKS.items() if name.endswith(f".{h}")), name)


def hook_of(site: str) -> str:
    """The TransformerLens hook that a site is; a site without one as it is. `site_of` leads back."""
    for hook, name in (ALIASES | HOOKS).items():
        if site == name or ("blocks." in site and site.endswith(f".{name}")):
            return site.removesuffix(name) + hook
    return site


def sites_of(reads: str | None, writes: str | None, transcoder: bool) -> tuple[str, str]:
    """The sites read and written; where a file does not name them, those of tensors without a model."""
    first = site_of(reads) if reads else "rows"
    return first, (site_of(writes) if writes else "targets") if transcoder else first


@torch.no_grad()
def assemble(
    path: Path,
    sites: tuple[str, str],
    activation: str,
    tensors: Mapping[str, Tensor],
    centred: bool = False,
    **said: Any,
) -> Dictionary:
    """The dictionary with these tensors, named and laid out as `Dictionary` says, read from `path`.

    `sites`: read and written. `centred`: an autoencoder whose encoder reads x − b_dec; otherwise it reads x, so that
    b_enc + W_encᵀ b_dec is the bias here. `said`: what else its config says (k, …). Values are kept, float64 too;
    thresholds below zero count as zero, as no latent is negative. Raises `Failed` if a tensor is missing, extra or of
    another shape.
    """
    missing = [name for name in ("W_dec", "b_dec") if name not in tensors]
    if missing:
        raise Failed(f"{path} lacks {' and '.join(missing)}; it holds {', '.join(sorted(tensors))}.")
    m, d_out = tensors["W_dec"].shape
    d_in = tensors["W_enc"].shape[0] if "W_enc" in tensors else d_out
    said |= {"activation": activation, "skip": "W_skip" in tensors}
    config = DictionaryConfig(sites[:1], sites[1:], d_in, d_out, m, **said)
    return filled(path, config, dict(tensors), centred)


@torch.no_grad()
def filled(path: Path, config: DictionaryConfig, t: dict[str, Tensor], centred: bool) -> Dictionary:
    """The dictionary of `config` with the tensors `t`; see `assemble`."""
    dictionary = Dictionary(config).to(
        torch.float64 if any(v.dtype == torch.float64 for v in t.values()) else torch.float32
    )
    if not config.autoencoder:
        t.setdefault("b_in", torch.zeros(config.d_in))
    if "threshold" in t:
        t["threshold"] = t["threshold"].clamp(min=0).expand(config.latents)
    check_tensors(path, t, dictionary.tensors())
    if config.autoencoder and not centred and "W_enc" in t:
        t["b_enc"] = t["b_enc"].double() + t["b_dec"].double() @ t["W_enc"].double()
    for name, tensor in dictionary.tensors().items():
        tensor.copy_(t[name])
    return dictionary


@torch.no_grad()
def placed(D: Dictionary, reads: str | None, writes: str | None = None) -> Dictionary:
    """The same numbers said of other sites, for files that do not name theirs; an autoencoder writes what it reads.

    Raises `WrongUse` for a site written without one read.
    """
    if reads is None:
        if writes is not None:
            raise WrongUse("--target, the site written, goes with --site, the site read.")
        return D
    config = replace(
        D.config, reads=(reads,), writes=(writes or (reads if D.config.autoencoder else D.config.writes[0]),)
    )
    if config.autoencoder == D.config.autoencoder:
        new = D.plain()
        new.config = config
        return new
    kept = {name: tensor for name, tensor in D.tensors().items() if name != "b_in"}
    return filled(Path(), config, kept | {"b_enc": bias_of_x(D)}, centred=False)


def bias_of_x(D: Dictionary) -> Float[Tensor, " m"]:
    """b_enc − W_encᵀ b_pre: the encoder's bias where a format lets it read x itself."""
    shift = D.b_pre.double() @ D.W_enc.double()
    return (D.b_enc.double() - shift).to(D.b_enc.dtype).detach()


def fold_norms(t: dict[str, Tensor]) -> None:
    """Move ‖d_i‖ from W_dec into W_enc and b_enc; rows that are zero stay."""
    length = t["W_dec"].norm(dim=1)
    length = torch.where(length > 0, length, 1)
    t["W_enc"], t["b_enc"] = t["W_enc"] * length, t["b_enc"] * length
    t["W_dec"] = t["W_dec"] / length[:, None]


def gated(t: dict[str, Tensor]) -> dict[str, Tensor]:
    """A gated encoder as a JumpReLU, exactly: W_enc e^r, b_enc = b_mag, θ = max(0, b_mag − e^r b_gate)."""
    r, b_mag, b_gate = (t.pop(name) for name in ("r_mag", "b_mag", "b_gate"))
    threshold = (b_mag.double() - r.double().exp() * b_gate.double()).relu()
    return t | {"W_enc": t["W_enc"] * r.exp(), "b_enc": b_mag, "threshold": threshold.to(b_mag)}


def refuse(D: Dictionary, format: str, activations: tuple[str, ...], transcoders: bool | str) -> None:
    """Raise `WrongUse` for a dictionary of more than one site, or of a kind, that `format` has no place for."""
    c = D.config
    why = None
    if c.cross_layer or len(c.reads) > 1 or len(c.writes) > 1:
        why = f"reads {len(c.reads)} sites and writes {len(c.writes)}, and that format has one of each"
    elif c.activation not in activations:
        why = f"has the activation {c.activation!r}, and that format has only {', '.join(activations)}"
    elif transcoders is False and not c.autoencoder:
        why = "is a transcoder, and that format has only autoencoders"
    elif transcoders == "only" and c.autoencoder:
        why = "is an autoencoder, and that format has only transcoders"
    if why:
        raise WrongUse(f"This dictionary cannot be written as {format}: it {why}.")


def need(config: Mapping[str, Any], names: tuple[str, ...], path: Path) -> list[Any]:
    """The values of `names`; raises `Failed` naming those that are missing."""
    missing = [name for name in names if config.get(name) is None]
    if missing:
        raise Failed(f"{path} does not say {', '.join(missing)}.")
    return [config[name] for name in names]
