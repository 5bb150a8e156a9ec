"""The operators under ``torch.func`` (grad, vjp, jacrev, vmap) and in forward-mode differentiation.

An operator of ``torch.library`` cannot be differentiated by those transforms: some fail with an unhelpful message of
PyTorch's, and forward mode takes the derivative to be zero. While one of them is active, an operator therefore runs
inside a function that knows its gradient, says that it has no forward-mode and no second derivative, and maps over
batched rows.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

NO_SECOND_DERIVATIVE = (
    "the operators of action_kernels have no second derivative (double backward): call backward without "
    "create_graph=True, and torch.func.grad or jacrev once, or select the formulas in plain PyTorch yourself"
)


def active() -> bool:
    """Is a transform of ``torch.func`` running, or a level of forward-mode differentiation open?

    Raises:
        RuntimeError: one is, while ``torch.compile`` traces: there PyTorch would lose the gradient.
    """
    # PyTorch has no public question for either.
    found = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0  # noqa: SLF001
    if found and torch.compiler.is_compiling():
        raise RuntimeError(
            "the operators of action_kernels do not run under torch.func or torch.autograd.forward_ad inside "
            "torch.compile(fullgraph=True): leave the transform outside uncompiled, call backward, or pass a leading "
            "group dimension instead of vmap"
        )
    return found


def function(
    name: str, operator: Callable[..., Any], save: Callable[..., None], formula: Callable[..., Any]
) -> type[torch.autograd.Function]:
    """The autograd function of an operator with its ``setup_context`` and backward formula.

    The formula runs in a function of its own, since ``torch.func.grad`` records every backward pass.
    """

    def no_forward_mode(ctx: Any, *tangents: Any) -> Any:
        raise RuntimeError(
            f"{name} of action_kernels has no forward-mode derivative (torch.func.jvp, jacfwd, linearize, hessian, "
            "torch.autograd.forward_ad): use reverse mode, torch.func.vjp, grad or jacrev"
        )

    class Gradient(torch.autograd.Function):
        """Gradients of the inputs at the places ``wanted``, from those of the results and the tensors kept.

        The inputs themselves come last: no formula reads them, but a second derivative is refused through them.
        """

        @staticmethod
        def forward(kept: SimpleNamespace, wanted: tuple[int, ...], present: tuple[bool, ...], *tensors: Tensor) -> Any:
            given = iter(tensors)
            values = [next(given) if there else None for there in present]
            context = SimpleNamespace(**vars(kept), saved_tensors=values[kept.results : -len(wanted)])
            gradients = formula(context, *values[: kept.results])
            return tuple(gradients[i] for i in wanted)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            """Nothing is kept: there is no second derivative."""

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Any:
            raise RuntimeError(NO_SECOND_DERIVATIVE)

        @staticmethod
        def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
            return _folded(Gradient.apply, info.batch_size, in_dims, args)

        jvp = staticmethod(no_forward_mode)

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            return operator(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            wanted = tuple(i for i, needed in enumerate(ctx.needs_input_grad) if needed)
            kept = SimpleNamespace(
                needs_input_grad=ctx.needs_input_grad,
                save_for_backward=lambda *tensors: ctx.save_for_backward(*tensors, *(inputs[i] for i in wanted)),
                mark_non_differentiable=ctx.mark_non_differentiable,
                set_materialize_grads=ctx.set_materialize_grads,
            )
            save(kept, inputs, output)
            del kept.save_for_backward, kept.mark_non_differentiable, kept.set_materialize_grads  # they hold ctx
            kept.results = len(output)
            ctx.kept, ctx.wanted = kept, wanted

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
            kept, wanted = ctx.kept, ctx.wanted
            values = (*gradients, *ctx.saved_tensors)
            present = tuple(x is not None for x in values)
            if not (wanted and any(present[: kept.results])):
                return (None,) * len(kept.needs_input_grad)
            given = (x for x in values if x is not None)
            results = Gradient.apply(kept, wanted, present, *given)  # type: ignore[no-untyped-call]
            found = dict(zip(wanted, results, strict=True))
            return tuple(found.get(i) for i in range(len(kept.needs_input_grad)))

        @staticmethod
        def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
            return _folded(Function.apply, info.batch_size, in_dims, args)

        jvp = staticmethod(no_forward_mode)

    return Function


def _folded(
    apply: Callable[..., Any], size: int, in_dims: tuple[int | None, ...], args: tuple[Any, ...]
) -> tuple[Any, tuple[int | None, ...]]:
    """``apply`` mapped over a batch, as one call with ``size`` times as many groups, and where its results have it.

    Every tensor of an operator has its groups in front; only a result that was not wanted, [0], has none.
    """

    def fold(x: Any, dim: int | None) -> Any:
        if not isinstance(x, Tensor):
            return x
        return (x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)

    results = apply(*(fold(x, dim) for x, dim in zip(args, in_dims, strict=True)))
    batched = [x.dim() > 1 for x in results]
    unfolded = tuple(x.unflatten(0, (size, -1)) if b else x for x, b in zip(results, batched, strict=True))
    return unfolded, tuple(0 if b else None for b in batched)
