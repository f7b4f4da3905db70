"""What a part of a model says, read in the model's own output."""

from interp.lenses.direct import DirectLogits, direct_logit_attribution

__all__ = ["DirectLogits", "direct_logit_attribution"]
