"""Checkpoints: read safely, written whole."""

from volution.hub.files import read_checkpoint, write_checkpoint

__all__ = ["read_checkpoint", "write_checkpoint"]
