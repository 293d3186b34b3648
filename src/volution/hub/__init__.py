"""Checkpoints and where they come from: read safely, written whole, fetched and sent."""

from volution.hub.files import read_checkpoint, write_checkpoint
from volution.hub.transfer import fetch, is_remote, locate, send

__all__ = ["fetch", "is_remote", "locate", "read_checkpoint", "send", "write_checkpoint"]
