"""Gather, scatter and correlate: everything local and dynamic is made of these three."""

from volution.ops._shared.neighbourhood.op import correlate, gather, scatter, window_offsets

__all__ = ["correlate", "gather", "scatter", "window_offsets"]
