"""Any image model of timm, with random weights, at the dataset's size: e.g. `timm:resnet10t`.

Wightman, PyTorch Image Models, 2019, https://github.com/huggingface/pytorch-image-models. NAME is one of
`timm.list_models()`; tags, which name pretrained weights, are refused, and nothing is ever downloaded. The
size of the images is given to models that take one, e.g. vision transformers; the others take what comes, as
well as they can: most are made for 224×224 and shrink a small image to one pixel. A model that cannot take a
dataset's images is refused before a run. The version of timm is in the rows' `versions`.

Deviation: attention biases are looked up at every pass (`without_cache`).
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor, nn

from workers.architectures import CannotBuild
from workers.architectures.resnet18 import GreyToColour


class Timm:
    """The model of one name."""

    name = "timm"
    label = "timm"
    paper = ""
    version = 1
    requires = ("timm",)
    names_from = "timm"  # grids name a model of this package: timm:NAME

    def __init__(self, model: str) -> None:
        self.model = model

    def build(self, num_classes: int, channels: int, size: int) -> nn.Module:
        """A freshly initialised net for images (b, channels, size, size); one channel is widened to three by
        repetition where timm's model takes three only. CannotBuild without timm or for a name it has not.
        """
        options = {"num_classes": num_classes, "in_chans": channels, "img_size": size}
        while True:
            try:
                return _widened(create(self.model, **options), channels, "in_chans" in options)
            except TypeError as error:
                unknown = [name for name in ("img_size", "in_chans") if f"argument '{name}'" in str(error)]
                if not unknown or unknown[0] not in options:
                    raise
                del options[unknown[0]]


def create(model: str, **options: Any) -> nn.Module:
    """A model of timm with random weights; CannotBuild if timm is missing or knows no such name."""
    try:
        from timm import create_model, is_model
    except ImportError as error:
        raise CannotBuild(
            f"timm:{model}: timm cannot be imported ({error}). `pip install timm` installs it."
        ) from None
    if not model.isidentifier() or not is_model(model):  # other names can make timm look on the internet
        raise CannotBuild(f"timm:{model}: timm has no such model.")
    return without_cache(create_model(model, pretrained=False, **options))


def _widened(model: nn.Module, channels: int, fits: bool) -> nn.Module:
    return model if fits or channels == 3 else nn.Sequential(GreyToColour(), model)


def without_cache(model: nn.Module) -> nn.Module:
    """`model` with attention that looks its biases up at every pass, in place.

    In eval mode timm (LeViT, TinyViT, EfficientFormer, EfficientViT) keeps what it looked up: weights that
    change do not change it, and a second backward pass through it fails.
    """
    for module in model.modules():
        if hasattr(module, "attention_bias_cache"):
            module.__class__ = _uncached(type(module))
    return model


@cache
def _uncached(kind: Any) -> type[nn.Module]:
    def get_attention_biases(self: Any, device: Any) -> Tensor:
        self.attention_bias_cache = {}
        biases: Tensor = kind.get_attention_biases(self, device)
        self.attention_bias_cache = {}
        return biases

    return type(kind.__name__, (kind,), {"get_attention_biases": get_attention_biases})
