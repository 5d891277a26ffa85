"""Memory of a fit before it runs: the stages of a fit, run once on models of shapes without numbers."""

from lightning_vlmq.estimate.report import CARDS_GB, Estimate, estimate, print_estimate

__all__ = ["CARDS_GB", "Estimate", "estimate", "print_estimate"]
