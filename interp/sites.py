"""The one vocabulary of places in a model where activations are read and edited.

`blocks.3.attn.pattern`, `blocks.*.resid_post`, `decoder.blocks.0.cross_attn.z`, `module:model.layers.3.mlp.act_fn:in`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from interp.errors import WrongUse, nearest

ATTENTION = ("in", "out", "write", "q_raw", "k_raw", "q", "k", "v", "z", "scores", "pattern", "sink", "result")
MEANING = {
    "embed": "output of the token embedding [batch, pos, d_model]",
    "pos_embed": "output of the position embedding [pos, d_model]",
    "resid_pre": "the stream a block receives [batch, pos, d_model]",
    "resid_mid": "the stream the last sublayer of a block reads [batch, pos, d_model]",
    "resid_post": "the stream a block returns [batch, pos, d_model]",
    "resid_start": "the stream after a norm that a block begins with [batch, pos, d_model]",
    "in": "the tensor a sublayer receives, normalised in pre-norm blocks [batch, pos, d_model]",
    "out": "what a sublayer returns [batch, pos, d_model]",
    "write": "what is added to the stream [batch, pos, d_model]",
    "sum": "post-norm blocks: stream plus write, before the norm [batch, pos, d_model]",
    "normed": "what a norm makes of such a sum where the next sublayer is not the block's last [batch, pos, d_model]",
    "resid": "the stream after a sublayer that rescales it and is not the block's last but one [batch, pos, d_model]",
    "mix": "several streams: how much of each goes over into each other before a write [batch, pos, stream, stream]",
    "spread": "several streams: how much of a write each gets [batch, pos, stream]",
    "q_raw": "queries before rotary and query norm [batch, pos, head, d_head]",
    "k_raw": "keys before rotary and key norm [batch, pos, kv_head, d_head]",
    "q": "queries as they meet the keys [batch, pos, head, d_head]",
    "k": "keys as they meet the queries [batch, pos, kv_head, d_head]",
    "v": "values [batch, pos, kv_head, d_head]",
    "z": "pattern · v, per head [batch, pos, head, d_head]",
    "scores": "the softmax's input: scale, bias, cap and mask included [batch, head, query, key]",
    "pattern": "attention probabilities [batch, head, query, key]",
    "sink": "the share of each query's attention that goes to no key; read only [batch, pos, head]",
    "result": "what each head adds, before the bias [batch, pos, head, d_model]",
    "state": "what the mixer's cache holds after each token; an edit reaches the tokens after it [batch, pos, ...]",
    "gate": "GLU: output of the gate projection [batch, pos, d_mlp]",
    "up": "GLU: output of the up projection [batch, pos, d_mlp]",
    "pre": "input of the activation function [batch, pos, d_mlp]",
    "post": "input of the down projection [batch, pos, d_mlp]",
    "router": "what each expert is scored by a mixture's router [batch, pos, expert]",
    "experts.post": "input of the down projection of each expert a token is sent to [batch, pos, top_k, d_expert]",
    "norm.scale": "the divisor of the norm a sublayer reads through (post-norm: of its sum): √(mean square + eps) [batch, pos, 1]",
    "final_norm.scale": "the divisor of the norm before the head [batch, pos, 1]",
    "final_norm": "output of the norm before the head [batch, pos, d_model]",
    "logits": "output of the head",
    "latents": "what an attached dictionary makes of what it reads [batch, pos, latent]",
    "error": "the site minus what an attached dictionary makes of it [the site's]",
}
# TransformerLens names with TransformerLens' meaning.
ALIASES = {
    "hook_embed": "embed",
    "hook_pos_embed": "pos_embed",
    "ln_final.hook_scale": "final_norm.scale",
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn.write",
    "hook_mlp_out": "mlp.write",
    "attn.hook_q": "attn.q_raw",
    "attn.hook_k": "attn.k_raw",
    "attn.hook_rot_q": "attn.q",
    "attn.hook_rot_k": "attn.k",
    "attn.hook_v": "attn.v",
    "attn.hook_z": "attn.z",
    "attn.hook_attn_scores": "attn.scores",
    "attn.hook_pattern": "attn.pattern",
    "attn.hook_result": "attn.result",
    "ln1.hook_scale": "attn.norm.scale",
    "ln2.hook_scale": "mlp.norm.scale",
    "mlp.hook_pre": "mlp.pre",
    "mlp.hook_post": "mlp.post",
}
MODULE = "module:"
OF = " of "  # between a site and the model it belongs to, where there are several models
DERIVED = (".latents", ".error")
READ_ONLY = {"sink": "it is what the keys leave over; edit attn.pattern or attn.scores"}
NO_GRADIENT = {
    "sink": "it is what the keys leave over; ask for attn.pattern",
    "state": "mixers write it in place, some in kernels that have no backward pass",
}
_HEAD = re.compile(r"^(.+\.(?:q|k|v|z|q_raw|k_raw|result|hook_\w+))\.(\d+)$")
_BLOCK = re.compile(r"^((?:\w+\.)*blocks\.(?:\d+|\*)\.)(.+)$")


def canonical(name: str, post_norm: bool = False) -> str:
    """The canonical name of a site given by its TransformerLens alias; other names are returned as they are.

    `post_norm`: the blocks normalise after adding, where TransformerLens' hook_resid_mid and hook_resid_post are the
    sums before the norm.
    """
    site = head_of(host(name))[0]
    match = _BLOCK.match(site)
    prefix, rest = match.groups() if match else ("", site)
    if post_norm and rest in ("hook_resid_mid", "hook_resid_post"):
        rest = "attn.sum" if rest == "hook_resid_mid" else "mlp.sum"
    return prefix + ALIASES.get(rest, rest) + name[len(site) :]


def host(name: str) -> str:
    """The site that latents or an error belong to; another site is returned as it is."""
    return next((name.removesuffix(end) for end in DERIVED if name.endswith(end)), name)


def of_model(name: str) -> tuple[str, str | None]:
    """The site and the model of SITE of MODEL; None for the name of a site alone."""
    site, _, model = name.partition(OF)
    return site, model or None


def head_of(name: str) -> tuple[str, int]:
    """The site and number of SITE.{h}, one head of it; -1 for the name of a whole site."""
    match = _HEAD.match(name)
    return (match[1], int(match[2])) if match else (name, -1)


def pattern_like(site: str) -> bool:
    """[batch, head, query, key]: positions stand on axis 2, and keys on axis 3."""
    return site.endswith((".scores", ".pattern"))


def position_axis(site: str) -> int:
    """The axis of a site's tensor along which positions stand."""
    return 2 if pattern_like(site) else 1


def refuse(sites: Iterable[str], refused: Mapping[str, str], what: str) -> None:
    """Raise `WrongUse` for the first site that stands in `refused`, or whose last name does; it says why."""
    for site in sites:
        why = refused.get(site, None if site.startswith(MODULE) else refused.get(site.rsplit(".", 1)[-1]))
        if why is not None:
            raise WrongUse(f"{site!r} {what}: {why}.")


def meaning(site: str) -> str:
    """What a canonical site holds, with its shape, or `""` for a `module:` site."""
    parts = site.split(".")
    return next((MEANING[name] for i in range(len(parts)) if (name := ".".join(parts[i:])) in MEANING), "")


def explain_unknown(name: str, known: Sequence[str], refused: dict[str, str]) -> WrongUse:
    """The error for a site that is not there: what was asked, what exists nearby, what to type."""
    why = next((why for key, why in refused.items() if fnmatchcase(name, key)), None)
    if why is not None:
        return WrongUse(f"site {name!r} is not available in this model: {why}.")
    if of_model(name)[1] is not None:
        return WrongUse(
            f"{name!r} is a site of one of several models, and there is one here: interp.Together(models) has such sites, "
            "and commands take 'MODEL + MODEL'."
        )
    if host(name) != name:
        there = ", ".join(site for site in known if host(site) != site)
        return WrongUse(
            f"no attached dictionary has {name!r}. model.attach(dictionary) makes such sites; there are: {there or 'none'}."
        )
    match = _BLOCK.match(name)
    blocks = sorted({int(b) for k in known for b in re.findall(r"blocks\.(\d+)\.", k)})
    if match and blocks and match.group(1).split(".")[-2] not in {"*", *map(str, blocks)}:
        close = f" The blocks are 0 to {blocks[-1]}."
    else:
        close = nearest(name, [*known, *ALIASES])
    return WrongUse(
        f"no site matches {name!r}.{close} `model.sites()` or `interp sites MODEL` lists all {len(known)}; any module "
        "can be named as 'module:dotted.path' (its output) or 'module:dotted.path:in' (its input)."
    )


def expand(
    patterns: str | Iterable[str], known: Collection[str], refused: dict[str, str], post_norm: bool
) -> list[str]:
    """Canonical names of all sites that match the globs, in the model's order, each once.

    Raises `WrongUse` if a pattern matches nothing.
    """
    found: dict[str, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if pattern.startswith(MODULE):
            found[pattern] = None
            continue
        name = canonical(pattern, post_norm)
        whole, head = head_of(name)
        if head >= 0 and name not in known:
            found |= {f"{site}.{head}": None for site in expand(whole, known, refused, post_norm)}
            continue
        matches = [name] if name in known else [site for site in known if fnmatchcase(site, name)]
        if not matches:
            raise explain_unknown(name, list(known), refused)
        found |= dict.fromkeys(matches)
    return list(found)
