"""What an unrolled loss has found out about the user's objects in earlier calls."""

from dataclasses import dataclass, field
from typing import Any

from .call.call import Loss
from .evaluation.shared_memory import Memory
from .optimizers.read import Traces


@dataclass
class Known:
    """What earlier calls have found out, so that it need not be looked up again.

    Attributes:
        memory: where the discriminator's tensors lie, and which of them share memory.
        traces: the recorded steps of optimizers without a rule.
        proven: the doubts that a call has settled by real steps, and by how many.
        on_logits: losses that are known to be given logits.
        compared: the ways through the transforms whose derivatives have been compared with differences.
        hooks: the number of the next hook when parameters were last searched for hooks, and the ids of the parameters.
            Each registration of a hook anywhere increases the number.
    """

    memory: Memory | None
    traces: Traces = field(default_factory=Traces)
    proven: dict[str, int] = field(default_factory=dict)
    on_logits: set[Loss] = field(default_factory=set)
    compared: set[Any] = field(default_factory=set)
    hooks: Any = None
