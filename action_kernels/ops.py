"""The operators as PyTorch sees them: per kernel one schema, one fake kernel, one autograd formula.

Every kernel of :class:`~action_kernels.backends.interface.Backend`, backward passes included, is registered as
``torch.ops.action_kernels.<kernel>`` with the same arguments in the same order, so that a traced graph holds them as
opaque nodes; the backend is chosen when the node runs. A backward pass gets the name that was in force for its forward
as an argument: it runs in another thread, and in a traced graph there is no other place for it.
:func:`call` runs an operator; under the transforms of ``torch.func`` and in forward-mode differentiation by way of
:mod:`~action_kernels.transforms`. :mod:`~action_kernels.functional` is the public face.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import transforms
from .backends import chosen, pinned, select

_LIBRARY = torch.library.Library("action_kernels", "DEF")

_ROWS = ("student", "teacher", "query", "positive", "bank")  # arguments whose dtypes the backend must take

# Of the gradients' kernels: the name that was in force for their forward ("": none); None leaves the one in force.
_FORWARD = ", *, str? forward=None"

Gradients = tuple[Tensor | None, ...]

_transformed: dict[str, type[torch.autograd.Function]] = {}  # by operator, those that have a gradient


def call(name: str, *args: Any) -> Any:
    """Run an operator of the library by name, differentiable also under the transforms of ``torch.func``."""
    operator = getattr(torch.ops.action_kernels, name)
    if name in _transformed and transforms.active():
        return _transformed[name].apply(*args)
    return operator(*args)


def _register(
    schema: str,
    fake: Callable[..., Any],
    save: Callable[..., None] | None = None,
    backward: Callable[..., Gradients] | None = None,
) -> None:
    """Define the operator of a backend kernel. Without ``backward`` it refuses to be differentiated."""
    name, _, signature = schema.partition("(")
    arguments = signature.partition(")")[0].split(",")
    rows = [i for i, argument in enumerate(arguments) if argument.split()[-1] in _ROWS]

    def run(*args: Any, forward: str | None = None) -> Any:
        if forward is not None:
            with pinned(forward or None):
                return run(*args)
        device_type = args[0].device.type
        dtypes = tuple(args[i].dtype for i in rows)
        kernel = getattr(select(device_type, dtypes, name), name)
        if torch.is_autocast_enabled(device_type):  # the kernel has been given its dtypes: no recasting inside
            with torch.autocast(device_type, enabled=False):
                return kernel(*args)
        return kernel(*args)

    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"action_kernels::{name}", fake, lib=_LIBRARY)
    torch.library.register_autograd(
        f"action_kernels::{name}",
        _once_differentiable(backward) if backward else _refuse,
        setup_context=save,
        lib=_LIBRARY,
    )
    if save and backward:
        _transformed[name] = transforms.function(name, getattr(torch.ops.action_kernels, name), save, backward)


# ------------------------------------------------------------------------------------------------------- autograd


class _SecondDerivative(torch.autograd.Function):
    """Identity that refuses its own backward; stands behind every gradient computed with ``create_graph=True``."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _refuse(ctx, grad)


def _refuse(ctx: Any, *grads: Tensor) -> Any:
    raise RuntimeError(transforms.NO_SECOND_DERIVATIVE)


def _once_differentiable(formula: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Run a backward formula outside the graph."""

    def backward(ctx: Any, *grads: Tensor | None) -> Gradients:
        if not torch.is_grad_enabled():
            return formula(ctx, *grads)
        with torch.no_grad():
            results = formula(ctx, *grads)
        return tuple(None if g is None else _SecondDerivative.apply(g.requires_grad_()) for g in results)

    return backward


def _keep(ctx: Any, *tensors: Tensor | None) -> None:
    ctx.save_for_backward(*tensors)
    ctx.forward = chosen() or ""
    ctx.set_materialize_grads(False)  # a result nobody used brings None and costs nothing


def _sum(terms: Sequence[Tensor], dtype: torch.dtype) -> Tensor | None:
    """Gradient terms added in float32, rounded once to the input's dtype."""
    return sum(terms[1:], terms[0]).to(dtype) if terms else None


def _working(*tensors: Tensor) -> torch.dtype:
    """dtype of losses, similarities and kernel gradients."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def _like(x: Tensor, dtype: torch.dtype, wanted: bool = True) -> Tensor:
    return x.new_empty(x.shape if wanted else 0, dtype=dtype)


# --------------------------------------------------------------------------------------------------- distillation


def _action_contrast_fake(
    student, teacher, bank, k, student_temp, teacher_temp, query_labels, bank_labels, normalize, direction
):  # fmt: skip
    dtype = _working(student, teacher, bank)
    kl = student.new_empty(student.shape[:-1], dtype=dtype)
    student_lse, teacher_lse = (student.new_empty(student.shape[:-1], dtype=torch.float64) for _ in range(2))
    similarity = student.new_empty((*student.shape[:-1], k), dtype=dtype)
    index = student.new_empty((*student.shape[:-1], k), dtype=torch.int64)
    return kl, student_lse, teacher_lse, _like(student, dtype, direction), similarity, index


def _action_contrast_save(ctx, inputs, output):
    student, teacher, bank, k, student_temp, teacher_temp, _, _, normalize, direction = inputs
    kl, student_lse, teacher_lse, slope, _, index = output
    ctx.mark_non_differentiable(student_lse, teacher_lse, slope, index)
    to_student, to_bank = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
    ctx.settings = k, student_temp, teacher_temp, normalize
    ctx.dtypes = student.dtype, bank.dtype
    # The direction carries the whole student gradient of the divergence; the bank is kept only for other gradients.
    # A graph traced with a student that required none has no direction: its backward pass makes it.
    missing = to_student and not direction
    again = (student, bank) if to_bank or missing or k > 0 else (None, None)
    slope = slope if to_student and direction else None
    distilled = (kl, student_lse, teacher_lse) if to_bank else (None,) * 3
    _keep(ctx, *again, index, slope, teacher if to_bank or missing else None, *distilled)


def _action_contrast_backward(ctx, grad_kl, _student_lse, _teacher_lse, _slope, grad_similarity, _index):
    student, bank, index, slope, teacher, kl, student_lse, teacher_lse = ctx.saved_tensors
    k, student_temp, teacher_temp, normalize = ctx.settings
    to_student, to_bank = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
    ops = torch.ops.action_kernels
    student_terms, bank_terms = [], []
    if ctx.needs_input_grad[1]:
        raise RuntimeError("teacher has no gradient: differentiate in student or bank, and pass teacher.detach()")
    if grad_kl is not None and to_student:
        if slope is None:
            with pinned(ctx.forward or None):
                slope = ops.action_contrast(
                    student, teacher, bank, 0, student_temp, teacher_temp, None, None, normalize, True
                )[3]
        student_terms.append(grad_kl.unsqueeze(-1) * slope)
    if grad_kl is not None and to_bank:
        bank_terms.append(
            ops.contrast_bank_gradient(
                *(grad_kl, student, teacher, bank, kl, student_lse, teacher_lse),
                *(student_temp, teacher_temp, normalize),
                forward=ctx.forward,
            )
        )
    if grad_similarity is not None and k > 0:
        grads = ops.selection_gradient(
            grad_similarity, student, bank, index, normalize, to_student, to_bank, forward=ctx.forward
        )
        student_terms += grads[:1] if to_student else ()
        bank_terms += grads[1:] if to_bank else ()
    student_dtype, bank_dtype = ctx.dtypes
    return _sum(student_terms, student_dtype), None, _sum(bank_terms, bank_dtype), *(None,) * 7


_register(
    "action_contrast(Tensor student, Tensor teacher, Tensor bank, SymInt k, float student_temp, float teacher_temp,"
    " Tensor? query_labels, Tensor? bank_labels, bool normalize, bool direction)"
    " -> (Tensor kl, Tensor student_lse, Tensor teacher_lse, Tensor direction, Tensor similarity, Tensor index)",
    _action_contrast_fake,
    _action_contrast_save,
    _action_contrast_backward,
)

_register(
    "contrast_bank_gradient(Tensor grad_kl, Tensor student, Tensor teacher, Tensor bank, Tensor kl,"
    " Tensor student_lse, Tensor teacher_lse, float student_temp, float teacher_temp, bool normalize"
    f"{_FORWARD}) -> Tensor",
    lambda grad_kl, student, teacher, bank, *_, forward=None: _like(bank, _working(student, teacher, bank)),
)


# ------------------------------------------------------------------------------------------------------ selection


def _hard_negatives_fake(query, bank, k, query_labels, bank_labels, normalize):
    shape = (*query.shape[:-1], k)
    return query.new_empty(shape, dtype=_working(query, bank)), query.new_empty(shape, dtype=torch.int64)


def _hard_negatives_save(ctx, inputs, output):
    query, bank, _, _, _, ctx.normalize = inputs
    ctx.mark_non_differentiable(output[1])
    _keep(ctx, query, bank, output[1])


def _hard_negatives_backward(ctx, grad_similarity, _index):
    if grad_similarity is None:
        return (None,) * 6
    query, bank, index = ctx.saved_tensors
    to_query, to_bank = ctx.needs_input_grad[:2]
    grads = torch.ops.action_kernels.selection_gradient(
        grad_similarity, query, bank, index, ctx.normalize, to_query, to_bank, forward=ctx.forward
    )
    grad_query = grads[0].to(query.dtype) if to_query else None
    grad_bank = grads[1].to(bank.dtype) if to_bank else None
    return grad_query, grad_bank, *(None,) * 4


_register(
    "hard_negatives(Tensor query, Tensor bank, SymInt k, Tensor? query_labels, Tensor? bank_labels, bool normalize)"
    " -> (Tensor similarity, Tensor index)",
    _hard_negatives_fake,
    _hard_negatives_save,
    _hard_negatives_backward,
)


def _selection_gradient_fake(
    grad_similarity, query, bank, index, normalize, query_gradient, bank_gradient, forward=None
):  # fmt: skip
    dtype = _working(query, bank)
    return _like(query, dtype, query_gradient), _like(bank, dtype, bank_gradient)


_register(
    "selection_gradient(Tensor grad_similarity, Tensor query, Tensor bank, Tensor index, bool normalize,"
    f" bool query_gradient, bool bank_gradient{_FORWARD}) -> (Tensor query, Tensor bank)",
    _selection_gradient_fake,
)

_register(
    "relation_negatives(Tensor query_labels, Tensor thresholds, Tensor class_start, Tensor rows, SymInt k, SymInt seed)"
    " -> Tensor",
    lambda query_labels, thresholds, class_start, rows, k, seed: query_labels.new_empty(
        (*query_labels.shape, k), dtype=torch.int64
    ),
)


# --------------------------------------------------------------------------------------------- anatomical contrast


def _anatomical_contrast_fake(query, positive, bank, index, temp, normalize):
    shape = query.shape[:-1]
    return query.new_empty(shape, dtype=_working(query, positive, bank)), query.new_empty(shape, dtype=torch.float64)


def _anatomical_contrast_save(ctx, inputs, output):
    query, positive, bank, index, ctx.temp, ctx.normalize = inputs
    ctx.mark_non_differentiable(output[1])
    _keep(ctx, query, positive, bank, index, output[1])


def _anatomical_contrast_backward(ctx, grad_loss, _lse):
    if grad_loss is None:
        return (None,) * 6
    query, positive, bank, index, lse = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:3]
    grads = torch.ops.action_kernels.anatomical_contrast_gradient(
        grad_loss, query, positive, bank, index, lse, ctx.temp, ctx.normalize, *wanted, forward=ctx.forward
    )
    inputs = (query, positive, bank)
    return *(g.to(x.dtype) if w else None for g, x, w in zip(grads, inputs, wanted, strict=True)), None, None, None


_register(
    "anatomical_contrast(Tensor query, Tensor positive, Tensor bank, Tensor index, float temp, bool normalize)"
    " -> (Tensor loss, Tensor lse)",
    _anatomical_contrast_fake,
    _anatomical_contrast_save,
    _anatomical_contrast_backward,
)


def _anatomical_contrast_gradient_fake(
    grad_loss, query, positive, bank, index, lse, temp, normalize, query_gradient, positive_gradient, bank_gradient,
    forward=None,
):  # fmt: skip
    dtype = _working(query, positive, bank)
    return (
        _like(query, dtype, query_gradient),
        _like(positive, dtype, positive_gradient),
        _like(bank, dtype, bank_gradient),
    )


_register(
    "anatomical_contrast_gradient(Tensor grad_loss, Tensor query, Tensor positive, Tensor bank, Tensor index,"
    " Tensor lse, float temp, bool normalize, bool query_gradient, bool positive_gradient, bool bank_gradient"
    f"{_FORWARD}) -> (Tensor query, Tensor positive, Tensor bank)",
    _anatomical_contrast_gradient_fake,
)
