"""Every test runs on one thread and from one seed; float64 is asked for tensor by tensor, never by default."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Assertions of the helpers say what was compared, as those of the tests do.
pytest.register_assert_rewrite(*(path.stem for path in (Path(__file__).parent / "support").iterdir()))

# The same examples on every machine; `long` draws others for every --hypothesis-seed.
settings.register_profile("default", max_examples=200, deadline=None, derandomize=True, database=None)
settings.register_profile("long", max_examples=500, deadline=None, derandomize=False, database=None)
settings.load_profile("default")


def pytest_configure(config):
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """Start every test from the same random numbers, and from torch's own default dtype."""
    torch.manual_seed(0)
    assert torch.get_default_dtype() is torch.float32
    yield
    assert torch.get_default_dtype() is torch.float32
    assert torch.is_grad_enabled()
