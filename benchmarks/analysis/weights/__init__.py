"""Weights of simulated events: a local package with a file of data."""

from .factors import load, of_muons

__all__ = ["load", "of_muons"]
