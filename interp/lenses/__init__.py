"""What a part of a model says, read in the model's own output."""

from interp.lenses.averages import Averages
from interp.lenses.backward import WeightGradient, weight_gradient
from interp.lenses.causal import CausalBasis, causal_basis
from interp.lenses.decoder import DecoderLens
from interp.lenses.direct import DirectLogits, direct_logit_attribution
from interp.lenses.lens import Lens
from interp.lenses.patchscope import patch_from
from interp.lenses.shortcut import Shortcut, explained, fit_shortcut
from interp.lenses.trajectory import Trajectory
from interp.lenses.tuned import Recipe, TunedLens, train_tuned_lens, transfer

__all__ = [
    "Averages",
    "CausalBasis",
    "DecoderLens",
    "DirectLogits",
    "Lens",
    "Recipe",
    "Shortcut",
    "Trajectory",
    "TunedLens",
    "WeightGradient",
    "causal_basis",
    "direct_logit_attribution",
    "explained",
    "fit_shortcut",
    "patch_from",
    "train_tuned_lens",
    "transfer",
    "weight_gradient",
]
