"""Every function and module of torch's that is private or undocumented, with the reason and what would replace it.

A new version of torch may take any of them away, and this file is then the one to change. A test makes sure that no
other file uses such a name of torch's. Attributes of the user's own objects are read where they are needed: a module's
registers (``_parameters``, ``_buffers``, ``_modules``) and hooks, a tensor's ``_version``, ``_cdata`` and
``_backward_hooks``, an optimizer's step hooks, and what an autograd node has saved (``_saved_self``).
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.optim.optimizer as optimizer_module
import torch.utils._pytree
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx._lazy_graph_module import _use_lazy_graph_module  # pyright: ignore[reportPrivateImportUsage]
from torch.nn.utils import parametrize
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["TorchDispatchMode", "pytree", "use_lazy_graph_module"]

_C: Any = torch._C

# torch.utils.swap_tensors does the same from Python, where an interrupt may come between two exchanges, and refuses
# tensors with weak references, which the user's may have.
swap_tensors: Callable[[Tensor, Tensor], None] = _C._swap_tensor_impl

# A tensor that is put back bit for bit has the version that it had, so that autograd does not take it for written to.
put_versions: Callable[[Any, Any], None] = _C._autograd._unsafe_set_version_counter

# A tensor whose entries lie over each other (an expanded one) cannot be written to. There is no public test for it.
has_overlapping_entries: Callable[[Tensor], int] = torch._debug_has_internal_overlap  # pyright: ignore

# Without the __torch_function__ of the user's tensor classes, in reading what they hold.
without_torch_function: Callable[[], Any] = _C.DisableTorchFunction

# torch.set_grad_enabled is a context object whose constructor an interrupt may leave half done.
set_grad_enabled: Callable[[bool], None] = _C._set_grad_enabled

# torch.backends.cudnn.enabled cannot be set after torch.backends.disable_global_flags(), which torch.testing calls.
cudnn_enabled: Callable[[], bool] = _C._get_cudnn_enabled
enable_cudnn: Callable[[bool], None] = _C._set_cudnn_enabled

# torch.utils.pytree is announced, and not there in the versions that this package works with.
pytree = torch.utils._pytree

# A dispatch mode sees every operator, also those within autograd. torch.overrides has the one above autograd alone.
# use_lazy_graph_module(False) lets make_fx return a graph whose code has been generated.
use_lazy_graph_module = _use_lazy_graph_module

# torch.compiler.disable imports all of dynamo, which takes seconds, as soon as this package is imported.
disable_dynamo: Callable[[Any], Any] = torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]


def function_modes() -> list[Any]:
    """Return the modes of ``__torch_function__`` that are on, the innermost last."""
    return list(_get_current_function_mode_stack())


def count_function_modes() -> int:
    """Return how many of these modes are on."""
    return _C._len_torch_function_stack()


def leave_function_mode() -> None:
    """Leave the innermost of these modes: an interrupt within ``__exit__`` leaves it on."""
    _C._pop_torch_function_stack()


def is_transformed(tensor: Tensor) -> bool:
    """Return whether ``torch.func``, forward mode or a batched gradient is about: no public function tells."""
    return bool(
        _C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or _C._functorch.is_legacy_batchedtensor(tensor)
    )


def forward_level() -> int:
    """Return the level of forward-mode differentiation that this thread is in, -1 if it is in none."""
    return forward_ad._current_level


def engine_functions() -> tuple[Any, ...]:
    """Return the functions that begin and end forward mode, and the one by which every backward pass starts."""
    autograd: Any = torch.autograd
    return forward_ad.enter_dual_level, forward_ad.exit_dual_level, autograd._engine_run_backward


def put_engine_functions(functions: tuple[Any, ...]) -> None:
    """Put others in their place. Torch has hooks for single nodes only."""
    autograd: Any = torch.autograd
    forward_ad.enter_dual_level, forward_ad.exit_dual_level, autograd._engine_run_backward = functions


def after_backward(function: Callable[[], None]) -> None:
    """Let a function run at the end of the backward pass that is on. DDP does the same; there is no public way."""
    torch.autograd.Variable._execution_engine.queue_callback(function)  # type: ignore[attr-defined]


def has_global_step_hooks() -> bool:
    """Return whether ``register_optimizer_step_pre_hook`` or its counterpart has been used."""
    module: Any = optimizer_module
    return bool(module._global_optimizer_pre_hooks or module._global_optimizer_post_hooks)


def is_criterion(loss: Any) -> bool:
    """Return whether a loss is one of ``torch.nn``'s, of outputs and labels; their common class has no public name."""
    return isinstance(loss, nn.modules.loss._Loss)


def has_dynamo() -> bool:
    """Return whether ``torch.compile`` has been used: to ask it otherwise would import it, which takes seconds."""
    return "torch._dynamo" in sys.modules


def is_optimized(module: nn.Module) -> bool:
    """Return whether ``torch.compile(module)`` has made it. Only where ``has_dynamo()``."""
    return isinstance(module, sys.modules["torch._dynamo"].OptimizedModule)


def stance() -> Any:
    """Return whether compiled code may run. ``torch.compiler.set_stance`` sets it, and nothing public reads it."""
    return sys.modules["torch._dynamo.eval_frame"]._stance


def take_stance(chosen: Any) -> None:
    """Set what ``stance()`` has returned."""
    sys.modules["torch._dynamo.eval_frame"]._set_stance(chosen)


def eager_stance() -> Any:
    """Return the stance in which compiled functions run as they are written."""
    return sys.modules["torch._dynamo.eval_frame"].DynamoStance("force_eager")


def parametrization_cache() -> tuple[int, Any]:
    """Return the state of ``parametrize.cached()``, which has no public way to leave it for a while."""
    return parametrize._cache_enabled, parametrize._cache


def put_parametrization_cache(cache: tuple[int, Any]) -> None:
    """Set what ``parametrization_cache()`` has returned."""
    parametrize._cache_enabled, parametrize._cache = cache


def compile_ahead(graph: Any, inputs: Any) -> Any:
    """Compile a graph of plain tensors by inductor, without dynamo, which has no public name for that."""
    return torch._inductor.compile(graph, inputs)  # pyright: ignore
