"""Any 2-D network as a ``Network``: hooks on layers that the settings name take its features from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from action.errors import InputError
from action.model.network import Network, NetworkOutput, in_single
from action.suggestions import did_you_mean

SETTING = "model.feature_layers"


class _Reached(Exception):
    """The layer has been computed whose maps were asked for; what comes after it need not be."""


class _Tap:
    """A forward hook that keeps the maps of a layer; an object, so that a copy of the network has taps of its own."""

    def __init__(self) -> None:
        self.maps: Any = None
        self.change: Callable[[Tensor], Tensor] | None = None
        self.stops = False

    def __call__(self, layer: nn.Module, inputs: Any, output: Any) -> Any:
        self.maps = output if self.change is None else self.change(output)
        if self.stops:
            raise _Reached
        return self.maps

    def take(self) -> Any:
        """The maps, which are then no longer kept."""
        maps, self.maps = self.maps, None
        return maps


class HookedNetwork(Network):
    """A network that returns logits alone, with the outputs of some of its layers as features.

    Args:
        inner: images [B, in_channels, H, W] to logits [B, classes, H, W].
        in_channels: channels of the images.
        classes: classes including background.
        name: for messages.
        feature_layers: names of layers of ``inner`` as in ``inner.named_modules()``: the last of the encoder, then one
            of each level of the decoder, coarse to fine. ``action.model.build`` measures their ``widths``.

    Raises:
        InputError: no such layer, or one that is named twice.
    """

    def __init__(
        self, inner: nn.Module, in_channels: int, classes: int, name: str, feature_layers: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.inner, self.in_channels, self.classes, self.name = inner, in_channels, classes, name
        self.widths = ()
        layers = dict(inner.named_modules())
        self._taps: dict[str, _Tap] = {}
        for layer in feature_layers:
            if layer not in layers or not layer:
                raise InputError(f"{SETTING}: {name} has no layer '{layer}'{_layers_of(inner, layer)}")
            if layer in self._taps:
                raise InputError(f"{SETTING} names '{layer}' twice: name each layer once, coarse to fine")
            self._taps[layer] = tap = _Tap()
            layers[layer].register_forward_hook(tap)

    def forward(self, images: Tensor) -> NetworkOutput:
        logits = self._checked(self.inner(images), images)
        return NetworkOutput(logits, [self._taken(layer) for layer in self._taps])

    def coarsest(self, images: Tensor) -> Tensor:
        layer, tap = self._first()
        tap.stops = True
        try:
            self.inner(images)
        except _Reached:
            pass
        finally:
            tap.stops = False
        return self._taken(layer)

    def perturbed(self, images: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits from a changed coarsest map: other maps of its encoder are not known. See ``Network.perturbed``."""
        _, tap = self._first()
        tap.change = change
        try:
            output: NetworkOutput = self(images)
            return output.logits
        finally:
            tap.change = None

    def _first(self) -> tuple[str, _Tap]:
        return next(iter(self._taps.items()))

    def _taken(self, layer: str) -> Tensor:
        maps = self._taps[layer].take()
        if not isinstance(maps, Tensor) or maps.dim() != 4:
            got = "was not computed" if maps is None else f"gives {_shape(maps)}"
            raise InputError(
                f"{SETTING}: the layer '{layer}' of {self.name} {got}, not maps [B, C, h, w]: name another one"
            )
        return maps

    def _checked(self, output: Any, images: Tensor) -> Tensor:
        wanted = (len(images), self.classes, *images.shape[2:])
        if not isinstance(output, Tensor) or tuple(output.shape) != wanted:
            raise InputError(
                f"model.network {self.name} gives {_shape(output)} for images {_shape(images)}, not logits "
                f"{list(wanted)}: change model.arguments, or wrap it in a class that returns those alone"
            )
        return in_single(output)


def _shape(output: Any) -> str:
    return str(list(output.shape)) if isinstance(output, Tensor) else f"a {type(output).__name__}"


def _layers_of(inner: nn.Module, name: str) -> str:
    """What may have been meant, or what there is."""
    known = [layer for layer, _ in inner.named_modules() if layer]
    outer = [layer for layer, _ in inner.named_children()]
    return did_you_mean(name, known, otherwise=f": its outer layers are {', '.join(outer) or 'none'}")
