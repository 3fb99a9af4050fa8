"""Average inner gradients over the ranks of a process group: N ranks then unroll what one would on the joined batch.

With F = 1/N Σ_r g_loss_r(θ^K), every step updates θ by g = 1/N Σ_r g_r(θ, fake_r). The cotangent λ of θ^{k+1} with
respect to F is the same on every rank, and so is ḡ, which the rule's pullback computes from λ. Then

    ∂F/∂θ^k = direct part + 1/N Σ_r (∂g_r/∂θ)ᵀḡ,        N ∂F/∂fake_r = (∂g_r/∂fake_r)ᵀḡ.

So each rank differentiates only its own g_r, and the reverse sweep averages one cotangent of θ per step. G's own
averaging over the ranks (DDP) divides by the factor N.

No rank may wait for one that has failed: a rank that raises still takes part in the next message, with an error flag
set, and then all of them raise.
"""

import logging
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..call.batch import tensors_in
from ..call.processes import looks_of, words_of
from ..optimizers.block import Block, unpack
from ..optimizers.update import add_gradients
from .one_process import Grads, OneProcess

logger = logging.getLogger("unroll_wrap")


def ranks_of(group: "dist.ProcessGroup | bool", modules: Sequence[nn.Module]) -> OneProcess:
    """Return the processes that a call averages over; messages between them are made on the device of ``modules``."""
    if isinstance(group, bool):
        return OneProcess()
    try:
        dist.get_backend(group)
    except (ValueError, TypeError) as error:  # torch 2.6 raises TypeError.
        raise RuntimeError(
            "The process group that average_gradients was given is gone, or is of other processes. Build "
            f"UnrolledGeneratorLoss after init_process_group, on the ranks of the group. Torch said: {error}"
        ) from error
    if dist.get_world_size(group) == 1:
        return OneProcess()
    return Ranks(group, next((p.device for m in modules for p in m.parameters()), torch.device("cpu")))


class Ranks(OneProcess):
    """One call, made by every rank of a group; the messages between them are made on ``device``.

    As a context manager, a rank waits at the end for all others; if it raises, it tells them, and they raise too.
    """

    def __init__(self, group: "dist.ProcessGroup", device: torch.device) -> None:
        self._group, self._device = group, device
        self._size, self._rank = dist.get_world_size(group), dist.get_rank(group)
        self._owned: list[Tensor] = []
        self._left = 0
        self._error: str | None = None
        self._over = False

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Wait for the other ranks, or tell them of the error, except after Ctrl-C, which reaches every rank itself."""
        if self._over or isinstance(error, GroupFailed) or not isinstance(error, (Exception, type(None))):
            return
        if error is None:
            self._status()
            return
        self._error = f"{type(error).__name__}: {error}"
        try:
            if self._left > 0:
                self._average([None] * len(self._owned), "")
            else:
                self._status()
        except GroupFailed as failure:
            logger.warning("The other ranks could not be told of %r: %s", error, failure)

    def agree(self, steps: int, owned: Sequence[Tensor], batch: Any, facts: Callable[[], dict[str, Any]]) -> None:
        """Raise ValueError unless all ranks are about to make the same call, with the same parameters."""
        mine = {"steps": repr(steps), "the batch": looks_of(tensors_in(batch)), "the parameters": looks_of(owned)}
        mine |= {name: words_of(value) for name, value in facts().items()}
        values = torch.cat([p.detach().reshape(-1).to(self._device) for p in owned])
        total, length = float(values.sum()), float(values.norm())
        rows = self._status([zlib.crc32(repr(mine).encode()), total, length])
        if any(row[0] != rows[0][0] for row in rows):
            everyone = self._everyone(mine)
            self._over = True
            told = "; ".join(
                f"{name}: " + ", ".join(f"{one[name]} on rank {r}" for r, one in enumerate(everyone))
                for name in mine
                if len({one[name] for one in everyone}) > 1
            )
            raise ValueError(
                f"The ranks are not about to unroll the same. {told}. With average_gradients all {self._size} make the "
                "same call, each on a batch of its own of the same shapes (drop_last=True in a DataLoader)."
            )
        if any(abs(a - b) > 1e-4 * length for row in rows for a, b in zip(row[1:], rows[0][1:], strict=True)):
            self._over = True
            raise ValueError(
                "The ranks hold different parameters of the player that moves, which sum to "
                f"{', '.join(f'{row[1]:.6g} on rank {r}' for r, row in enumerate(rows))}. Wrap it in "
                "DistributedDataParallel, which keeps them the same, or broadcast them from one rank."
            )
        self._owned = list(owned)
        # Until ``expect`` sets the number of averages, the next message is one of them if K > 0.
        self._left = min(steps, 1)

    def expect(self, averages: int) -> None:
        """Set how many averages this call performs."""
        self._left = averages

    def gradients(self, grads: Grads, batch: Any) -> Grads:
        """Return the average gradients, without graph; a gradient that a rank does not have counts as zero.

        Raises:
            ValueError: the shapes or dtypes in ``batch``, that of this inner step, are not the same on all ranks.
        """
        looks = looks_of(tensors_in(batch))
        found, same = self._average([None if g is None else g.detach() for g in grads], looks)
        if not same:
            raise ValueError(
                f"On rank {self._rank} the batch of an inner step is {looks}, and not so on another. Give every rank "
                "batches of the same shapes (drop_last=True in a DataLoader)."
            )
        return found

    def cotangent(self, blocks: list[Block]) -> list[Block]:
        """Return the cotangents with that of θ averaged; that of the state is the same on every rank already."""
        own: dict[int, Tensor] = {}
        for block in blocks:
            if block.params is not None:
                own.update(zip(block.index, unpack(block.params, block.shapes), strict=True))
        found, _ = self._average([own.get(i) for i in range(len(self._owned))], "")
        return add_gradients([b._replace(params=None) for b in blocks], found)

    def _average(self, entries: Grads, looks: str) -> tuple[Grads, bool]:
        """Average one tensor per parameter over the ranks, in one bucket for each dtype and device.

        The averages are None where no rank has a tensor. Also return whether ``looks`` is the same on all ranks.
        """
        self._left -= 1
        # Integers below 4096, because their sums over 4096 ranks are exact in float32.
        code = zlib.crc32(looks.encode())
        digest = [code & 0xFFF, code >> 12 & 0xFFF]
        told = [self._error is not None, *digest, *(e is not None for e in entries)]
        together: dict[Any, list[int]] = {}
        for i, p in enumerate(self._owned):
            together.setdefault((p.dtype, p.device), []).append(i)
        sums: dict[int, Tensor] = {}
        heard: list[float] = []
        for (dtype, device), index in together.items():
            # 16-bit gradients are summed in 32 bits.
            kind: dict[str, Any] = {"dtype": torch.promote_types(dtype, torch.float32), "device": device}
            present = [(i, self._owned[i], entries[i]) for i in index]
            flat = [torch.zeros(p.numel(), **kind) if e is None else e.reshape(-1).to(**kind) for _, p, e in present]
            bucket = torch.cat([*flat, torch.tensor(told, **kind)])
            with _talking():
                dist.all_reduce(bucket, group=self._group)
            *values, last = bucket.split([*(f.numel() for f in flat), len(told)])
            heard = last.tolist()
            sums.update((i, v.view(p.shape).to(dtype)) for (i, p, _), v in zip(present, values, strict=True))
        failed, *digests = heard[:3]
        if failed:
            self._stop()
        found = [sums[i] / self._size if n else None for i, n in enumerate(heard[3:])]
        return found, digests == [self._size * d for d in digest]

    def _status(self, row: Sequence[float] = (0.0, 0.0, 0.0)) -> list[list[float]]:
        """Send a few numbers to every rank, and return those of each."""
        mine = torch.tensor([self._error is not None, *row], dtype=torch.float64, device=self._device)
        rows = [torch.empty_like(mine) for _ in range(self._size)]
        with _talking():
            dist.all_gather(rows, mine, group=self._group)
        found = torch.stack(rows).tolist()
        if any(failed for failed, *_ in found):
            self._stop()
        return [rest for _, *rest in found]

    def _stop(self) -> None:
        """Exchange errors after a message with an error flag, and raise those of other ranks if this one has none."""
        self._over = True
        errors = self._everyone(self._error)
        if self._error is None:
            told = "; ".join(f"rank {r} raised {error}" for r, error in enumerate(errors) if error is not None)
            raise RuntimeError(f"The unroll ends on every rank, because {told}")

    def _everyone(self, thing: Any) -> list[Any]:
        """Return the ``thing`` that each rank passes."""
        found: list[Any] = [None] * self._size
        with _talking():
            dist.all_gather_object(found, thing, group=self._group)
        return found


class GroupFailed(RuntimeError):
    """A message between the ranks did not arrive."""


@contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise GroupFailed(
            "The process group failed in the middle of an unroll: another rank has ended, makes another call than this "
            f"one, or took longer than the group's timeout. See what it printed. Torch said: {error}"
        ) from error
