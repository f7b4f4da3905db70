"""`interp lens memories`, `updates`, `exits` and `embedding`: what weights and neurons say in the vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli import answer, guarded
from interp.cli.options import AsJson, Dataset, Device, ModelName, TextFile
from interp.errors import WrongUse

if TYPE_CHECKING:
    import pandas as pd

    from interp.lenses import EmbeddingSpace, Memories, Triggers
    from interp.model import Model

Norm = Annotated[bool, typer.Option("--norm", help="read values through the final norm's gain too")]
Page = Annotated[Path | None, typer.Option("-o", "--out", help="write a page to this HTML file")]


def _texts(text: str | None, dataset: str | None) -> Any:
    from interp.texts import read_texts

    return read_texts(text, dataset)


def _memory(said: str) -> tuple[str, int]:
    """ "blocks.3.mlp.17" as layer and number."""
    layer, _, number = said.rpartition(".")
    if not layer or not number.isdigit():
        raise WrongUse(f"{said!r} names no memory: give a layer and a number, as blocks.3.mlp.17.")
    return layer, int(number)


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A table as JSON values: NaN as null."""
    import json

    return json.loads(frame.to_json(orient="records", double_precision=15))


# ---------------------------------------------------------------- memories over text


@guarded
def memories(
    model: ModelName,
    text: TextFile = None,
    dataset: Dataset = None,
    layer: Annotated[list[str] | None, typer.Option(help="blocks.3.mlp, or a glob; may be given again")] = None,
    memory: Annotated[list[str] | None, typer.Option(help="tell of blocks.3.mlp.17; may be given again")] = None,
    draw: Annotated[int, typer.Option(min=0, help="memories of each layer that are told of, drawn by --seed")] = 2,
    top: Annotated[int, typer.Option(min=1, help="triggers kept of each memory")] = 25,
    k: Annotated[int, typer.Option(min=1, help="tokens told of a value")] = 10,
    negative: Annotated[bool, typer.Option("--negative", help="look for the lowest coefficients instead")] = False,
    norm: Norm = False,
    context: Annotated[int, typer.Option(min=2, help="tokens of a window of text")] = 64,
    tokens: Annotated[int, typer.Option(min=1, help="stop after about this many tokens of text")] = 20_000,
    seed: Annotated[int, typer.Option(help="of the memories drawn")] = 0,
    out: Page = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """What triggers the neurons of the MLPs in a text, what their values say, and how outputs are made up of them."""
    from interp.lenses import Memories, find_triggers, makeup
    from interp.model import load

    found = Memories(load(model, device=device), norm=norm)
    chosen = _chosen(found, layer, memory, draw, seed)
    sign = -1 if negative else 1
    triggers = find_triggers(
        found, _texts(text, dataset), layer or None, top=top, sign=sign, context=context, tokens=tokens
    )
    made = makeup(found, _texts(text, dataset), layer or None, context=context, tokens=tokens)
    table = triggers.agreement().merge(made.to_frame(), on="layer")
    told = [_told(triggers, role, i, k) for role, i in chosen]
    if out is not None:
        from interp.reports.memories import write_memories

        facts = {"model": model, "text": text or dataset or "Python's help texts", "tokens": f"{triggers.tokens:,}"}
        write_memories(out, table, told, facts | {"windows of": f"{context} tokens", "values through": _through(norm)})
    result = {"model": model, "tokens": triggers.tokens, "sign": sign, "layers": _rows(table), "memories": told}
    answer(result, as_json, lambda r: _show_memories(r, table, out))


def _through(norm: bool) -> str:
    return "the final norm's gain and the unembedding" if norm else "the unembedding"


def _chosen(
    found: Memories, layers: list[str] | None, named: list[str] | None, draw: int, seed: int
) -> list[tuple[str, int]]:
    """Those named, else some of each layer."""
    import torch

    if named:
        given = [_memory(m) for m in named]
        for layer, i in given:
            found.values(layer, [i])
            if layer not in found.named(layers):
                raise WrongUse(f"{layer}.{i} is in none of the layers looked at: {', '.join(found.named(layers))}.")
        return given
    generator = torch.Generator().manual_seed(seed)
    sizes = {role: len(found.values(role)) for role in found.named(layers)}
    return [(role, i) for role, n in sizes.items() for i in torch.randperm(n, generator=generator)[:draw].tolist()]


def _told(triggers: Triggers, layer: str, memory: int, k: int) -> dict[str, Any]:
    ids, p = triggers.memories.read(layer, [memory], k, triggers.sign)
    words = triggers.memories.lens.words(ids[0].tolist())
    says = [{"token": w, "id": i, "prob": v} for w, i, v in zip(words, ids[0].tolist(), p[0].tolist(), strict=True)]
    found = [
        {"prefix": list(t.tokens), "target": t.target, "coefficient": t.coefficient} for t in triggers.of(layer, memory)
    ]
    return {"layer": layer, "memory": memory, "says": says, "triggers": found}


def _show_memories(result: dict[str, Any], table: pd.DataFrame, out: Path | None) -> None:
    print(f"{result['tokens']:,} tokens")
    print(table.set_index("layer").T.to_string(float_format=lambda v: f"{v:.4g}"))
    for m in result["memories"]:
        print(f"\n{m['layer']}.{m['memory']}  says  " + " ".join(repr(s["token"])[1:-1] for s in m["says"]))
        for t in m["triggers"][:5]:
            print(f"  {t['coefficient']:8.2f}  {repr(''.join(t['prefix'][-12:]))[1:-1]} → {t['target']!r}")
    if out is not None:
        print(f"page: {out}")


# ---------------------------------------------------------------- sub-updates in one text


@guarded
def updates(
    model: ModelName,
    text: Annotated[str, typer.Argument(help="the text to read")],
    layer: Annotated[list[str] | None, typer.Option(help="blocks.3.mlp, or a glob; may be given again")] = None,
    k: Annotated[int, typer.Option(min=1, help="dominant sub-updates of a layer and token")] = 10,
    clamp: Annotated[
        list[str] | None, typer.Option(help="set a coefficient: blocks.3.mlp.17=5; may be given again")
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="tokens to generate with --clamp")] = 20,
    norm: Norm = False,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Which neurons add most at each token, what they promote and eliminate; and what the model says with some of them set."""
    from interp.lenses import Memories, sub_updates
    from interp.model import load

    found = Memories(load(model, device=device), norm=norm)
    split = sub_updates(found, text, layer or None)
    off = {r: float((run.sum - run.write).norm() / run.write.norm()) for r, run in split.layers.items()}
    result: dict[str, Any] = {"model": model, "tokens": split.tokens, "layers": list(split.layers), "off": off}
    result |= {"dominant": _rows(split.to_frame(k)), "promotions": _rows(split.promotions(k))}
    if clamp:
        result["generated"] = _generated(found, text, clamp, new_tokens)
    answer(result, as_json, _show_updates)


def _generated(found: Memories, text: str, clamp: list[str], new_tokens: int) -> dict[str, str]:
    """What the model writes as it is, and with the coefficients set."""
    edits = []
    for said in clamp:
        name, _, value = said.partition("=")
        try:
            number = float(value)
        except ValueError as error:
            raise WrongUse(f"--clamp {said!r} sets nothing: give blocks.3.mlp.17=5, say.") from error
        layer, memory = _memory(name)
        edits.append(found.clamp(layer, memory, number))
    plain = found.model.generate(text, max_new_tokens=new_tokens, do_sample=False)
    with found.model.edit(*edits):
        return {"plain": plain, "clamped": found.model.generate(text, max_new_tokens=new_tokens, do_sample=False)}


def _show_updates(result: dict[str, Any]) -> None:
    import pandas as pd

    if not result["tokens"]:
        return
    last = len(result["tokens"]) - 1
    frame = pd.DataFrame(result["dominant"])
    print(f"dominant sub-updates at the last token, {result['tokens'][last]!r}")
    here = frame[frame["pos"] == last].drop(columns=["prompt", "pos", "token"])
    print(here.to_string(index=False, float_format=lambda v: f"{v:.3g}"))
    moved = pd.DataFrame(result["promotions"])
    print(f"\n{len(moved)} times a layer changes what is likeliest; scores of the old token and the new, up and down")
    names = ["layer", "pos", "token", "old", "new", "saturates", "old_up", "old_down", "new_up", "new_down"]
    if len(moved):
        print(moved[names].tail(20).to_string(index=False, float_format=lambda v: f"{v:.3g}"))
    for name, said in result.get("generated", {}).items():
        print(f"\n{name}: {said}")


# ---------------------------------------------------------------- early exit


@guarded
def exits(
    model: ModelName,
    text: TextFile = None,
    dataset: Dataset = None,
    examples: Annotated[int, typer.Option(min=10, help="prefixes, 90 % of which make the rule")] = 1000,
    clusters: Annotated[int, typer.Option(min=1, help="groups of values")] = 200,
    method: Annotated[str, typer.Option(help="agglomerative, or kmeans for many values")] = "agglomerative",
    seed: Annotated[list[int] | None, typer.Option(help="of the split; may be given again; default: 38 to 42")] = None,
    context: Annotated[int, typer.Option(min=2, help="tokens of a window of text")] = 64,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """At which layer predictions are settled, and what a rule saves that leaves the model there."""
    import torch

    from interp.lenses import Memories, early_exit, exit_examples
    from interp.model import load

    found = Memories(load(model, device=device))
    seen = exit_examples(found, _texts(text, dataset), examples, context=context)
    counts = torch.bincount(seen.saturated, minlength=len(seen.layers)).tolist()
    seeds = seed or [38, 39, 40, 41, 42]
    runs = [early_exit(found, seen, clusters, s, method) for s in seeds]
    result = {
        "model": model,
        "examples": len(seen.prefixes),
        "saturated": dict(zip(seen.layers, counts, strict=True)),
        "runs": [{"seed": s, "how": _rows(r.to_frame())} for s, r in zip(seeds, runs, strict=True)],
    }
    answer(result, as_json, _show_exits)


def _show_exits(result: dict[str, Any]) -> None:
    import pandas as pd

    print(
        f"{result['examples']:,} prefixes; settled at " + ", ".join(f"{n}: {c}" for n, c in result["saturated"].items())
    )
    frame = pd.concat(pd.DataFrame(run["how"]) for run in result["runs"])
    table = frame.groupby("how", sort=False)[["accuracy", "saved", "saved_share"]].agg(["mean", "std"])
    print(table.to_string(float_format=lambda v: f"{v:.3f}"))


# ---------------------------------------------------------------- embedding space


@guarded
def embedding(
    model: ModelName,
    weight: Annotated[list[str] | None, typer.Option(help="blocks.3.mlp.W_out, or a glob; may be given again")] = None,
    circuit: Annotated[
        list[str] | None, typer.Option(help="blocks.3.attn.OV.5 or …QK.5 (head 5); may be given again")
    ] = None,
    vector: Annotated[list[int] | None, typer.Option(help="of --weight only these; may be given again")] = None,
    align: Annotated[
        str | None, typer.Option(help="another model: compare each --weight's layers with its own")
    ] = None,
    k: Annotated[int, typer.Option(min=1, help="tokens of a vector, pairs of a circuit")] = 10,
    inverse: Annotated[str, typer.Option(help="pinv (exact), or transpose (the authors')")] = "pinv",
    negative: Annotated[
        bool, typer.Option("--negative", help="what vectors say least, and the lowest entries")
    ] = False,
    fold: Annotated[bool, typer.Option("--fold", help="multiply the norms' gains into the weights first")] = False,
    out: Page = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Weights as tokens, and heads as pairs of tokens, with no run of the model."""
    from interp.lenses import EmbeddingSpace
    from interp.model import load
    from interp.model.fold import folded

    if not weight and not circuit:
        raise WrongUse("name what to show: --weight 'blocks.3.mlp.W_out', --circuit blocks.3.attn.OV.5, or both.")
    if align is not None and not weight:
        raise WrongUse("--align compares the layers that --weight names: --weight 'blocks.*.mlp.W_out', say.")

    def space(name: str) -> EmbeddingSpace:
        loaded: Model = load(name, device=device)
        return EmbeddingSpace(folded(loaded) if fold else loaded, inverse)

    here, sign = space(model), -1 if negative else 1
    result: dict[str, Any] = {"model": model, "inverse": inverse, "folded": fold, "sign": sign}
    result["weights"] = [_weight(here, n, vector, k, sign) for w in weight or () for n in here.weights.names(w)]
    result["circuits"] = [_circuit(here, c, k, sign) for c in circuit or ()]
    if align is not None:
        result["aligned"] = [_aligned(here, space(align), w) for w in weight or ()]
    if out is not None:
        from interp.reports.memories import write_embedding

        write_embedding(out, result)
    answer(result, as_json, lambda r: _show_embedding(r, out))


def _weight(space: EmbeddingSpace, name: str, vectors: list[int] | None, k: int, sign: int) -> dict[str, Any]:
    from interp.model.edits import in_range

    found = space.read(name, k, sign)
    rows = [
        {"head": head, "vector": i, "tokens": words, "ids": ids, "scores": scores}
        for (head, i, words), ids, scores in zip(
            found.to_frame()[["head", "vector", "tokens"]].itertuples(index=False, name=None),
            found.ids.flatten(0, -2).tolist(),
            found.scores.flatten(0, -2).tolist(),
            strict=True,
        )
    ]
    in_range(found.ids.shape[-2], vectors or [], "vector", name)
    return {"weight": name, "vectors": [r for r in rows if vectors is None or r["vector"] in vectors]}


def _circuit(space: EmbeddingSpace, said: str, k: int, sign: int) -> dict[str, Any]:
    name, head = _memory(said) if said.rpartition(".")[2].isdigit() else (said, None)
    if head is None:
        raise WrongUse(f"{said!r} names no head: give blocks.3.attn.OV.5 or blocks.3.attn.QK.5, say.")
    return {"circuit": name, "head": head, "pairs": _rows(space.pairs(name, head, k, sign).to_frame())}


def _aligned(a: EmbeddingSpace, b: EmbeddingSpace, weight: str) -> dict[str, Any]:
    from interp.lenses import align

    found = align(a, b, weight)
    return {"weight": weight, "diagonal": found.diagonal, "pairs": _rows(found.to_frame())}


def _show_embedding(result: dict[str, Any], out: Path | None) -> None:
    for w in result["weights"]:
        print(f"\n{w['weight']}")
        for v in sorted(w["vectors"], key=lambda v: -v["scores"][0])[:20]:
            where = f"{v['head']}.{v['vector']}" if v["head"] >= 0 else str(v["vector"])
            print(f"  {where:>8}  {v['scores'][0]:8.3f}  " + " ".join(repr(t)[1:-1] for t in v["tokens"]))
    for c in result["circuits"]:
        print(f"\n{c['circuit']}, head {c['head']}")
        for pair in c["pairs"]:
            first, second, value = pair.values()
            print(f"  {value:10.4f}  {first!r} → {second!r}")
    for a in result.get("aligned", ()):
        print(f"\n{a['weight']}: {a['diagonal']:.0%} of the layers are assigned to their own number")
    if out is not None:
        print(f"page: {out}")
