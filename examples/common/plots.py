"""Figures in the manner of the paper's, drawn without a display."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter
from torch import Tensor


def density(samples: Tensor, extent: float, *, bandwidth: float, bins: int = 160) -> np.ndarray:
    """p(x) ∝ Σ_i exp(-‖x - x_i‖² / 2 bandwidth²) over the square |x| ≤ extent: a kernel density on a grid.

    The bandwidth is fixed. A rule that follows the samples' spread would draw a collapsed generator sharply
    and smear one that covers the ring.

    Args:
        samples: Shape (n, 2).
        extent: Half the side of the square.
        bandwidth: Standard deviation of the kernel, in the units of the samples.
        bins: Cells along each side.

    Returns:
        An array of shape (bins, bins), rows along y from bottom to top, scaled to a maximum of 1 (0 if no
        sample is in the square).
    """
    x, y = samples.detach().cpu().double().numpy().T
    edges = np.linspace(-extent, extent, bins + 1)
    counts, _, _ = np.histogram2d(y, x, bins=(edges, edges))
    smooth = gaussian_filter(counts, sigma=bandwidth / (2 * extent / bins), mode="constant")
    return smooth / max(smooth.max(), 1e-12)


def density_grid(
    path: Path,
    rows: Sequence[tuple[str, Sequence[Tensor]]],
    columns: Sequence[str],
    data: Tensor,
    *,
    extent: float,
    bandwidth: float,
) -> None:
    """Figure 2: a row of density heatmaps per label, a column per moment of training, the data in the last.

    Args:
        path: The PNG to write.
        rows: Pairs of a label and the samples of every column.
        columns: Captions under the columns, without the data's.
        data: Samples of the true distribution.
        extent: Half the side of the square that every heatmap shows.
        bandwidth: Standard deviation of the kernel.
    """
    width = len(columns) + 1
    figure = Figure(figsize=(1.45 * width + 0.4, 1.45 * len(rows) + 0.35), layout="constrained")
    axes = figure.subplots(len(rows), width, squeeze=False)
    for row, (label, moments) in zip(axes, rows, strict=True):
        row[0].set_ylabel(label, fontsize=11)
        for panel, samples in zip(row, [*moments, data], strict=True):
            heat = density(samples, extent, bandwidth=bandwidth)
            # The square root keeps thin streaks between modes visible beside a sharp peak.
            panel.imshow(np.sqrt(heat), origin="lower", cmap="Greens", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[])
            for spine in panel.spines.values():
                spine.set(color="0.8", linewidth=0.6)
    for panel, caption in zip(axes[-1], [*columns, "data"], strict=True):
        panel.set_xlabel(caption, fontsize=10)
    figure.savefig(path, dpi=150, metadata={"Software": None})
