"""Wrap a model, record its activations, edit them."""

from interp.model.cache import Cache
from interp.model.edits import Edit, Freeze, Mean, Noise, Patch, Project, Replace, Resample, Scale, Steer, Zero
from interp.model.fold import folded
from interp.model.load import load
from interp.model.model import Model, Tokens
from interp.model.sweep import attribution_patching
from interp.model.together import Together
from interp.model.written import edits_from_json

__all__ = [
    "Cache",
    "Edit",
    "Freeze",
    "Mean",
    "Model",
    "Noise",
    "Patch",
    "Project",
    "Replace",
    "Resample",
    "Scale",
    "Steer",
    "Together",
    "Tokens",
    "Zero",
    "attribution_patching",
    "edits_from_json",
    "folded",
    "load",
]
