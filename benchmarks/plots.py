"""c against K, a panel for each net."""

from pathlib import Path
from typing import Any

import libraries
from contenders import APPROXIMATE, CHAINED, EXACT


def plot(path: Path, nets: dict[str, Any]) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(nets), figsize=(5 * len(nets), 4.5), sharey=True, squeeze=False)
    shown = [*EXACT, *libraries.PACKAGES, *APPROXIMATE]
    for ax, result in zip(axes[0], nets.values(), strict=True):
        for i, name in enumerate(shown):
            points = [(int(k), row["c"][name]) for k, row in result["steps"].items() if name in row["c"]]
            if points:
                ks, cs = zip(*points, strict=True)
                middle = [c["median"] for c in cs]
                spans = [[c["median"] - c["low"] for c in cs], [c["high"] - c["median"] for c in cs]]
                outside = name == CHAINED or name in libraries.PACKAGES
                style = {"linestyle": "--", "marker": "s"} if outside else {"marker": "o"}
                ax.errorbar(
                    ks, middle, spans, label=name, color=f"C{i}" if i < 10 else ("k", "tomato")[i - 10], ms=4, **style
                )
        ax.set(
            title=f"{result['problem']}, batch {result['batch']}", xlabel="K", xticks=[int(k) for k in result["steps"]]
        )
        ax.grid(alpha=0.3)
    axes[0][0].set(ylabel="c: cost of a step in plain gradients", ylim=(0, None))
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, 2 * len(nets)), fontsize=8
    )
    figure.tight_layout(rect=(0, 0.14 if len(nets) > 1 else 0.28, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"written: {path}")
