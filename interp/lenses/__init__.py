"""What a part of a model says, read in the model's own output."""

from interp.lenses.averages import Averages
from interp.lenses.direct import DirectLogits, direct_logit_attribution
from interp.lenses.lens import Lens
from interp.lenses.trajectory import Trajectory

__all__ = ["Averages", "DirectLogits", "Lens", "Trajectory", "direct_logit_attribution"]
