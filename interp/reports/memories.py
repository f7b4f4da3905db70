"""The page of memories: layers in numbers, then keys by what triggers them and values by what they say; and of embedding space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.reports.charts import Curve, LineChart
from interp.reports.page import Cell, Table, write_report
from interp.reports.words import visible

if TYPE_CHECKING:
    import pandas as pd

TRIGGERS, PREFIX = 8, 20  # shown of a memory, and tokens of each
COLUMNS = {
    "agreement": "agree",
    "chance": "by chance",
    "any": "with any",
    "active_share": "active",
    "residual": "residual",
    "both": "both",
    "ffn": "layer",
    "composition": "neither",
}


@dataclass(frozen=True)
class Memory:
    """One memory, as `interp lens memories --json` tells of it."""

    told: dict[str, Any]

    def html(self) -> str:
        """Its value's tokens, and its triggers, each with the token that follows."""
        m = self.told
        words = " ".join(
            f'<bdi class="word" title="probability {s["prob"]:.5f}">{visible(s["token"])}</bdi>' for s in m["says"]
        )
        items = "".join(self._trigger(t) for t in m["triggers"][:TRIGGERS])
        none = "" if items else '<p class="note">No position of the text uses it.</p>'
        name = f"{m['layer']}.{m['memory']}"
        said = f'<dl class="effects"><div><dt>Its value says</dt><dd>{words}</dd></div></dl>'
        head = f"<header><h3>{escape(name)}</h3></header>"
        return f'<div class="latent">{head}{said}<h4>Its key is triggered by</h4><ol>{items}</ol>{none}</div>'

    def _trigger(self, t: dict[str, Any]) -> str:
        *before, last = t["prefix"][-PREFIX:]
        prefix = "".join(f"<bdi>{visible(w)}</bdi>" for w in before) + f'<bdi class="a6 peak">{visible(last)}</bdi>'
        target = f'<bdi class="word">{visible(t["target"])}</bdi>'
        return f'<li><b class="strength">{t["coefficient"]:.2f}</b><p dir="ltr">{prefix} → {target}</p></li>'


def write_memories(
    path: str | Path, table: pd.DataFrame, told: Sequence[dict[str, Any]], facts: dict[str, str]
) -> None:
    """Write the statistics of layers, as `interp lens memories` merges them, and some memories. Raises `OSError`."""
    cells: list[list[Cell]] = [[str(r["layer"]), *(float(r[c]) for c in COLUMNS)] for _, r in table.iterrows()]
    note = (
        "agree: share of memories whose value’s likeliest token is what follows their key’s strongest trigger, beside the same "
        "with targets dealt out at random, and with any trigger kept; active: share of memories with a coefficient above 0 at a "
        "token. The last four: what the likeliest token after the layer is due to: the stream alone, both, the layer alone, neither."
    )
    steps = [float(i) for i in range(len(table))]
    curves = [Curve(COLUMNS[c], steps, table[c].tolist()) for c in ("any", "agreement", "chance")]
    drawable = len(table) > 1 and min(min(c.y) for c in curves) > 0
    best = table.iloc[int(table["agreement"].argmax())] if table["agreement"].notna().any() else table.iloc[0]
    tiles = [
        ("layers", str(len(table)), f"{int(table['memories'].sum()):,} memories with a trigger"),
        (
            "agreement",
            f"{best['agreement']:.1%}",
            f"at its largest, in {best['layer']}; by chance {best['chance']:.2%}",
        ),
        ("active", f"{table['active_share'].mean():.0%}", "of the memories of a layer at a token"),
    ]
    write_report(
        path,
        "Feed-forward memories",
        lead="What triggers the neurons of the MLPs, what they then say, and how layers are made up of them.",
        facts=facts,
        highlights=tiles,
        tables=[Table("Layers", ["layer", *COLUMNS.values()], cells, note), *map(Memory, told)],
        charts=[LineChart("Keys and values that agree", "layer, counted from the first", curves)] if drawable else [],
    )


# ---------------------------------------------------------------- embedding space


@dataclass(frozen=True)
class Words:
    """Rows of tokens under a name, the strongest first."""

    caption: str
    rows: Sequence[tuple[str, float, Sequence[str]]]

    def html(self) -> str:
        """The table."""
        body = "".join(self._row(*row) for row in self.rows)
        heads = '<th scope="col">Vector</th><th scope="col" class="number">Score</th><th scope="col">Tokens</th>'
        table = f"<table><caption>{escape(self.caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
        return f'<div class="wide">{table}</div>'

    def _row(self, name: str, score: float, tokens: Sequence[str]) -> str:
        words = " ".join(f'<bdi class="word">{visible(t)}</bdi>' for t in tokens)
        return f'<tr><th scope="row">{escape(name)}</th><td class="number">{score:.3g}</td><td>{words}</td></tr>'


def write_embedding(path: str | Path, result: dict[str, Any], most: int = 40) -> None:
    """Write what `interp lens embedding --json` prints; of each weight the `most` vectors with the largest score."""
    tables = []
    for w in result["weights"]:
        best = sorted(w["vectors"], key=lambda v: -v["scores"][0])[:most]
        named = [
            (f"{v['head']}.{v['vector']}" if v["head"] >= 0 else str(v["vector"]), v["scores"][0], v["tokens"])
            for v in best
        ]
        tables.append(Words(w["weight"], named))
    for c in result["circuits"]:
        rows = [
            (str(n), p["value"], [t for name, t in p.items() if name != "value"]) for n, p in enumerate(c["pairs"], 1)
        ]
        order = "query, key" if c["circuit"].endswith("QK") else "token read, token written"
        tables.append(Words(f"{c['circuit']}, head {c['head']}: {order}", rows))
    facts = {
        "model": result["model"],
        "inverse": result["inverse"],
        "norms folded": "yes" if result["folded"] else "no",
    }
    write_report(
        path,
        "Embedding space",
        lead="What weights say in the vocabulary, without a run of the model.",
        facts=facts,
        tables=tables,
    )
