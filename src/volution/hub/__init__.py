"""Checkpoints and where they come from: read safely, written whole, fetched and sent."""

from volution.hub.card import write_card
from volution.hub.files import read_checkpoint, write_checkpoint
from volution.hub.provenance import Provenance, read_provenance
from volution.hub.transfer import fetch, is_remote, locate, send

__all__ = [
    "Provenance",
    "fetch",
    "is_remote",
    "locate",
    "read_checkpoint",
    "read_provenance",
    "send",
    "write_card",
    "write_checkpoint",
]
