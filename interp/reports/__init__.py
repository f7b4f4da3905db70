"""What is shown of results: examples of latents, and pages that need nothing but themselves."""

from interp.reports.dashboard import write_dashboard
from interp.reports.latents import Context, Latent, LatentExamples, draw_live, latent_examples
from interp.reports.page import Curve, Table, write_report

__all__ = [
    "Context",
    "Curve",
    "Latent",
    "LatentExamples",
    "Table",
    "draw_live",
    "latent_examples",
    "write_dashboard",
    "write_report",
]
