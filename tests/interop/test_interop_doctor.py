"""The doctor of dictionaries: one thing is damaged, and it names that one."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import Sequence

import interp
from interp.cli.model import doctor
from interp.dictionaries import Dictionary, DictionaryConfig, evaluate_model, load_dictionary
from interp.errors import WrongUse
from interp.interop import formats
from interp.interop.doctor import Seat, examine
from interp.interop.parts import placed
from interp.model import Model
from interp.model.twin import randomise
from interp.store.recording import batches, padded
from interp.texts import default_text

HERE, MLP = ("blocks.1.resid_post",), (("blocks.1.mlp.in",), ("blocks.1.mlp.write",))
SIZE: dict[str, Any] = {"tokens": 300, "context": 40, "batch": 8}
TEXTS = default_text()[:4]


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Model:
    """A random three-layer model with layer norms, whose stream has a mean as large as what varies about it."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_folder)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=24, n_layer=3, n_head=3, n_positions=64, bos_token_id=1, eos_token_id=2
    )
    net = transformers.GPT2LMHeadModel(config).eval()
    randomise(net, 7)
    with torch.no_grad():
        net.transformer.wte.weight.add_(torch.linspace(-2, 3, 24))
    return interp.load(net, tokenizer=tokenizer)


def seat(model: Model, reads: tuple[str, ...] = HERE, writes: tuple[str, ...] | None = None) -> Seat:
    """The tokens that `examine` looks at."""
    groups = []
    for _, group in batches(model, TEXTS, SIZE["context"], SIZE["batch"]):
        groups.append(padded(model, group))
        if sum(int(keep.sum()) for _, keep in groups) >= SIZE["tokens"]:
            break
    return Seat(model, groups, reads, writes or reads)


def made(seat: Seat) -> Dictionary:
    """A dictionary that has every row of a seat by heart: latent i is row i, and one latent fires."""
    x, y = seat.kept
    b_in, b_dec = x.mean(0), y.mean(0)
    wide = [tuple(map(seat.model.width, sites)) if len(sites) > 1 else () for sites in (seat.reads, seat.writes)]
    config = DictionaryConfig(
        seat.reads, seat.writes, x.shape[1], y.shape[1], len(x), 1, widths_in=wide[0], widths_out=wide[1]
    )
    D = Dictionary(config)
    length = (x - b_in).norm(dim=1, keepdim=True)
    with torch.no_grad():
        D.W_enc.copy_(((x - b_in) / length).T)
        D.W_dec.copy_((y - b_dec) / length)
        D.b_dec.copy_(b_dec)
        if not config.autoencoder:
            D.b_in.copy_(b_in)
    return D


def changed(D: Dictionary, **tensors: torch.Tensor) -> Dictionary:
    """A copy with other tensors."""
    new = D.plain()
    for name, tensor in tensors.items():
        new.tensors()[name].data.copy_(tensor)
    return new


def without_start(model: Model) -> Seat:
    """The same tokens, windows without a start token."""
    whole = seat(model)
    return replace(whole, groups=[(type(t)(t.ids[:, 1:], t.mask[:, 1:]), keep[:, 1:]) for t, keep in whole.groups])


BOTH, UP = (("blocks.0.resid_post", "blocks.1.resid_post"), ("blocks.1.resid_post", "blocks.2.resid_post"))
DAMAGED: dict[str, tuple[Callable[[Model], Dictionary], str, str]] = {
    "nothing": (lambda m: made(seat(m)), "none", "as it is read now"),
    "a transcoder, nothing": (lambda m: made(seat(m, *MLP)), "none", "as it is read now"),
    "a crosscoder, nothing": (lambda m: made(seat(m, BOTH)), "none", "as it is read now"),
    "a crosscoder, a layer too high": (
        lambda m: (lambda D: setattr(D, "config", replace(D.config, reads=UP, writes=UP)) or D)(made(seat(m, BOTH))),
        "site", ", ".join(BOTH),
    ),
    "b_dec subtracted twice": (
        lambda m: (lambda D: changed(D, b_enc=D.b_enc - D.b_dec @ D.W_enc))(made(seat(m))), "bias", "not subtracted",
    ),
    "b_dec never subtracted": (
        lambda m: (lambda D: changed(D, b_enc=D.b_enc + D.b_dec @ D.W_enc))(made(seat(m))), "bias", "is subtracted",
    ),
    "trained on rows of mean norm √d": (
        lambda m: (lambda s: (lambda D: D.rescaled(1 / s, 1 / s))(made(seat(m))))(
            24**0.5 / float(seat(m).kept[0].norm(dim=1).mean())
        ),
        "norm factor", "√d / mean norm)",
    ),
    "a factor of no name": (lambda m: made(seat(m)).rescaled(7.0, 7.0), "norm factor", "rows times 0.14"),
    "another layer": (lambda m: placed(made(seat(m)), *2 * ("blocks.2.resid_post",)), "site", HERE[0]),
    "before the MLP": (lambda m: placed(made(seat(m, ("blocks.1.resid_mid",))), *2 * HERE), "site", "resid_mid"),
    "the stream for its norm": (
        lambda m: placed(made(seat(m, ("blocks.1.resid_mid",), MLP[1])), "blocks.1.mlp.in", "blocks.1.mlp.write"),
        "site", "blocks.1.resid_mid → blocks.1.mlp.write",
    ),
    "folded norms": (lambda m: made(seat(interp.folded(m), *MLP)), "folded", "norms folded"),
    "centred writes": (lambda m: made(replace(seat(m), centred=True)), "centred", "without their mean"),
    "no start token": (lambda m: made(without_start(m)), "start token", "without a start token"),
    "half precision that overflows": (
        lambda m: (lambda D: changed(D, W_enc=D.W_enc * 3e4, W_dec=D.W_dec / 3e4).half())(made(seat(m))),
        "dtype", "float32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED)
def test_the_one_thing_damaged_is_named(model: Model, damage: str) -> None:
    make, cause, said = DAMAGED[damage]
    told = examine(make(model), model, TEXTS, **SIZE)
    assert told.fits.cause == cause
    assert said in told.fits.said
    assert told.fits.fvu is not None and told.fits.fvu < 2e-3
    if cause != "none":
        assert told.now.fvu is None or told.now.fvu > 0.02
    if damage == "nothing":
        assert told.readings[0].fvu == pytest.approx(told.now.fvu, abs=1e-4)


def test_a_model_in_bfloat16_is_named(model: Model) -> None:
    """The dictionary is exact on float32 rows; a copy whose weights bfloat16 can hold is run in both."""
    rounded = Model(copy.deepcopy(model.module).bfloat16().float(), model.tokenizer)
    low = Model(copy.deepcopy(model.module).bfloat16(), model.tokenizer)
    told = examine(made(seat(rounded)), low, TEXTS, **SIZE)
    assert (told.fits.cause, told.fits.said) == ("dtype", "model and dictionary in float32")


@pytest.mark.parametrize("sites", [(HERE, HERE), MLP, (BOTH, BOTH)])
def test_loss_recovered_is_that_of_the_evaluation(model: Model, sites: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
    """The same tokens count: `evaluate_model` stops where `examine` does."""
    there = seat(model, *sites)
    D = made(there)
    D = changed(D, b_dec=D.b_dec + 0.3)
    whole = evaluate_model(D, model, TEXTS, SIZE["tokens"], SIZE["batch"], SIZE["context"])
    assert there.recovered(D) == pytest.approx(whole.loss_recovered["zero"], abs=1e-4)


def test_every_cause_is_measured(model: Model) -> None:
    told = examine(made(seat(model)), model, TEXTS, **SIZE)
    causes = {r.cause for r in told.readings}
    assert causes == {"none", "bias", "norm factor", "centred", "folded", "start token", "dtype", "site"}
    assert all(r.l0 == 1 for r in told.readings)
    assert told.readings == sorted(told.readings, key=lambda r: round(r.fvu, 6))
    assert told.readings[0] == told.now


def test_a_tokenizer_without_a_start_token_is_asked_for_one(model: Model) -> None:
    bare = copy.copy(model)
    bare.tokenizer = copy.deepcopy(model.tokenizer)
    bare.tokenizer._tokenizer.post_processor = Sequence([])
    assert bare.tokenizer("")["input_ids"] == []
    whole = seat(bare)
    begun = [(torch.cat([torch.ones_like(t.ids[:, :1]), t.ids], 1), keep) for t, keep in whole.groups]
    groups = [
        (
            type(t)(ids, torch.cat([torch.ones_like(t.mask[:, :1]), t.mask], 1)),
            torch.cat([keep[:, :1] & False, keep], 1),
        )
        for (ids, keep), (t, _) in zip(begun, whole.groups, strict=True)
    ]
    told = examine(made(replace(whole, groups=groups)), bare, TEXTS, **SIZE)
    assert (told.fits.cause, told.fits.said) == ("start token", "a start token before each window")


def test_no_text_is_wrong_use(model: Model) -> None:
    with pytest.raises(WrongUse, match="no text"):
        examine(made(seat(model)), model, [], **SIZE)


@pytest.mark.slow("a model is loaded and examined twice")
def test_the_command(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = interp.load(str(tiny_folder), dtype="float32")
    text = tmp_path / "text.txt"
    text.write_text(TEXTS[0], encoding="utf-8")
    groups = [padded(model, group) for _, group in batches(model, [TEXTS[0]], 256, 4)][:1]
    whole = replace(seat(model), groups=groups, reads=("blocks.0.resid_post",), writes=("blocks.0.resid_post",))
    placed(made(whole), *2 * HERE).save(tmp_path / "D", {"command": "made"})
    options: dict[str, Any] = {"model": str(tiny_folder), "text": str(text), "tokens": 300}
    doctor(str(tmp_path / "D"), as_json=True, **options)
    told = json.loads(capsys.readouterr().out)
    assert (told["format"], told["reads"], told["fits"]["cause"]) == ("interp", list(HERE), "site")
    assert told["fits"]["said"] == "blocks.0.resid_post"
    formats.write(load_dictionary(tmp_path / "D"), tmp_path / "S", "saelens")
    doctor(str(tmp_path / "S"), site="blocks.0.resid_post", **options)
    shown = capsys.readouterr().out
    assert "It fits the model as it is read." in shown
    assert "its file says: dtype float32, normalize_activations none, apply_b_dec_to_input True" in " ".join(
        shown.split()
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"site": "embed"}, "--site and --target are for a dictionary: say --model MODEL too"),
        ({"model": "zoo:books", "wiring": Path("w.json")}, "--export-wiring and --wiring are for a model"),
        ({"model": "zoo:books", "target": "embed"}, "--target, the site written, goes with --site"),
        ({"model": "zoo:books"}, "does not say what site it reads: --site"),
    ],
)
def test_options_that_make_no_sense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], said: str
) -> None:
    Dictionary(DictionaryConfig(("rows",), ("rows",), 4, 4, 9, 2)).save(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        doctor(str(tmp_path), as_json=True, **options)
    assert stopped.value.code == 2
    assert said in json.loads(capsys.readouterr().out)["error"]
