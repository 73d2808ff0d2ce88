from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """A setting of torch that a test left behind would change the digits of the tests after it."""
    settings = lambda: (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())  # noqa: E731
    before = settings()
    yield
    assert settings() == before
