"""Which of a run's processes this is: what launchers leave in the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from volution.train.config import TrainConfig

__all__ = ["Launch", "in_place", "is_first", "launch"]


@dataclass(frozen=True)
class Launch:
    """A process among those that a launcher started for one run.

    Args:
        by: What started them: torchrun, srun, volution, or hand.
        rank: Number of this process among all.
        local_rank: Its number on its machine.
        devices: Processes of each machine.
        nodes: Machines.
    """

    by: str
    rank: int
    local_rank: int
    devices: int
    nodes: int

    @property
    def ranks(self) -> int:
        """Processes in all."""
        return self.devices * self.nodes


def launch(environ: Mapping[str, str] | None = None) -> Launch | None:
    """Return this process's place among those of a launcher; None if it was started alone.

    Args:
        environ: Variables of the environment; those of the process by default.

    Raises:
        ValueError: If they contradict each other.

    Example:
        >>> variables = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
        >>> place = launch({**variables, "TORCHELASTIC_RUN_ID": "none"})
        >>> place.by, place.rank, place.devices, place.nodes
        ('torchrun', 5, 4, 2)
        >>> launch({}) is None
        True
    """
    env = os.environ if environ is None else environ
    if "RANK" in env and "WORLD_SIZE" in env and "LOCAL_RANK" in env:
        by = "hand"
        if "TORCHELASTIC_RUN_ID" in env:
            by = "torchrun"
        elif "VOLUTION_RANK_OF" in env:
            by = "volution"
        ranks = _number(env, "WORLD_SIZE")
        devices = _number(env, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in env else ranks
        rank, local = _number(env, "RANK"), _number(env, "LOCAL_RANK")
        return Launch(by, rank, local, devices, _machines(by, ranks, devices))
    # A job of one task is no launcher: its command starts the processes of its machine itself.
    interactive = env.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if "SLURM_PROCID" in env and not interactive and _number(env, "SLURM_NTASKS") > 1:
        ranks, nodes = _number(env, "SLURM_NTASKS"), int(env.get("SLURM_NNODES", "1"))
        devices = int(env.get("SLURM_NTASKS_PER_NODE", ranks // nodes))
        place = Launch(
            "srun", _number(env, "SLURM_PROCID"), _number(env, "SLURM_LOCALID"), devices, nodes
        )
        if place.ranks != ranks:
            raise ValueError(
                f"SLURM: every machine must have as many tasks, got {ranks} tasks on {nodes} "
                f"machines; ask for them with --nodes and --ntasks-per-node"
            )
        return place
    return None


def is_first() -> bool:
    """Return whether this process is the one that writes and talks: the only one, or rank 0."""
    place = launch()
    return place is None or place.rank == 0


def in_place(config: TrainConfig) -> TrainConfig:
    """Return the settings with the devices and machines that a launcher gave the run.

    Settings that leave both at 1 take what was launched; others must agree with it.

    Raises:
        ValueError: If they do not, or if several machines were asked for without a launcher.
    """
    place = launch()
    if place is None:
        if config.nodes > 1:
            raise ValueError(
                f"nodes {config.nodes}: start the command on every machine with torchrun or srun, "
                f"which say which of them it is"
            )
        return config
    if config.ranks == 1:
        return replace(config, devices=place.devices, nodes=place.nodes)
    if (config.devices, config.nodes) != (place.devices, place.nodes):
        raise ValueError(
            f"devices and nodes must be what {place.by} started, {place.devices} and "
            f"{place.nodes}, got {config.devices} and {config.nodes}; leave both out"
        )
    return config


def _number(env: Mapping[str, str], name: str) -> int:
    try:
        return int(env[name])
    except (KeyError, ValueError):
        raise ValueError(
            f"{name} must be a number where processes are launched together, got "
            f"{env.get(name, 'nothing')!r}"
        ) from None


def _machines(by: str, ranks: int, devices: int) -> int:
    if devices < 1 or ranks % devices:
        raise ValueError(
            f"{by}: every machine must have as many processes, got {ranks} in all and {devices} "
            f"on this one"
        )
    return ranks // devices
