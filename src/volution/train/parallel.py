"""Where a run computes: devices, machines, precision, in Lightning's words."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import torch
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import distributed

from volution.train.config import TrainConfig
from volution.train.ranks import launch

__all__ = ["decided_by_first", "on_gpu", "place"]

P = ParamSpec("P")
T = TypeVar("T")


def place(config: TrainConfig) -> dict[str, Any]:
    """Return the arguments of Lightning's ``Trainer`` that say where and how it computes."""
    precisions = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
    return {
        "accelerator": {"cuda": "gpu"}.get(config.device, config.device),
        "devices": config.devices,
        "num_nodes": config.nodes,
        "strategy": _strategy(config),
        "plugins": [_cluster()],
        "precision": precisions[config.precision],
        # The loaders divide each batch themselves.
        "use_distributed_sampler": False,
    }


def on_gpu(config: TrainConfig) -> bool:
    """Return whether a run computes on GPUs."""
    return config.device != "cpu" and torch.cuda.is_available()


def decided_by_first(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what a function returns to the first process, in all of them.

    What it raises is raised in the first; the others end with exit code 2 and leave the word to it.

    For what looks at files that the first process then changes. Processes that volution started
    itself are told everything; those of a launcher begin with nothing but the same command.
    """
    found = launch()
    if found is None or found.by == "volution":
        return function(*args, **kwargs)
    _connect()
    outcome: list[Any] = [None, None]
    if found.rank == 0:
        try:
            outcome[0] = function(*args, **kwargs)
        except Exception as error:
            outcome[1] = error
    # What the first decides may take hours, such as looking at every image.
    patient = distributed.new_group(backend="gloo", timeout=timedelta(days=1))
    assert isinstance(patient, distributed.ProcessGroup)  # all processes belong to it
    distributed.broadcast_object_list(outcome, group=patient)
    distributed.destroy_process_group(patient)
    value, problem = outcome
    if problem is not None:
        raise problem if found.rank == 0 else SystemExit(2)
    return value  # type: ignore[no-any-return]


def _strategy(config: TrainConfig) -> Strategy | str:
    if config.ranks == 1:
        return "auto"  # one device has the whole network, whatever the strategy
    if config.strategy == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=config.ranks,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
        )
    return DDPStrategy(gradient_as_bucket_view=True)


def _cluster() -> ClusterEnvironment:
    found = launch()
    if found is not None and found.by == "srun":
        # Whether a job is queued again is decided where its state is saved.
        return SLURMEnvironment(auto_requeue=False)
    if found is not None and found.by == "torchrun":
        return TorchElasticEnvironment()
    return LightningEnvironment()


def _connect() -> None:
    """Let the processes of a launcher find each other, before Lightning would."""
    found = launch()
    if found is None or distributed.is_initialized():
        return
    cluster = _cluster()
    # Both are put into the environment, where they are looked for.
    address, port = cluster.main_address, cluster.main_port
    device = None
    if torch.cuda.is_available() and found.local_rank < torch.cuda.device_count():
        device = torch.device("cuda", found.local_rank)
        torch.cuda.set_device(device)
    distributed.init_process_group(
        "gloo" if device is None else "nccl",
        init_method=f"tcp://{address}:{port}" if found.by == "srun" else "env://",
        rank=found.rank,
        world_size=found.ranks,
        timeout=default_pg_timeout,
        device_id=device,
    )
