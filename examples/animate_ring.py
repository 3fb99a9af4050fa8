"""The README's moving picture: the ring of Gaussians, K = 0 beside K = 10, from one run of the demo preset each.

    python examples/animate_ring.py --out docs/pictures/ring.gif

Both generators start from the same weights and see the same data. A frame is a density of 10,000 samples after so
many generator updates, drawn as in Figure 2 of Metz et al. (ICLR 2017); the small circles are the modes of the data.
The picture runs three times as fast until one of the generators covers two modes.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from common.metrics import modes_covered
from common.plots import density
from common.training import evaluation_noise, with_adam
from mixture_of_gaussians import PRESETS, Config, centers_of, networks, train


def moments(config: Config, every: int) -> list[Tensor]:
    """Samples before training, and again after every `every` generator updates."""
    device = torch.device("cpu")
    torch.manual_seed(config.seed)
    rates = {"g_lr": config.g_lr, "d_lr": config.d_lr, "betas": config.betas}
    players = with_adam(*networks(config), device, **rates)
    noise = evaluation_noise(10_000, config.noise, device)

    def samples() -> Tensor:
        with torch.no_grad():
            return players.G(noise)

    found, began = [samples()], time.monotonic()
    for update, _, _ in train(config, players, 0, device):
        if update % every == 0:
            found.append(samples())
            seconds = time.monotonic() - began
            print(f"K = {config.unroll}: {update:,} of {config.updates:,} updates, {seconds:.0f} s", flush=True)
    return found


def frame(panels: list[tuple[Config, Tensor]], update: int) -> Image.Image:
    """A heatmap a run, with its K and the modes that it covers."""
    figure = Figure(figsize=(5.2, 2.95), dpi=110)
    for place, (config, samples) in enumerate(panels):
        axis = figure.add_axes((0.015 + 0.49 * place, 0.09, 0.48, 0.8))
        extent = 1.5 * config.radius
        heat = density(samples, extent, bandwidth=0.05 * config.radius)
        square = (-extent, extent, -extent, extent)
        axis.imshow(np.sqrt(heat), origin="lower", cmap="Greens", vmin=0, vmax=1, extent=square)
        centers = centers_of(config)
        axis.scatter(*centers.T, s=60, facecolors="none", edgecolors="0.55", linewidths=0.7)
        modes = modes_covered(samples, centers, config.std)
        name = "unrolled" if config.unroll else "plain GAN"
        axis.set_title(f"{name} (K = {config.unroll})", fontsize=12)
        axis.set_xlabel(f"{modes} of {config.modes} modes", fontsize=10, labelpad=4)
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set(color="0.8", linewidth=0.6)
    figure.text(0.5, 0.035, f"update {update:,}", ha="center", fontsize=9, color="0.45")
    return rendered(figure)


def shown(modes: list[int], skip: int = 3) -> list[int]:
    """The moments that become frames: every third one as long as at most one mode is covered, and then all."""
    start = next((moment for moment, covered in enumerate(modes) if covered > 1), len(modes) - 1)
    return [*range(0, start, skip), *range(start, len(modes))]


def rendered(figure: Figure) -> Image.Image:
    """The figure's pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def save(frames: list[Image.Image], path: Path, milliseconds: int) -> None:
    """One palette for all frames, so that a still part of the picture costs nothing; the last one stays for 3 s."""
    palette = frames[-1].quantize(64)
    paletted = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    durations = [milliseconds] * (len(frames) - 1) + [3000]
    path.parent.mkdir(parents=True, exist_ok=True)
    paletted[0].save(path, save_all=True, append_images=paletted[1:], duration=durations, loop=0, optimize=True)


def main() -> None:
    """Trains both, then draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/ring.gif"))
    parser.add_argument("--unroll", type=int, nargs="+", default=[0, 10], metavar="K")
    parser.add_argument("--every", type=int, default=25, help="generator updates between two frames")
    parser.add_argument("--steps", type=int, help="generator updates in all (the preset's)")
    args = parser.parse_args()
    torch.set_num_threads(1)

    base = PRESETS["demo"].base
    configs = [replace(base, unroll=k, updates=args.steps or base.updates) for k in args.unroll]
    runs = [moments(config, args.every) for config in configs]
    best = [
        max(modes_covered(samples, centers_of(base), base.std) for samples in panels)
        for panels in zip(*runs, strict=True)
    ]
    frames = [
        frame([(config, run[moment]) for config, run in zip(configs, runs, strict=True)], moment * args.every)
        for moment in shown(best)
    ]
    save(frames, args.out, milliseconds=110)
    print(f"{len(frames)} frames, {args.out.stat().st_size / 1e6:.2f} MB: {args.out}")


if __name__ == "__main__":
    main()
