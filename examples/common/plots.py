"""Figures in the manner of the paper's, drawn without a display."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torchvision.utils import make_grid

from common.files import replacing


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
    title: str,
) -> None:
    """Figure 2: a row of density heatmaps per label, a column per moment of training, the data in the last.

    Args:
        path: The PNG to write.
        rows: Pairs of a label and the samples of every column.
        columns: Captions under the columns, without the data's.
        data: Samples of the true distribution.
        extent: Half the side of the square that every heatmap shows.
        bandwidth: Standard deviation of the kernel.
        title: Of the whole figure.
    """
    width = len(columns) + 1
    figure = Figure(figsize=(1.45 * width + 0.4, 1.45 * len(rows) + 0.85), layout="constrained")
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
    figure.suptitle(title, fontsize=10)
    figure.supxlabel("generator updates", fontsize=10)
    save(figure, path)


def density_table(
    path: Path,
    rows: Sequence[tuple[str, Sequence[Tensor]]],
    columns: Sequence[str],
    data: Tensor,
    *,
    caption: str,
    extent: float,
    bandwidth: float,
    bins: int = 90,
) -> None:
    """`density_grid` for many rows: one picture of small heatmaps, with the labels beside it.

    Args:
        path: The PNG to write.
        rows: Pairs of a label and the samples of every column; those that are missing stay white.
        columns: Captions under the columns, without the data's.
        data: Samples of the true distribution.
        caption: What stands below the columns.
        extent: Half the side of the square that every heatmap shows.
        bandwidth: Standard deviation of the kernel.
        bins: Pixels along each side of a heatmap.
    """
    width, step = len(columns) + 1, bins + 4
    picture = np.full((len(rows) * step, width * step), np.nan)
    of_data = density(data, extent, bandwidth=bandwidth, bins=bins)
    for row, (_, moments) in enumerate(rows):
        heats = [density(samples, extent, bandwidth=bandwidth, bins=bins) for samples in moments]
        for column, heat in [*enumerate(heats), (width - 1, of_data)]:
            corner = row * step, column * step
            picture[corner[0] : corner[0] + bins, corner[1] : corner[1] + bins] = np.sqrt(heat)[::-1]
    figure = Figure(figsize=(0.9 * width + 1.9, 0.9 * len(rows) + 0.4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(picture, cmap="Greens", vmin=0, vmax=1)
    axes.set_yticks([row * step + bins / 2 for row in range(len(rows))], [label for label, _ in rows], fontsize=8)
    axes.set_xticks([column * step + bins / 2 for column in range(width)], [*columns, "data"], fontsize=8)
    axes.set_xlabel(caption, fontsize=8)
    axes.tick_params(length=0)
    axes.set_facecolor("0.85")
    for spine in axes.spines.values():
        spine.set_visible(False)
    save(figure, path, dpi=110, bbox_inches="tight")


def dots(path: Path, labels: Sequence[str], panels: Mapping[str, tuple[float, Sequence[Sequence[float]]]]) -> None:
    """A row a setting, a panel a measure: a circle a seed, and a bar at their mean.

    Args:
        path: The PNG to write.
        labels: Of the rows, from above.
        panels: By caption, the end of the axis, and for every row the values of its seeds; one without stays empty.
    """
    figure = Figure(figsize=(1.8 + 2.6 * len(panels), 0.24 * len(labels) + 0.9), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for panel, (caption, (end, rows)) in zip(axes, panels.items(), strict=True):
        for place, values in enumerate(rows):
            panel.plot(values, [place] * len(values), "o", color="tab:green", alpha=0.5, markersize=5)
            if values:
                panel.plot([np.mean(values)], [place], "|", color="black", markersize=11)
        panel.set_title(caption, fontsize=9)
        panel.set_xlim(-0.02 * end, 1.02 * end)
        panel.tick_params(labelsize=8)
        panel.grid(color="0.92")
        panel.set_axisbelow(True)
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].set_ylim(len(labels) - 0.5, -0.5)
    save(figure, path, dpi=110)


def curves(
    path: Path,
    panels: Sequence[tuple[str, str]],
    lines: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    levels: Mapping[str, float],
    *,
    title: str,
) -> None:
    """Measures over training: a panel a measure, a colour a label; thin lines are seeds, the thick one their mean.

    Args:
        path: The PNG to write.
        panels: Pairs of a measure's name in the histories and its caption.
        lines: For every label the histories of its seeds, evaluated at the same updates.
        levels: Values of the data itself, drawn as dotted lines.
        title: Of the whole figure.
    """
    figure = Figure(figsize=(4.2 * len(panels), 3.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    colors = [colormaps["viridis"](0.9 * place / max(1, len(lines) - 1)) for place in range(len(lines))]
    for panel, (name, caption) in zip(axes, panels, strict=True):
        for (label, histories), color in zip(lines.items(), colors, strict=True):
            for history in histories:
                panel.plot(*_series(history, name), color=color, linewidth=0.7, alpha=0.5)
            common = min(len(history) for history in histories)
            updates, _ = _series(histories[0][:common], name)
            mean = np.mean([_series(history[:common], name)[1] for history in histories], axis=0)
            panel.plot(updates, mean, color=color, linewidth=2, label=label)
        if name in levels:
            panel.axhline(levels[name], color="0.4", linewidth=1, linestyle=":", label="data")
        panel.set(xlabel="generator updates", title=caption)
        panel.grid(color="0.92")
        panel.set_axisbelow(True)
    # One legend beside the panels, where it hides no line.
    labelled = [pair for panel in axes for pair in zip(*panel.get_legend_handles_labels(), strict=True)]
    entries = {label: handle for handle, label in labelled}
    figure.legend(entries.values(), entries.keys(), loc="outside right center", frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def image_table(
    path: Path,
    rows: Sequence[tuple[str, Sequence[Tensor]]],
    columns: Sequence[str],
    *,
    side: int,
    title: str,
    below: str = "",
) -> None:
    """Samples side by side: a row a label, a column a caption, in each panel side × side images.

    Args:
        path: The PNG to write.
        rows: Pairs of a label and the images of every column, uint8 of shape (n, colours, height, width).
        columns: Captions.
        side: Images along each side of a panel; there must be side² of them.
        title: Of the whole figure.
        below: What the captions count.
    """
    size = (1.5 * len(columns) + 0.5, 1.55 * len(rows) + (0.8 if below else 0.55))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for row, (label, panels) in zip(axes, rows, strict=True):
        row[0].set_ylabel(label, fontsize=10)
        for panel in row:
            panel.set(xticks=[], yticks=[])
            for spine in panel.spines.values():
                spine.set_visible(False)
        # A run that is under way has not come to its last columns.
        for panel, images in zip(row, panels, strict=False):
            grid = make_grid(images[: side * side], nrow=side, padding=0)
            panel.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
    for panel, caption in zip(axes[-1], columns, strict=True):
        panel.set_xlabel(caption, fontsize=10)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel(below, fontsize=10)
    save(figure, path)


def distance_histograms(
    path: Path, panels: Sequence[tuple[str, Sequence[Tensor]]], data: Tensor, *, title: str
) -> None:
    """Figure 6: a panel a label, a blue line a seed, the data in red in each; dashed lines are medians.

    Args:
        path: The PNG to write.
        panels: Pairs of a label and the distances of every seed.
        data: The distances of the data.
        title: Of the whole figure.
    """
    longest = max(float(distances.max()) for distances in [data, *(one for _, seeds in panels for one in seeds)])
    edges = np.linspace(0, longest, 81)
    figure = Figure(figsize=(3.2 * len(panels), 2.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for panel, (label, seeds) in zip(axes, panels, strict=True):
        for distances, color in [*((one, "tab:blue") for one in seeds), (data, "tab:red")]:
            shares, _ = np.histogram(distances.cpu().numpy(), edges, density=True)
            panel.stairs(shares, edges, color=color, linewidth=1)
            panel.axvline(float(distances.median()), color=color, linewidth=0.8, linestyle="--")
        panel.set(title=label, xlabel="distance of two images", yticks=[])
    axes[0].plot([], [], color="tab:blue", label="model")
    axes[0].plot([], [], color="tab:red", label="data")
    axes[0].plot([], [], color="0.4", linewidth=0.8, linestyle="--", label="median")
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def reconstructions(
    path: Path, rows: Sequence[tuple[str, Tensor, Tensor | None]], chosen: Sequence[int], *, title: str
) -> None:
    """Figure 5: a column a target, a row a model, the mean squared error below each reconstruction.

    Args:
        path: The PNG to write.
        rows: A caption, images in uint8 of shape (n, 3, height, width), and their errors, None for the targets.
        chosen: Which of the n images to show.
        title: Of the whole figure.
    """
    figure = Figure(figsize=(1.15 * len(chosen) + 0.3, 1.3 * len(rows) + 0.3), layout="constrained")
    axes = figure.subplots(len(rows), len(chosen), squeeze=False)
    for row, (caption, images, errors) in zip(axes, rows, strict=True):
        for panel, image in zip(row, chosen, strict=True):
            panel.imshow(images[image].permute(1, 2, 0).numpy(), interpolation="nearest")
            panel.set(xticks=[], yticks=[])
            if errors is not None:
                panel.set_xlabel(f"{errors[image]:.4f}", fontsize=8, labelpad=1)
        row[0].set_ylabel(caption, fontsize=10)
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def save(figure: Figure, path: Path, *, dpi: int = 150, bbox_inches: str | None = None) -> None:
    """A PNG with a palette of 256 colours, a third of the size of one without."""
    contents = BytesIO()
    figure.savefig(contents, dpi=dpi, bbox_inches=bbox_inches)
    picture = Image.open(contents).convert("RGB").quantize(256, kmeans=1, dither=Image.Dither.NONE)
    with replacing(path) as file:
        picture.save(file, format="PNG", optimize=True)


def _series(history: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    points = [point for point in history if name in point]
    return [point["update"] for point in points], [point[name] for point in points]
