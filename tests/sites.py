"""`python -m tests.sites`: write docs/sites.md from interp/sites.py."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from interp.sites import ALIASES, ATTENTION, MEANING, canonical

PAGE = Path(__file__).parent.parent / "docs" / "sites.md"
OUTSIDE = ("embed", "pos_embed", "final_norm", "final_norm.scale", "logits")
STREAM = ("resid_pre", "resid_start", "resid_mid", "resid_post")
RARE = ("normed", "resid", "mix", "spread")  # of a sublayer of any kind
MLP = ("in", "out", "write", "sum", "norm.scale", "gate", "up", "pre", "post", "router", "experts.post")
ATTACHED = ("latents", "error")
MIXER = ("in", "state", "out", "write", "norm.scale")
START = """# Sites

Written by `python -m tests.sites` from `interp/sites.py`. `{i}` is a block's number, counted from 0; globs work everywhere
(`blocks.*.resid_post`). `model.sites()` or `interp sites MODEL` lists those a model has, with their sizes. The
TransformerLens name means the same site and may be used in its place.
"""
REST = """
## Other names

- `encoder.`, `decoder.`, `vision.`, `audio.`, `text.` stand before `blocks` where a model has several stacks, `stages.{n}.`
  where it has stages, `passes.{n}.` where the same blocks run again on something new.
- A picture's rows and columns are one axis `pos`, row by row, and channels come last, however the model lays them out; where
  it puts all pictures in one row of positions, the batch is 1.
- A `write` holds what the model multiplies it by and adds to it. Where there are several streams it is what is spread over
  them: [batch, pos, d_model].
- Where one module runs several attentions (one a picture, one a part of the values), the sites hold the first.
- `blocks.{i}.cross_attn.*` has the sites of `attn`, with keys and values from the encoder.
- Several sublayers of a kind in a block are numbered (`mlp2.write`).
- `module:dotted.path` is the output of any module at all, `module:dotted.path:in` its input, `module:dotted.path@2` its
  third call in a forward pass.
"""


def page() -> str:
    """The whole page. Raises `AssertionError` for a site that stands in no table."""
    attention = [*ATTENTION, "sum", "norm.scale"]
    sections: dict[str, Sequence[str]] = {
        "Outside the blocks": OUTSIDE,
        "The stream": [f"blocks.{{i}}.{name}" for name in STREAM],
        "Attention": [f"blocks.{{i}}.attn.{name}" for name in attention],
        "State-space and linear-attention mixers": [f"blocks.{{i}}.mixer.{name}" for name in MIXER],
        "MLP": [f"blocks.{{i}}.mlp.{name}" for name in MLP],
        "Streams that are rescaled, normalised or several": [f"blocks.{{i}}.mlp.{name}" for name in RARE],
        "Where a dictionary is attached": [f"SITE.{name}" for name in ATTACHED],
    }
    assert {*OUTSIDE, *STREAM, *attention, *MIXER, *MLP, *RARE, *ATTACHED} == set(MEANING)
    parts = [START]
    for title, sites in sections.items():
        parts.append(f"\n## {title}\n\n| site | what it holds | shape | TransformerLens |\n| --- | --- | --- | --- |\n")
        parts += [row(site) for site in sites]
    return "".join([*parts, REST])


def row(site: str) -> str:
    """One line of a table."""
    key = next(k for k in sorted(MEANING, key=len, reverse=True) if site == k or site.endswith(f".{k}"))
    holds, shape = re.fullmatch(r"(.*?)(?: (\[.*\]))?", MEANING[key]).groups()  # type: ignore[union-attr]
    return f"| `{site}` | {holds} | {shape or ''} | {', '.join(f'`{name}`' for name in aliases(site))} |\n"


def aliases(site: str) -> list[str]:
    """TransformerLens names that mean this site; those of post-norm models are said to be theirs."""
    prefix, short = ("blocks.{i}.", site.removeprefix("blocks.{i}.")) if site.startswith("blocks.") else ("", site)
    found = [prefix + alias for alias, name in ALIASES.items() if name == short]
    post = [prefix + alias for alias in ALIASES if canonical(f"blocks.0.{alias}", True) == f"blocks.0.{short}"]
    return found + [f"{name} (post-norm)" for name in post if name not in found]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
