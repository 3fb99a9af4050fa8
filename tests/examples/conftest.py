"""Data for the experiments and the studies, without a download."""

import struct

import pytest
import torch


@pytest.fixture(scope="session")
def mnist(tmp_path_factory):
    """MNIST's four files, made of the small digits that scikit-learn carries: nothing to download."""
    datasets = pytest.importorskip("sklearn.datasets", reason="the examples' extra is not installed")
    folder = tmp_path_factory.mktemp("data")
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images, labels = datasets.load_digits(return_X_y=True)
    small = torch.tensor(images).float().view(-1, 1, 8, 8) * (255 / 16)
    large = torch.nn.functional.interpolate(small, size=(20, 20), mode="bilinear")
    large = torch.nn.functional.pad(large, (4, 4, 4, 4)).byte().numpy()
    for name, part in (("train", slice(1500)), ("t10k", slice(1500, None))):
        pixels, digits = large[part], labels[part].astype("uint8")
        header = struct.pack(">IIII", 0x803, len(pixels), 28, 28)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = struct.pack(">II", 0x801, len(digits))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(header + digits.tobytes())
    return folder
