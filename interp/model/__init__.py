"""Wrap a model, record its activations, edit them."""

from interp.model.cache import Cache
from interp.model.edits import Edit, Mean, Patch, Project, Replace, Scale, Steer, Zero
from interp.model.load import load
from interp.model.model import Model, Tokens

__all__ = ["Cache", "Edit", "Mean", "Model", "Patch", "Project", "Replace", "Scale", "Steer", "Tokens", "Zero", "load"]
