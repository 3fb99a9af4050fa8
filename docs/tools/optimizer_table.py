"""The table in docs/optimizers.md: what becomes of every optimizer of torch and of torch_optimizer.

    python docs/tools/optimizer_table.py            # print the page
    python docs/tools/optimizer_table.py --write    # put it into docs/optimizers.md

The package is asked, class by class; the rows of pytorch_optimizer are those that `test_pytorch_optimizer.py` tries.
"""

import inspect
import warnings
from typing import Any, NamedTuple

import pages
import torch
from pages import between, command, put_between
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pytorch_optimizer_rows
    import torch_optimizer

from unroll_wrap.optimizers.read import rule_of

DOCS = pages.DOCS / "optimizers.md"
BEGIN = "<!-- table: written by docs/tools/optimizer_table.py -->"
END = "<!-- table: end -->"
Optimizer = torch.optim.Optimizer

IN_FLOAT32 = "its step() casts to float32, so float64 values agree to the last bit and slopes as far as float32 goes"
NOTES = {
    "torch.optim.Muon": "the value is torch's in bfloat16; the derivative is that of the same iteration unrounded",
    "torch.optim.Rprop": "moves by the sign of the gradient: the second term of Eq. 12 is zero almost everywhere",
    "torch_optimizer.Lookahead": "with the optimizer inside it",
    "torch_optimizer.NovoGrad": "its second moment is kept in float32",
    "torch_optimizer.RAdam": IN_FLOAT32,
    "torch_optimizer.Ranger": IN_FLOAT32,
    "torch_optimizer.RangerVA": IN_FLOAT32,
}


class Row(NamedTuple):
    """One class: `verdict` is exact rule, traced or refused."""

    name: str
    verdict: str
    why: str


def classes(package: Any) -> dict[str, type[Optimizer]]:
    """The optimizer classes that a package exports, under the names that users write."""
    return {
        f"{package.__name__}.{name}": kind
        for name, kind in sorted(vars(package).items())
        if inspect.isclass(kind) and issubclass(kind, Optimizer) and kind is not Optimizer
    }


def ALL() -> dict[str, type[Optimizer]]:  # noqa: N802
    """Torch's, then torch_optimizer's."""
    return {**classes(torch.optim), **classes(torch_optimizer)}


def instance(kind: type[Optimizer]) -> Optimizer:
    """One over a matrix, by its defaults."""
    if kind is torch_optimizer.Lookahead:
        return kind(instance(torch.optim.Adam))
    params = [nn.Parameter(torch.zeros(2, 2))]
    required = inspect.signature(kind).parameters.get("lr")
    needs_lr = required is not None and required.default is inspect.Parameter.empty
    return kind(params, lr=1e-3) if needs_lr else kind(params)


def row(name: str, kind: type[Optimizer]) -> Row:
    """What the package says of a class."""
    try:
        rule = rule_of(instance(kind))
    except TypeError as error:
        reason = str(error).split(" cannot be unrolled: ", 1)[1].split(". ")[0]
        return Row(name, "refused", reason)
    note = NOTES.get(name, "")
    if rule is None:
        return Row(name, "traced", note)
    together = "one flat vector for each group" if rule.elementwise else "tensor by tensor"
    return Row(name, "exact rule", f"{together}; {note}" if note else together)


def table() -> str:
    """In Markdown."""
    lines = ["| optimizer | how | |", "|---|---|---|"]
    asked = [row(*one) for one in ALL().items()]
    tried = [Row(f"pytorch_optimizer.{name}", verdict, why) for name, verdict, why in pytorch_optimizer_rows.rows()]
    lines += [f"| `{r.name}` | {r.verdict} | {r.why} |" for r in (*asked, *tried)]
    return "\n".join(lines)


def documented(text: str) -> str:
    """What the page says now."""
    return between(text, BEGIN, END)


def written(text: str) -> str:
    """The page as it should be now."""
    return put_between(text, BEGIN, END, table())


if __name__ == "__main__":
    command(__doc__, DOCS, written)
