"""How an operator becomes one of PyTorch's: a schema, a fake kernel, an autograd formula, and a choice of backend.

An operator ``torch.ops.action_kernels.<name>`` and the kernels of its gradient are functions of the file
``backends/<backend>/<name>.py`` with the same arguments in the same order, so that a traced graph holds them as opaque
nodes; the backend is chosen when a node runs. A gradient takes the name that was in force for its forward pass as an
argument: it runs in another thread, and in a traced graph there is no other place for it.

Where nobody would see the operator (no compiler, transform, mode, profiler or subclass of Tensor), a call goes straight
to the kernel: PyTorch's way through its dispatcher and back takes a third of a small call. Both ways run the same
kernels under the same formulas.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from ..backends import chosen, kernel, pinned
from ..backends.choice import work_of
from . import transforms

Gradients = tuple[Tensor | None, ...]

_PLAIN = (Tensor, torch.nn.Parameter)
_LIBRARY = torch.library.Library("action_kernels", "DEF")
_transformed: dict[str, type[torch.autograd.Function]] = {}  # by operator, those that have a gradient
_direct: dict[str, type[torch.autograd.Function]] = {}  # likewise
_kernels: dict[str, Callable[..., Any]] = {}  # what a node runs, by the name of the operator or gradient's kernel


def call(name: str, *args: Any) -> Any:
    """Run an operator or a kernel of its gradient, by name; an operator is differentiable as far as it can be."""
    if transforms.active():
        if name in _transformed:
            return _transformed[name].apply(*args)
    elif _unseen(*args):
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args):
            if name in _direct:
                return _direct[name].apply(*args)
        else:
            return _kernels[name](*args)
    return getattr(torch.ops.action_kernels, name)(*args)


def register(
    name: str,
    signature: str,
    *,
    rows: Sequence[str],
    fake: Callable[..., Any],
    save: Callable[..., None] | None = None,
    backward: Callable[..., Gradients] | None = None,
) -> None:
    """Define an operator.

    Args:
        name: of the operator, of its file in every backend and of the function there.
        signature: arguments and results in PyTorch's schema language.
        rows: arguments whose dtypes decide which backend takes the call.
        fake: shapes and dtypes of the results; its parameters are the operator's.
        save: what the backward formula keeps, ``setup_context`` of ``torch.library.register_autograd``.
        backward: gradients of all arguments from those of the results. Without it the operator refuses to be
            differentiated.
    """
    positions = _positions(fake, rows)

    def run(*args: Any) -> Any:
        return _run(name, name, positions, args)

    _define(name, signature, run, fake)
    formula = once_differentiable(backward) if backward else _refuse
    torch.library.register_autograd(f"action_kernels::{name}", formula, setup_context=save, lib=_LIBRARY)
    if save and backward:
        _transformed[name] = transforms.function(name, getattr(torch.ops.action_kernels, name), save, backward)
        _direct[name] = _function(name, run, save, formula)


def register_gradient(
    name: str, signature: str, *, operator: str, rows: Sequence[str], fake: Callable[..., Any]
) -> None:
    """Define a kernel of the gradient of ``operator``; its last argument is a backend's name, or "" for the default."""
    positions = _positions(fake, rows)

    def run(*args: Any) -> Any:
        *inputs, backend = args
        with pinned(backend or None):
            return _run(operator, name, positions, inputs)

    _define(name, signature, run, fake)
    torch.library.register_autograd(f"action_kernels::{name}", _refuse, lib=_LIBRARY)


def _define(name: str, signature: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    _kernels[name] = run
    _LIBRARY.define(name + signature, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"action_kernels::{name}", fake, lib=_LIBRARY)


def _positions(fake: Callable[..., Any], names: Sequence[str]) -> tuple[int, ...]:
    parameters = list(inspect.signature(fake).parameters)
    return tuple(parameters.index(name) for name in names)


def _run(operator: str, name: str, positions: Sequence[int], args: Sequence[Any]) -> Any:
    device_type = args[0].device.type
    work = 0
    if device_type == "cuda" and positions:  # elsewhere no size changes the choice
        work = work_of(args[positions[0]].shape, args[positions[-1]].shape)
    function = kernel(operator, name, device_type, tuple(args[i].dtype for i in positions), work)
    if torch.is_autocast_enabled(device_type):  # the kernel has been given its dtypes: no recasting inside
        with torch.autocast(device_type, enabled=False):
            return function(*args)
    return function(*args)


# ------------------------------------------------------------------------------------------------------- autograd


def _unseen(*args: Any) -> bool:
    """Whether nobody looks at the operator that a call runs, nor gives it another meaning; transforms left aside."""
    return not (
        torch.compiler.is_compiling()
        or is_in_torch_dispatch_mode()
        # PyTorch has no public questions for these.
        or torch._C._is_tracing()  # noqa: SLF001
        or torch._C._autograd._profiler_enabled()  # noqa: SLF001
    ) and all(type(x) in _PLAIN for x in args if isinstance(x, Tensor))


def _function(
    name: str, run: Callable[..., Any], save: Callable[..., None], formula: Callable[..., Gradients]
) -> type[torch.autograd.Function]:
    """The autograd function of an operator whose forward pass is the kernel itself."""

    def forward(ctx: Any, *args: Any) -> Any:
        results = run(*args)
        save(ctx, args, results)
        return results

    methods = {"forward": staticmethod(forward), "backward": staticmethod(formula)}
    return type(name, (torch.autograd.Function,), methods)


class _SecondDerivative(torch.autograd.Function):
    """Identity that refuses its own backward; stands behind every gradient computed with ``create_graph=True``."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise RuntimeError(transforms.NO_SECOND_DERIVATIVE)


def _refuse(ctx: Any, *grads: Tensor) -> Any:
    raise RuntimeError(transforms.NO_SECOND_DERIVATIVE)


def once_differentiable(formula: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Run a backward formula outside the graph."""

    def backward(ctx: Any, *grads: Tensor | None) -> Gradients:
        if not torch.is_grad_enabled():
            return formula(ctx, *grads)
        with torch.no_grad():
            results = formula(ctx, *grads)
        refusing: Callable[[Tensor], Tensor] = _SecondDerivative.apply
        return tuple(None if g is None else refusing(g.requires_grad_()) for g in results)

    return backward


def keep(ctx: Any, *tensors: Tensor | None) -> None:
    """Save tensors for the backward pass, and the backend in force as ``ctx.backend``."""
    ctx.save_for_backward(*tensors)
    ctx.backend = chosen() or ""
    ctx.set_materialize_grads(False)  # the gradient of an unused result is None and costs nothing
