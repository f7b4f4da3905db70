"""Sparse dictionaries: one shape, one trainer, one format."""

from interp.dictionaries.baselines import pca_fvu
from interp.dictionaries.config import TrainConfig, read_config
from interp.dictionaries.dictionary import Dictionary, DictionaryConfig, load_dictionary
from interp.dictionaries.evaluate import Reconstruction, Spliced, evaluate, evaluate_model, evaluate_together, rows_of
from interp.dictionaries.kinds import (
    KINDS,
    L1,
    April,
    BatchTopK,
    Codebook,
    Gated,
    JumpReLU,
    Matryoshka,
    MultiTopK,
    PAnneal,
    Pursuit,
    TanhJumpReLU,
    TargetJumpReLU,
    TopK,
    forced,
    straight_through,
)
from interp.dictionaries.latents import Latents, search_direction, search_token
from interp.dictionaries.sources import RowsSource, Source, StoreSource
from interp.dictionaries.sparse import Code
from interp.dictionaries.training import Diverged, plan, train, train_many

__all__ = [
    "KINDS",
    "L1",
    "April",
    "BatchTopK",
    "Code",
    "Codebook",
    "Dictionary",
    "DictionaryConfig",
    "Diverged",
    "Gated",
    "JumpReLU",
    "Latents",
    "Matryoshka",
    "MultiTopK",
    "PAnneal",
    "Pursuit",
    "Reconstruction",
    "RowsSource",
    "Source",
    "Spliced",
    "StoreSource",
    "TanhJumpReLU",
    "TargetJumpReLU",
    "TopK",
    "TrainConfig",
    "evaluate",
    "evaluate_model",
    "evaluate_together",
    "forced",
    "load_dictionary",
    "pca_fvu",
    "plan",
    "read_config",
    "rows_of",
    "search_direction",
    "search_token",
    "straight_through",
    "train",
    "train_many",
]
