"""Bigram subnetworks: the few weights with which a model predicts from its last token alone (Chang & Bergen 2025)."""

from pathlib import Path

from circuits.bigram.counts import Counts, count
from circuits.bigram.mask import Mask, Overlap, overlap, whole
from circuits.bigram.training import Recipe, own_distribution, stable, train

MASKS = Path(__file__).with_name("masks")  # masks that ship, a folder a model of the zoo

__all__ = [
    "MASKS",
    "Counts",
    "Mask",
    "Overlap",
    "Recipe",
    "count",
    "overlap",
    "own_distribution",
    "stable",
    "train",
    "whole",
]
