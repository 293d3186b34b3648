"""What every test relies on: Triton without a GPU, few threads, a fixed seed, a full suite."""

from __future__ import annotations

import os

# Two workers with two threads each would spend the day waiting for each other at barriers. Set
# before torch starts its threads, and inherited by the processes that tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

# Triton reads this when kernels are defined, so it has to be set before they are imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

pytest.register_assert_rewrite("implementations", "op_contract", "op_problem", "parity")

# A collection that silently loses a folder would still be green.
_FEWEST_TESTS = 500


def pytest_configure(config: pytest.Config) -> None:
    # Tests are small: more threads only wait for each other, on a shared machine for others.
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    whole_suite = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if whole_suite and len(items) < _FEWEST_TESTS:
        raise pytest.UsageError(
            f"the whole suite has at least {_FEWEST_TESTS} tests, but {len(items)} were collected"
        )


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def poisoned_empty():
    """Fill every tensor that PyTorch leaves uninitialised with NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before)
    torch.utils.deterministic.fill_uninitialized_memory = filled
