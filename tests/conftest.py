"""Every test runs on one thread and from one seed; float64 is asked for tensor by tensor, or by ``float64``."""

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


def kernels():
    """Settings of the whole process that an unroll changes for a while."""
    cuda = torch.backends.cuda
    return (
        torch.backends.cudnn.enabled,
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
        cuda.math_sdp_enabled(),
    )


@pytest.fixture
def float64():
    """Make float64 the default for a test, or for those of a file that names it in its ``pytestmark``."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def seeded():
    """Start every test from the same random numbers and from torch's own settings; a test that leaves others fails."""
    torch.manual_seed(0)
    assert torch.get_default_dtype() is torch.float32
    before = kernels()
    yield
    assert kernels() == before
    assert torch.get_default_dtype() is torch.float32
    assert torch.is_grad_enabled()
