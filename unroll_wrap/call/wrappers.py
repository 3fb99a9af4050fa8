"""Refuse wrappers and parameters of a player that an unroll cannot replace by its own tensors, and say why."""

import sys
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

_PIECES = (
    "each process holds a piece of its parameters, and its hooks put the gathered ones where an unroll puts its own. "
    "Wrap it in DistributedDataParallel; other networks may be sharded"
)
_REFUSED = {
    "torch.distributed.fsdp.FSDPModule": _PIECES,
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": _PIECES,
    "deepspeed.runtime.engine.DeepSpeedEngine": "its optimizer is a part of it, and steps copies of the parameters. "
    "Wrap it in DistributedDataParallel",
}
_KNOWN = ("torch.distributed.algorithms._checkpoint.",)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_PACKAGES = ("torch.distributed.", "deepspeed.", "fairscale.", "megatron.", "colossalai.", "horovod.")


def check_wrappers(modules: Sequence[nn.Module], params: Sequence[Tensor], who: str, second_order: bool) -> None:
    """Raise TypeError for a wrapper, a parameter or, if ``second_order``, a norm of ``who`` that cannot be unrolled."""
    one = who.capitalize()
    for module in modules:
        paths = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__ if kind is not object]
        for path in filter(_REFUSED.__contains__, paths):
            name = path.rsplit(".", 1)[1]
            raise TypeError(f"{one} is a {name}, which cannot be unrolled: {_REFUSED[path]}.")
        known = isinstance(module, nn.parallel.DistributedDataParallel) or any(p.startswith(_KNOWN) for p in paths)
        unknown = [] if known else [p for p in paths if p.startswith(_PACKAGES)]
        if unknown:
            raise TypeError(
                f"{one} has a {unknown[0]}, of which it is not known where it keeps parameters. "
                "DistributedDataParallel and the wrappers of Accelerate and Fabric are known: use one of these, or "
                "pass the module inside."
            )
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            if any(isinstance(m, _BATCH_NORMS) for m in module.modules()):
                raise TypeError(
                    f"{one} is a DataParallel on {len(module.device_ids)} devices, and its BatchNorm takes "
                    "the statistics of each one's part of a batch. An unroll runs on the first device alone. Use "
                    "DistributedDataParallel, or GroupNorm."
                )
        if second_order and isinstance(module, nn.SyncBatchNorm) and dist.is_available() and dist.is_initialized():
            raise TypeError(
                f"{one} has SyncBatchNorm, whose backward pass cannot be differentiated. Use BatchNorm, "
                "with statistics of each rank's own batch, or GroupNorm; or pass stop_gradient=True or "
                "backward=FiniteDifference()."
            )
    plain: Any = Tensor
    for p in params:
        kind: Any = type(p)
        # DTensors have a message of their own, below.
        own = kind.__torch_dispatch__ is not plain.__torch_dispatch__
        if own and not type(p).__module__.startswith("torch.distributed."):
            raise TypeError(
                f"A parameter of {who} is a {type(p).__name__}, of shape {tuple(p.shape)}, a class with a "
                "__torch_dispatch__ of its own: what it holds is not plain memory, which an unroll puts in its place. "
                "Use an nn.Parameter, or a subclass without __torch_dispatch__."
            )
    if (tensor := sys.modules.get("torch.distributed.tensor")) is not None:
        sharded: list[Any] = [p for p in params if isinstance(p, tensor.DTensor)]
        if sharded:
            raise TypeError(
                f"{len(sharded)} parameters of {who} are DTensors, {sharded[0].placements} the first of "
                "them. An unroll replaces parameters by plain tensors in the same memory, which a DTensor does not "
                f"have. Wrap {who} in DistributedDataParallel; other networks may be sharded."
            )
