"""Find a Sigmoid at the end of D in the graph of a loss that takes logits.

If the loss belongs to an objective of the package, it is known which nodes are the objective's own. In a loss of the
user's, ``binary_cross_entropy_with_logits`` is such a node. Those of D begin below, wherever the Sigmoid is written: as
D's last module, or as ``torch.sigmoid`` within its ``forward``.
"""

import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from ..messages import users_line
from ..objectives import hinge, minimax, non_saturating, relativistic
from .categories import LogitsExpected

# For each loss, the objective's own nodes that may stand between D's output and softplus or relu.
_BELOW: dict[int, str] = {
    id(minimax.d_loss): "Neg",
    id(minimax.g_loss): "Neg",
    id(non_saturating.g_loss): "Neg",
    id(hinge.d_loss): "Add Rsub",
    id(relativistic.d_loss): "Sub",
    id(relativistic.g_loss): "Sub",
}
_VIEWS = "View ReshapeAlias UnsafeView Squeeze Unsqueeze T Transpose Permute ToCopy Clone Alias Select".split()
_ARITHMETIC = "Add Sub Mul Div Neg".split()
_BOUNDED = "Sigmoid LogSigmoid Hardsigmoid Softmax LogSoftmax".split()


def check_logits(loss: Callable[..., Any], value: Tensor, fine: set[Any]) -> None:
    """Warn if a loss that takes logits is given the output of a Sigmoid or a Softmax.

    Training runs without an error in this case, but D and G learn next to nothing. A loss of the package's whose
    ``value`` passes is added to ``fine``, and needs no further check.
    """
    if value.grad_fn is None:
        return
    # Only losses of the package have a hash for certain.
    if (below := _BELOW.get(id(loss))) is None:
        _check_own(value)
        return
    if loss in fine:
        return
    for node in _outputs(value.grad_fn, below.split()):
        if (name := _name(node)) in _BOUNDED:
            warnings.warn(
                f"The discriminator's output comes from {name}, and minimax, non_saturating, hinge and relativistic "
                "take logits: both players would learn next to nothing. Pass the losses of your own loop (d_loss=..., "
                "g_loss=...), or end D in logits and train it with BCEWithLogitsLoss.",
                LogitsExpected,
                stacklevel=users_line(),
            )
            return
    fine.add(loss)


def _check_own(value: Tensor) -> None:
    """Warn if a sum of terms, each a loss of the user's own, contains a cross entropy with logits of a Sigmoid."""
    todo, seen = [value.grad_fn], set[Any]()
    while todo:
        name = _name(node := todo.pop())
        if node in seen:
            continue
        seen.add(node)
        if name in _ARITHMETIC:
            todo += _inputs(node)
        elif name == "BinaryCrossEntropyWithLogits" and (own := _name(_past_views(_inputs(node)[0]))) in _BOUNDED:
            warnings.warn(
                f"The discriminator's output comes from {own}, and binary_cross_entropy_with_logits (BCEWithLogitsLoss)"
                f" applies a Sigmoid itself: both players would learn next to nothing. Leave the {own} out of D, or "
                "use BCELoss in the unroll and in D's own step.",
                LogitsExpected,
                stacklevel=users_line(),
            )
            return


def _outputs(node: Any, below: list[str]) -> Iterator[Any]:
    """Yield the nodes that made D's outputs, below softplus or relu, one node of the objective's own, and views."""
    name = _name(node)
    if name in ("Add", "Neg", "Mean"):
        for following in _inputs(node):
            yield from _outputs(following, below)
    elif name in ("Softplus", "Relu"):
        for output in map(_past_views, _inputs(node)):
            # A node on one tensor and a number is the objective's own. Of nodes on two tensors, only a difference is.
            own = _name(output) in below and (len(_inputs(output)) == 1 or "Sub" in below)
            yield from map(_past_views, _inputs(output) if own else [output])


def _past_views(node: Any) -> Any:
    while _name(node) in _VIEWS and (following := _inputs(node)):
        node = following[0]
    return node


def _inputs(node: Any) -> list[Any]:
    return [following for following, _ in node.next_functions if following is not None]


def _name(node: Any) -> str:
    return re.sub(r"Backward\d*$", "", node.name().lstrip("_"))
