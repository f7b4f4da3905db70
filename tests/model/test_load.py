"""Loading: folders that are whole, and folders that are not."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from interp import Failed, WrongUse, load


def test_a_folder_loads_as_hugging_face_loads_it(tiny_folder):
    from transformers import AutoModelForCausalLM

    model, ids = load(tiny_folder), torch.tensor([[5, 6, 7]])
    assert model.dtype == torch.float32
    assert load(tiny_folder, dtype="bfloat16").dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(
            model(ids).logits, AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)(ids).logits
        )
    assert load(tiny_folder, dtype="float32").dtype == torch.float32
    assert isinstance(model.generate("War and", max_new_tokens=3), str)
    assert len(model.generate(["War and", "It was the best"], max_new_tokens=3)) == 2


def test_start_token_can_be_chosen(tiny_folder):
    model = load(tiny_folder)
    start = model.tokenizer.bos_token_id
    assert model.tokens("War").ids[0, 0] == start
    assert start not in model.tokens("War", bos=False).ids
    assert torch.equal(model.tokens("War", bos=True).ids, model.tokens("War").ids)
    assert model.record("War", "embed", bos=False).bos is False
    with pytest.raises(WrongUse, match="empty"):
        model.tokens("", bos=False)


def changed(tiny_folder, tmp_path, change):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "missing: model.layers.1.mlp.up_proj.weight"),
        (lambda t: t.update(extra=torch.zeros(2)), "unexpected: extra"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(5)}), r"model\.norm\.weight"),
    ],
)
def test_a_checkpoint_that_does_not_fit_names_the_tensors(tiny_folder, tmp_path, change, words):
    with pytest.raises(Failed, match=words):
        load(changed(tiny_folder, tmp_path, change))


def test_a_cut_checkpoint_and_a_folder_that_is_none(tiny_folder, tmp_path):
    folder = changed(tiny_folder, tmp_path, lambda t: None)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(Failed, match=r"cut|could not be loaded"):
        load(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "no-such-thing"}))
    with pytest.raises(Failed, match="no-such-thing"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(WrongUse, match=r"no config\.json"):
        load(folder)
    with pytest.raises(WrongUse, match="boks"):
        load("zoo:boks")
    with pytest.raises(WrongUse, match="bfloat16"):
        load(tiny_folder, dtype="bfloat61")
