"""Which share of a job this process does, where several processes do it together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Share", "find_share"]

_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)


@dataclass(frozen=True)
class Share:
    """One share of several, each a run of neighbours, equal but for one image.

    Args:
        rank: Which share, from 0.
        ranks: How many there are.
        by: What said so.
        local: Number of this process on its machine, which decides its GPU.

    Example:
        >>> [Share(rank, 3).span(10) for rank in range(3)]
        [(0, 3), (3, 6), (6, 10)]
    """

    rank: int = 0
    ranks: int = 1
    by: str = ""
    local: int = 0

    def span(self, count: int) -> tuple[int, int]:
        """Return the positions of the first of ``count`` images and after the last."""
        return count * self.rank // self.ranks, count * (self.rank + 1) // self.ranks


def find_share(
    rank: int | None = None, ranks: int | None = None, environ: Mapping[str, str] | None = None
) -> Share:
    """Return this process's share: as given, as torchrun or SLURM say, or all.

    Args:
        rank: Which share, from 0; goes with ``ranks``.
        ranks: How many there are.
        environ: Variables of the environment; those of the process by default.

    Raises:
        ValueError: If one is given without the other, or ``rank`` is not below ``ranks``.

    Example:
        >>> find_share(environ={"SLURM_PROCID": "2", "SLURM_NTASKS": "8"}).by
        'SLURM_PROCID and SLURM_NTASKS'
        >>> find_share(1, 4, environ={"RANK": "0", "WORLD_SIZE": "2"}).ranks
        4
    """
    if (rank is None) != (ranks is None):
        given = f"rank {rank}" if ranks is None else f"ranks {ranks}"
        raise ValueError(f"rank and ranks go together, got {given} alone")
    if rank is not None and ranks is not None:
        return _checked(Share(rank, ranks, "rank and ranks", rank))
    env = os.environ if environ is None else environ
    # A job of SLURM for one shell has many tasks, of which none was started.
    interactive = env.get("SLURM_JOB_NAME") in ("bash", "interactive")
    for name, total, local in _LAUNCHERS:
        if name in env and total in env and not (interactive and name.startswith("SLURM")):
            by = f"{name} and {total}"
            try:
                here = int(env.get(local, env[name]))
                return _checked(Share(int(env[name]), int(env[total]), by, here))
            except ValueError as error:
                raise ValueError(
                    f"{by} in the environment must be numbers, the first below the second, got "
                    f"{env[name]!r} and {env[total]!r}; or give rank and ranks"
                ) from error
    return Share()


def _checked(share: Share) -> Share:
    if not 0 <= share.rank < share.ranks:
        raise ValueError(
            f"rank must be at least 0 and below ranks = {share.ranks}, got {share.rank}"
        )
    return share
