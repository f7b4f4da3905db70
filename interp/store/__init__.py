"""Activations recorded once and read many times, in an exactly uniform order, at one write and one read."""

from interp.store.layout import row_bytes
from interp.store.reader import Store, check_store, open_store
from interp.store.streaming import Stream
from interp.store.writer import StoreWriter

__all__ = ["Store", "StoreWriter", "Stream", "check_store", "open_store", "row_bytes"]
