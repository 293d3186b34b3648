"""Processes that these tests kill."""

import nursery
import pytest


@pytest.fixture(scope="session")
def mother():
    with nursery.nursery() as process:
        yield process
