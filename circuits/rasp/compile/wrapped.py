"""A compiled model as `interp.Model`: its sites, and one for each value of the program, by the program's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import interp
from circuits.rasp.compile.build import Compiled
from circuits.rasp.compile.saved import load
from interp.model import Model

BOS = "[BOS]"


def opened(folder: Path) -> Model:
    """What `interp.load` makes of the folder of a compiled program."""
    return wrapped(load(folder))


def wrapped(compiled: Compiled) -> Model:
    """The model with a site for each variable (`model.parts`), [batch, pos, value] or, of a number, [batch, pos, 1].

    A variant has none, since what it holds lies along no axes. Position 0 is the BOS. Text is taken where all tokens are single
    letters; else ids, as `compiled.ids` gives them.
    """
    longest = torch.full((1, compiled.length + 1), len(compiled.vocabulary))
    model = interp.load(compiled.model, tokenizer=letters_tokenizer(compiled.vocabulary), example=longest)
    if not compiled.variant:
        model.name_parts({variable.name: (variable.ready, variable.directions) for variable in compiled.variables})
    return model


def letters_tokenizer(vocabulary: list[Any]) -> Any:
    """A token for each letter, the BOS first; None where a token is no single letter."""
    if not all(isinstance(token, str) and len(token) == 1 for token in vocabulary):
        return None
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    letters = Tokenizer(WordLevel({token: i for i, token in enumerate([*vocabulary, BOS])}))
    letters.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    letters.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, len(vocabulary))])
    return PreTrainedTokenizerFast(tokenizer_object=letters, bos_token=BOS)
