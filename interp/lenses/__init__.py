"""What a part of a model says, read in the model's own output."""

from interp.lenses.attention import AttentionLens, train_attention_lens
from interp.lenses.averages import Averages
from interp.lenses.backward import BackwardLens, WeightGradient, weight_gradient
from interp.lenses.causal import CausalBasis, causal_basis
from interp.lenses.classes import ClassLens, Evolution, Importance
from interp.lenses.decoder import DecoderLens
from interp.lenses.direct import DirectLogits, direct_logit_attribution
from interp.lenses.future import FutureLens, bigram, train_future_lens
from interp.lenses.jacobian import JacobianLens, fit_jacobian
from interp.lenses.lens import Lens
from interp.lenses.patchscope import PatchscopeLens, patch_from
from interp.lenses.shortcut import Shortcut, explained, fit_shortcut
from interp.lenses.trajectory import Trajectory
from interp.lenses.tuned import Recipe, TunedLens, train_tuned_lens, transfer

__all__ = [
    "AttentionLens",
    "Averages",
    "BackwardLens",
    "CausalBasis",
    "ClassLens",
    "DecoderLens",
    "DirectLogits",
    "Evolution",
    "FutureLens",
    "Importance",
    "JacobianLens",
    "Lens",
    "PatchscopeLens",
    "Recipe",
    "Shortcut",
    "Trajectory",
    "TunedLens",
    "WeightGradient",
    "bigram",
    "causal_basis",
    "direct_logit_attribution",
    "explained",
    "fit_jacobian",
    "fit_shortcut",
    "patch_from",
    "train_attention_lens",
    "train_future_lens",
    "train_tuned_lens",
    "transfer",
    "weight_gradient",
]
