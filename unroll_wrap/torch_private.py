"""Give access to private and undocumented parts of torch, with the reason for each and what would replace it.

A new version of torch may remove any of them, and then only this file has to change. A test makes sure that no other
file uses such a name of torch's. Attributes of the user's own objects are read where they are needed: a module's
registers (``_parameters``, ``_buffers``, ``_modules``) and hooks, a tensor's ``_version``, ``_cdata`` and
``_backward_hooks``, an optimizer's step hooks, and what an autograd node has saved (``_saved_self``).
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.optim.optimizer as optimizer_module
import torch.utils._pytree
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx._lazy_graph_module import _use_lazy_graph_module  # pyright: ignore[reportPrivateImportUsage]
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["TorchDispatchMode", "pytree", "use_lazy_graph_module"]

_C: Any = torch._C

# torch.utils.swap_tensors does the same from Python, where an interrupt may come between two exchanges, and it refuses
# tensors with weak references, which the user's tensors may have.
swap_tensors: Callable[[Tensor, Tensor], None] = _C._swap_tensor_impl

# A profiler that records shapes or stacks keeps weak references to tensors; its public flags do not cover all kinds.
profiler_enabled: Callable[[], bool] = torch.autograd._profiler_enabled  # pyright: ignore

# A tensor whose entries share memory, as in an expanded one, cannot be written to. There is no public test for this.
has_overlapping_entries: Callable[[Tensor], int] = torch._debug_has_internal_overlap  # pyright: ignore

# A context in which tensors are read without the __torch_function__ of the user's own tensor classes.
without_torch_function: Callable[[], Any] = _C.DisableTorchFunction

# The same for one function, without a context that an interrupt may leave half done.
past_torch_function: Callable[..., Any] = _C._disabled_torch_function_impl

# Within torch.func.grad and vmap tensors are wrappers without a memory. There is no public test for this.
is_wrapped: Callable[[Tensor], bool] = _C._functorch.is_functorch_wrapped_tensor

# The public torch.set_grad_enabled is a context object, and an interrupt may leave its constructor half done.
set_grad_enabled: Callable[[bool], None] = _C._set_grad_enabled

# torch.backends.cudnn.enabled cannot be set after torch.backends.disable_global_flags(), which torch.testing calls.
cudnn_enabled: Callable[[], bool] = _C._get_cudnn_enabled
enable_cudnn: Callable[[bool], None] = _C._set_cudnn_enabled

# The public torch.utils.pytree is announced, but missing in versions that this package supports.
pytree = torch.utils._pytree

# TorchDispatchMode sees every operator, including those within autograd; the public torch.overrides only has a mode
# above autograd. use_lazy_graph_module(False) lets make_fx return a graph whose code has been generated.
use_lazy_graph_module = _use_lazy_graph_module

# The public torch.compiler.disable would import all of dynamo with this package, which takes seconds.
disable_dynamo: Callable[[Any], Any] = torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]

_set_versions: Callable[[Any, Any], None] = _C._autograd._unsafe_set_version_counter


def _takes_lists() -> bool:
    """Return whether torch sets the versions of several tensors at once; 2.6 takes one at a time."""
    try:
        _set_versions((), ())
    except TypeError:
        return False
    return True


# Asked without tensors: the error has what was given written out, numbers and all, for which a device would be waited.
_LISTS = _takes_lists()


def put_versions(tensors: Sequence[Tensor], versions: Sequence[int]) -> None:
    """Set autograd's version counters, so that it does not take what is put back bit for bit for modified."""
    if _LISTS:
        _set_versions(tuple(tensors), tuple(versions))
        return
    for tensor, version in zip(tensors, versions, strict=True):
        _set_versions(tensor, version)


def function_modes() -> list[Any]:
    """Return the active modes of ``__torch_function__``, the innermost last."""
    return list(_get_current_function_mode_stack())


def put_function_modes(modes: Sequence[Any]) -> None:
    """Make these the active modes, because an interrupt within torch leaves one active that has ended, or one out."""
    while (now := function_modes()) != modes[: len(now)]:
        _C._pop_torch_function_stack()
    for mode in modes[len(now) :]:
        _C._push_on_torch_function_stack(mode)


class FunctionMode(TorchFunctionMode):
    """A mode whose end is not disturbed by an interrupt within torch, which leaves each mode while that runs."""

    def __exit__(self, *error: Any) -> None:
        if any(mode is self for mode in function_modes()):
            super().__exit__(*error)


def is_transformed(tensor: Tensor) -> bool:
    """Return whether ``torch.func``, forward mode or a batched gradient is active; no public function does so."""
    return transforms_active() or forward_level() >= 0 or bool(_C._functorch.is_legacy_batchedtensor(tensor))


def transforms_active() -> bool:
    """Return whether a transform of ``torch.func`` is active; no public function does so."""
    return bool(_C._are_functorch_transforms_active())


def forward_level() -> int:
    """Return the level of forward-mode differentiation that this thread is in, -1 if it is in none."""
    return forward_ad._current_level


def engine_functions() -> tuple[Any, ...]:
    """Return the functions that begin and end forward mode, and the one that starts every backward pass."""
    autograd: Any = torch.autograd
    return forward_ad.enter_dual_level, forward_ad.exit_dual_level, autograd._engine_run_backward


def put_engine_functions(functions: tuple[Any, ...]) -> None:
    """Replace the functions that ``engine_functions`` returns, because torch only has hooks for single nodes."""
    autograd: Any = torch.autograd
    forward_ad.enter_dual_level, forward_ad.exit_dual_level, autograd._engine_run_backward = functions


def saving_hooks() -> bool:
    """Return whether hooks on saved tensors are active; there is no public way to see those of an outer context."""
    if hasattr(_C._autograd, "_top_saved_tensors_default_hooks"):
        return _C._autograd._top_saved_tensors_default_hooks(False) is not None
    return _refused_to_disable_hooks()


def _refused_to_disable_hooks() -> bool:
    """Return the same on torch 2.6, which cannot tell the active hooks, but refuses to disable any that are active."""
    put_back = saving_hooks_disabled()
    try:
        _C._autograd._saved_tensors_hooks_disable("")
    except RuntimeError:
        return True
    finally:
        put_back()
    return False


def saving_hooks_disabled() -> Callable[[], None]:
    """Return a function that puts back whether hooks on saved tensors are disabled, which the next function changes."""
    message = _C._autograd._saved_tensors_hooks_get_disabled_error_message()

    def put_back() -> None:
        _C._autograd._saved_tensors_hooks_enable()
        if message is not None:
            _C._autograd._saved_tensors_hooks_disable(message)

    return put_back


def runs_in_backward() -> Callable[[Any], bool]:
    """Return the function by which hooks on several tensors learn which of their nodes a backward pass will run."""
    return _C._will_engine_execute_node


def put_runs_in_backward(function: Callable[[Any], bool]) -> None:
    """Replace the function that ``runs_in_backward`` returns."""
    _C._will_engine_execute_node = function


def after_backward(function: Callable[[], None]) -> None:
    """Run a function at the end of the current backward pass, as DDP does; there is no public way."""
    torch.autograd.Variable._execution_engine.queue_callback(function)  # type: ignore[attr-defined]


def has_global_step_hooks() -> bool:
    """Return whether ``register_optimizer_step_pre_hook`` or its counterpart has been used."""
    module: Any = optimizer_module
    return bool(module._global_optimizer_pre_hooks or module._global_optimizer_post_hooks)


def is_criterion(loss: Any) -> bool:
    """Return whether a loss is one of ``torch.nn``'s, on outputs and labels; their base class has no public name."""
    return isinstance(loss, nn.modules.loss._Loss)


def has_dynamo() -> bool:
    """Return whether dynamo is imported, without which nothing is compiled; to import it only to ask takes seconds."""
    return "torch._dynamo" in sys.modules


def is_optimized(module: nn.Module) -> bool:
    """Return whether ``torch.compile`` returned this module. Call this only if ``has_dynamo()``."""
    return isinstance(module, sys.modules["torch._dynamo"].OptimizedModule)


def stance() -> Any:
    """Return dynamo's stance on compiled code, which ``torch.compiler.set_stance`` sets and nothing public reads."""
    return sys.modules["torch._dynamo.eval_frame"]._stance


def take_stance(chosen: Any) -> None:
    """Set a stance that ``stance()`` or ``eager_stance()`` has returned."""
    sys.modules["torch._dynamo.eval_frame"]._set_stance(chosen)


def eager_stance() -> Any:
    """Return the stance in which compiled functions run eagerly, as they are written."""
    return sys.modules["torch._dynamo.eval_frame"].DynamoStance("force_eager")


def parametrization_cache() -> tuple[int, Any]:
    """Return the state of ``parametrize.cached()``, which has no public way to suspend it."""
    return parametrize._cache_enabled, parametrize._cache


def put_parametrization_cache(cache: tuple[int, Any]) -> None:
    """Restore the state that ``parametrization_cache()`` has returned."""
    parametrize._cache_enabled, parametrize._cache = cache


def compile_ahead(graph: Any, inputs: Any) -> Any:
    """Compile a graph of plain tensors by inductor without dynamo, for which there is no public function.

    Inductor looks in its cache on disk only where there is a mode of fake tensors that can have symbolic shapes. Torch
    2.6, which has no logger of compile events, fails when it finds something there.
    """
    compile_graph = torch._inductor.compile  # pyright: ignore
    # To import these with the package would take seconds.
    from torch._dynamo import utils

    if not hasattr(utils, "CompileEventLogger"):
        return compile_graph(graph, inputs)
    from torch._guards import TracingContext, tracing
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    fake = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    with tracing(TracingContext(fake)):
        return compile_graph(graph, [fake.from_tensor(t, static_shapes=True) for t in inputs])
