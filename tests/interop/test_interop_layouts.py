"""Files laid out as each library documents, read here: equal latents, equal outputs, the right sites."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.dictionaries import load_dictionary
from interp.errors import Failed, WrongUse
from interp.files import save_tensors
from interp.interop.dictionary_learning import CENTRED
from interp.interop.saelens import ACTIVATION
from tests.interop import layouts
from tests.interop.conftest import MLP, STREAM, close, rows

X = rows(layouts.D)
PURSUIT = {"max_iterations": 5, "residual_threshold": 0.0, "stop_on_duplicate_support": False}
SAELENS: list[tuple[str, dict[str, Any]]] = [
    ("standard", {}),
    ("standard", {"apply_b_dec_to_input": False}),
    ("gated", {}),
    ("gated", {"apply_b_dec_to_input": False}),
    ("topk", {"k": 5}),
    ("topk", {"k": 5, "rescale_acts_by_decoder_norm": True}),
    ("jumprelu", {}),
    ("jumprelu", {"apply_b_dec_to_input": False}),
    ("batchtopk", {}),
    ("matryoshka_batchtopk", {"matryoshka_widths": [10, 40]}),
    ("matching_pursuit", PURSUIT),
    ("matching_pursuit", PURSUIT | {"residual_threshold": 1.5}),
    ("matching_pursuit", PURSUIT | {"max_iterations": 12, "stop_on_duplicate_support": True}),
    *((f"{a}{shape}", {}) for a in ("", "jumprelu_") for shape in ("transcoder", "skip_transcoder")),
]


@pytest.mark.parametrize(("architecture", "more"), SAELENS)
def test_saelens(tmp_path: Path, architecture: str, more: dict[str, Any]) -> None:
    f, y = layouts.saelens(tmp_path / "sae", X, architecture, **more)
    D = load_dictionary(tmp_path / "sae")
    rescaled = more.get("rescale_acts_by_decoder_norm")
    close(f, D.encode(X), 2e-6)
    close(y, D(X), 2e-6)
    assert D.config.activation == ACTIVATION[architecture]
    assert (D.config.reads[0], D.config.writes[0]) == (MLP if "transcoder" in architecture else STREAM)
    assert not rescaled or torch.allclose(D.W_dec.norm(dim=1), torch.ones(layouts.M))


def test_every_architecture_of_the_table_is_tried() -> None:
    assert {name for name, _ in SAELENS} | {"abstopk"} == ACTIVATION.keys()


def test_signed_latents_are_two_each(tmp_path: Path) -> None:
    f, y = layouts.saelens(tmp_path / "sae", X, "abstopk", k=5)
    D = load_dictionary(tmp_path / "sae")
    both = D.encode(X)
    assert (f < 0).any()
    close(f, both[:, : layouts.M] - both[:, layouts.M :], 2e-6)
    close(y, D(X), 2e-6)


@pytest.mark.parametrize(
    ("architecture", "more", "said"),
    [
        ("temporal", {}, "latents depend on the tokens before"),
        ("spiral", {}, "architecture 'spiral'; those read are: standard"),
        ("standard", {"normalize_activations": "layer_norm"}, "normalises each row by itself .*'layer_norm'"),
        ("standard", {"metadata": {"hook_name": "blocks.2.attn.hook_z", "hook_head_index": 1}}, "reads one head"),
    ],
)
def test_what_saelens_has_and_we_have_not_is_refused(
    tmp_path: Path, architecture: str, more: dict[str, Any], said: str
) -> None:
    layouts.saelens(tmp_path / "sae", X, architecture, **{"max_iterations": 5} | more)
    with pytest.raises(WrongUse, match=said):
        load_dictionary(tmp_path / "sae")


def test_saelens_before_version_6(tmp_path: Path) -> None:
    f, y = layouts.saelens(tmp_path / "sae", X, "topk", k=5)
    old = {"hook_point": "blocks.2.hook_resid_post", "d_in": layouts.D, "d_sae": layouts.M, "dtype": "float32"}
    old |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}, "model_name": "gpt2"}
    (tmp_path / "sae" / "cfg.json").write_text(json.dumps(old))
    D = load_dictionary(tmp_path / "sae")
    assert D.config.reads == STREAM[:1]
    close(f, D.encode(X), 2e-6)
    close(y, D(X), 2e-6)


@pytest.mark.parametrize("architecture", ["jumprelu", "matching_pursuit"])
def test_saelens_scale_of_the_rows(tmp_path: Path, architecture: str) -> None:
    """ŷ(x) = ŷ_trained(s x) / s, with the latents of s x; without the factor it is read as it stands, and said so."""
    s = 1.7
    more = PURSUIT | {"residual_threshold": 1.5, "normalize_activations": "expected_average_only_in"}
    f, y = layouts.saelens(tmp_path / "sae", s * X, architecture, **more)
    with pytest.warns(UserWarning, match="says not by how much"):
        close(y, load_dictionary(tmp_path / "sae")(s * X), 2e-6)
    (tmp_path / "sae" / "activation_scaler.json").write_text(json.dumps({"scaling_factor": s}))
    D = load_dictionary(tmp_path / "sae")
    close(f if architecture == "jumprelu" else f / s, D.encode(X), 2e-6)  # a pursuit's decoder encodes
    close(y / s, D(X), 2e-6)


@pytest.mark.parametrize("name", CENTRED)
def test_dictionary_learning(tmp_path: Path, name: str) -> None:
    f, y = layouts.dictionary_learning(tmp_path / "trainer_0", X, name)
    D = load_dictionary(tmp_path / "trainer_0")
    close(f, D.encode(X), 2e-6)
    close(y, D(X), 2e-6)
    assert D.config.reads == D.config.writes == STREAM[:1]


def test_dictionary_learning_says_what_is_wrong(tmp_path: Path) -> None:
    layouts.dictionary_learning(tmp_path / "a", X, "AutoEncoder")
    config = tmp_path / "a" / "config.json"
    config.write_text(json.dumps({"trainer": {"dict_class": "CrossCoder"}}))
    with pytest.raises(WrongUse, match="class 'CrossCoder'; a dictionary here is one of AutoEncoder"):
        load_dictionary(tmp_path / "a")
    config.write_text("{}")
    with pytest.raises(Failed, match="does not say dict_class"):
        load_dictionary(tmp_path / "a")
    config.unlink()
    with pytest.raises(Failed, match=r"without config\.json"):
        load_dictionary(tmp_path / "a")


class Runs:
    """An object that a pickle would call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run",)


def test_nothing_in_a_pickle_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layouts.dictionary_learning(tmp_path / "a", X, "AutoEncoder")
    torch.save({"bias": Runs()}, tmp_path / "a" / "ae.pt")
    with pytest.raises(Failed, match="not a whole file of tensors"):
        load_dictionary(tmp_path / "a")
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize(("transcode", "skip"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(("folder", "sites"), [
    ("layers.2.mlp", ("blocks.2.mlp.in", "blocks.2.mlp.out")),
    ("gpt_neox.layers.2.attention", ("blocks.2.attn.in", "blocks.2.attn.out")),
    ("transformer.ln_f", ("module:transformer.ln_f:in", "module:transformer.ln_f")),
])  # fmt: skip
def test_sparsify(tmp_path: Path, transcode: bool, skip: bool, folder: str, sites: tuple[str, str]) -> None:
    f, y = layouts.sparsify(tmp_path / folder, X, transcode, skip)
    D = load_dictionary(tmp_path / folder)
    close(f, D.encode(X), 2e-6)
    close(y, D(X), 2e-6)
    assert (D.config.reads[0], D.config.writes[0]) == (sites if transcode else sites[1:] * 2)


def test_sparsify_of_a_block_and_of_groups(tmp_path: Path) -> None:
    layouts.sparsify(tmp_path / "h.2", X, False, False)
    assert load_dictionary(tmp_path / "h.2").config.reads == STREAM[:1]
    path = tmp_path / "h.2" / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"activation": "groupmax"}))
    with pytest.raises(WrongUse, match="'groupmax'"):
        load_dictionary(tmp_path / "h.2")


@pytest.mark.parametrize(("folder", "sites"), [
    ("gemma-scope-2b-pt-res/layer_2/width_40/average_l0_9", STREAM),
    ("models--google--gemma-scope-2b-pt-att/layer_2", ("blocks.2.attn.z",) * 2),
    ("gemma-scope-2b-pt-transcoders/layer_2", MLP),
    ("anywhere", ("rows", "rows")),
])  # fmt: skip
def test_gemma_scope(tmp_path: Path, folder: str, sites: tuple[str, str]) -> None:
    f, y = layouts.gemma_scope(tmp_path / folder, X)
    for path in (tmp_path / folder, tmp_path / folder / "params.npz"):
        D = load_dictionary(path)
        close(f, D.encode(X), 2e-6)
        close(y, D(X), 2e-6)
        assert (D.config.reads[0], D.config.writes[0]) == sites


def test_gemma_scope_2(tmp_path: Path) -> None:
    f, y = layouts.gemma_scope(tmp_path / "a", X, second=True)
    D = load_dictionary(tmp_path / "a")
    close(f, D.encode(X), 2e-6)
    close(y, D(X), 2e-6)
    assert D.config.skip and (D.config.reads[0], D.config.writes[0]) == MLP


@pytest.mark.parametrize("jump", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_circuit_tracer(tmp_path: Path, jump: bool, skip: bool) -> None:
    f, y = layouts.circuit_tracer(tmp_path / "a", X, jump, skip)
    for path in (tmp_path / "a", tmp_path / "a" / "layer_2.safetensors"):
        D = load_dictionary(path)
        close(f, D.encode(X), 2e-6)
        close(y, D(X), 2e-6)
        assert (D.config.reads[0], D.config.writes[0]) == MLP
    (tmp_path / "a" / "layer_1.safetensors").write_bytes((tmp_path / "a" / "layer_2.safetensors").read_bytes())
    with pytest.raises(WrongUse, match=r"holds 2 transcoders: name one, such as .*layer_1\.safetensors"):
        load_dictionary(tmp_path / "a")


@pytest.mark.parametrize("jump", [False, True])
def test_circuit_tracer_across_layers(tmp_path: Path, jump: bool) -> None:
    x = torch.stack(rows(3 * layouts.D).split(layouts.D, 1))
    f, y = layouts.cross_layer(tmp_path / "a", x, jump)
    D = load_dictionary(tmp_path / "a")
    close(f, D.encode(torch.cat([*x], -1)), 2e-6)
    close(y, D(torch.cat([*x], -1)), 2e-6)
    assert D.config.reads == tuple(f"blocks.{i}.mlp.in" for i in range(3))
    (tmp_path / "a" / "W_enc_1.safetensors").unlink()
    with pytest.raises(Failed, match=r"layers \[0, 2\]; they should go from 0 without a gap"):
        load_dictionary(tmp_path / "a")


def test_circuit_tracer_with_a_skip_across_layers_is_refused(tmp_path: Path) -> None:
    layouts.cross_layer(tmp_path / "a", torch.zeros(3, 1, layouts.D), False)
    save_tensors(tmp_path / "a" / "W_dec_1.safetensors", {"W_dec_1": torch.zeros(1), "W_skip_1": torch.zeros(1)})
    with pytest.raises(WrongUse, match="has a skip in each layer"):
        load_dictionary(tmp_path / "a")
