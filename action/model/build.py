"""The network that the settings ask for: the built-in U-Net, or a class of the user's, measured on images."""

from __future__ import annotations

import copy
import inspect
from itertools import pairwise

import torch
from torch import nn

from action.config import ModelConfig, RunConfig
from action.errors import InputError, said
from action.model.hooked import SETTING, HookedNetwork
from action.model.network import Network, NetworkOutput
from action.model.unet import UNet
from action.own import is_own, own_class

BATCH = 2
"""Images that a network is measured with: batch norm needs more than one value of a channel."""


def network_class(name: str) -> type[nn.Module]:
    """The class of ``model.network``.

    Raises:
        InputError: it cannot be imported, or is no network.
    """
    return own_class(name, "model.network", nn.Module) if is_own(name) else UNet


def described(model: ModelConfig) -> str:
    """The setting that decides the network, for messages."""
    return f"model.network {model.network}" if is_own(model.network) else f"model.channels {tuple(model.channels)}"


def make_network(config: RunConfig, channels: int, classes: int) -> Network:
    """The network of the settings, initialised from PyTorch's global generator, on the default device.

    Args:
        config: settings of the run.
        channels: of the images.
        classes: number of classes, background included.

    Raises:
        InputError: a class that cannot be built or run with these settings, or whose output does not fit.
    """
    model = config.model
    kind = network_class(model.network)
    if kind is UNet:
        return UNet(channels, classes, model.channels, model.dropout)
    given = {"in_channels": channels, "out_channels": classes}
    if "spatial_dims" in inspect.signature(kind).parameters:
        given["spatial_dims"] = 2
    if taken := sorted(given.keys() & model.arguments.keys()):
        raise InputError(f"model.arguments names {', '.join(taken)}, which the data decide: leave it out")
    try:
        inner = kind(**given, **model.arguments)
    except Exception as error:  # whatever a constructor raises
        arguments = ", ".join(f"{name}={value!r}" for name, value in {**given, **model.arguments}.items())
        raise InputError(
            f"model.network {model.network} cannot be built with {arguments} ({said(error)}): change model.arguments, "
            "or wrap it in a class that takes these"
        ) from error
    if not isinstance(inner, Network):
        network: Network = HookedNetwork(inner, channels, classes, model.network, model.feature_layers)
    elif model.feature_layers:
        raise InputError(f"{SETTING} is set, but model.network {model.network} says itself what its features are")
    else:
        network = inner
    measured = _measured(network, model.network, config.input.size, channels, classes)
    if isinstance(network, HookedNetwork):
        network.widths = measured
    elif (network.in_channels, network.widths) != (channels, measured):
        raise InputError(
            f"model.network {model.network} says in_channels {network.in_channels} and widths {network.widths}, but "
            f"they are {channels} and {measured}: correct the class"
        )
    return network


def _measured(network: Network, name: str, size: tuple[int, int], channels: int, classes: int) -> tuple[int, ...]:
    """Widths of the features for images of the run's size.

    A copy trains on them: weights, running means and random numbers stay as they were.
    """
    images = torch.zeros(BATCH, channels, *size)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = copy.deepcopy(network).train()(images)
    except InputError:
        raise
    except Exception as error:  # whatever a network raises
        raise InputError(
            f"model.network {name} fails on images {list(images.shape)} ({said(error)}): change model.arguments or "
            "input.size"
        ) from error
    if not isinstance(output, NetworkOutput) or output.logits.shape != (BATCH, classes, *size):
        raise InputError(f"model.network {name} returns no NetworkOutput with logits {[BATCH, classes, *size]}")
    sizes = [tuple(maps.shape[2:]) for maps in output.features]
    if any(one > other for coarse, fine in pairwise(sizes) for one, other in zip(coarse, fine, strict=True)):
        raise InputError(f"{SETTING}: maps of {name} are of {_listed(sizes)} pixels: name the coarsest first")
    if sizes and sizes[-1] != size:
        raise InputError(
            f"{SETTING}: maps of {name} are of {_listed(sizes)} pixels: the last must be as large as the image, "
            f"{_listed([size])}"
        )
    return tuple(maps.shape[1] for maps in output.features)


def _listed(sizes: list[tuple[int, ...]]) -> str:
    return ", ".join(" x ".join(map(str, size)) for size in sizes)
