"""What a part of a model says, read in the model's own output."""

from interp.lenses.alignment import Alignment, align, kernel, stitch_table, stitched
from interp.lenses.attention import AttentionLens, train_attention_lens
from interp.lenses.averages import Averages
from interp.lenses.backward import BackwardLens, WeightGradient, weight_gradient
from interp.lenses.causal import CausalBasis, causal_basis
from interp.lenses.classes import ClassLens, Evolution, Importance
from interp.lenses.decoder import DecoderLens
from interp.lenses.direct import DirectLogits, direct_logit_attribution
from interp.lenses.embedding import EmbeddingSpace, Pairs, TopTokens
from interp.lenses.exits import Examples, ExitRule, Exits, early_exit, exit_examples, saturation
from interp.lenses.future import FutureLens, bigram, train_future_lens
from interp.lenses.jacobian import JacobianLens, fit_jacobian
from interp.lenses.lens import Lens
from interp.lenses.makeup import Makeup, makeup
from interp.lenses.memories import Memories
from interp.lenses.patchscope import PatchscopeLens, patch_from
from interp.lenses.shortcut import Shortcut, explained, fit_shortcut
from interp.lenses.trajectory import Trajectory
from interp.lenses.triggers import Trigger, Triggers, find_triggers
from interp.lenses.tuned import Recipe, TunedLens, train_tuned_lens, transfer
from interp.lenses.updates import SubUpdates, sub_updates

__all__ = [
    "Alignment",
    "AttentionLens",
    "Averages",
    "BackwardLens",
    "CausalBasis",
    "ClassLens",
    "DecoderLens",
    "DirectLogits",
    "EmbeddingSpace",
    "Evolution",
    "Examples",
    "ExitRule",
    "Exits",
    "FutureLens",
    "Importance",
    "JacobianLens",
    "Lens",
    "Makeup",
    "Memories",
    "Pairs",
    "PatchscopeLens",
    "Recipe",
    "Shortcut",
    "SubUpdates",
    "TopTokens",
    "Trajectory",
    "Trigger",
    "Triggers",
    "TunedLens",
    "WeightGradient",
    "align",
    "bigram",
    "causal_basis",
    "direct_logit_attribution",
    "early_exit",
    "exit_examples",
    "explained",
    "find_triggers",
    "fit_jacobian",
    "fit_shortcut",
    "kernel",
    "makeup",
    "patch_from",
    "saturation",
    "stitch_table",
    "stitched",
    "sub_updates",
    "train_attention_lens",
    "train_future_lens",
    "train_tuned_lens",
    "transfer",
    "weight_gradient",
]
