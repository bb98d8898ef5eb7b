"""What methods look for in a model, they find in TinyViT-11M; and each of them runs on it."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from methods.base import fit, head, layers, plugin, sgd, stages, steady, stem
from methods.catastrophic_forgetting_k import freeze_all_but
from methods.convolution_transpose import transpose_kernels
from orchestrator.catalogue import plugins
from workers.architectures import architecture
from workers.data import Arrays, DeviceDataset, UnlearnData
from workers.run_task import generator, seeded, unlearn

CPU = torch.device("cpu")
METHODS = [name for name in plugins("methods") if "codes" not in plugins("methods")[name].constants["needs"]]
SETS = {"retain": np.arange(8), "forget": np.arange(8, 12), "val": np.arange(12, 16)}  # in batches of 4


class Noise:
    """3×32×32 images of noise in 4 classes."""

    name = "noise"
    num_classes = 4
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    augment_pad, augment_flip = 4, True


def tinyvit(channels: int = 3) -> nn.Module:
    with seeded(0, CPU):
        return architecture("tinyvit11m").build(4, channels, 32)


@pytest.mark.parametrize("channels", [1, 3])
def test_stages_are_stem_two_blocks_three_stages_and_head(channels: int) -> None:
    model = tinyvit(channels)
    kinds = [[type(module).__name__ for module in stage] for stage in stages(model)]
    assert kinds == [
        ["PatchEmbed"],
        ["MBConv"],
        ["MBConv"],
        *[["TinyVitStage"]] * 2,
        ["TinyVitStage", "LayerNorm2d"],
        ["Linear"],
    ]
    weights = [sum(p.numel() for module in stage for p in module.parameters()) for stage in stages(model)]
    assert sum(weights) == sum(p.numel() for p in model.parameters())


def test_the_last_two_stages_are_the_last_stage_of_the_paper_and_the_head() -> None:
    """With k = 2 the same is trained as with the reference's k = 1, and the LayerNorm before the head."""
    model = tinyvit()
    freeze_all_but(model, 2)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if n.startswith(("stages.3.", "head."))}
    assert model.stages[3].training and not model.stages[2].training


def test_stem_head_and_convolutions() -> None:
    model = tinyvit()
    assert stem(model) is model.patch_embed.conv1.conv and head(model) is model.head.fc
    old = {name: layer.weight.clone() for name, layer in layers(model, nn.Conv2d)}
    transpose_kernels(model)
    moved = [name for name, layer in layers(model, nn.Conv2d) if not torch.equal(layer.weight, old[name])]
    assert (len(old), len(moved)) == (27, 17)


def test_steady_silences_dropped_paths_and_leaves_gradients_to_biases() -> None:
    model = steady(tinyvit())
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(images), model(images))
    model(images).square().sum().backward()
    assert all(p.grad.any() for name, p in model.named_parameters() if "attention_biases" in name)


@cache
def base() -> tuple[DeviceDataset, nn.Module]:
    """The dataset, and a model that three steps on it have moved away from its zeros."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(20) % 4
    dataset = DeviceDataset(Noise, Arrays(images[:16], labels[:16], images[16:], labels[16:]), CPU)
    model, batch = tinyvit(), (dataset.normalised(dataset.images[:12]), dataset.labels[:12])
    with seeded(0, CPU):
        loss = nn.functional.cross_entropy
        fit(sgd(model, 0.05, 0.9), lambda: [batch], lambda x, y: loss(model(x), y), epochs=3)
    return dataset, model.eval()


def short(name: str) -> dict[str, Any]:
    """Hyper-parameters of a method for one or two epochs of two batches."""
    values: dict[str, Any] = {"batch_size": 4, "samples": 8, "learning_rate": 1e-3}
    values |= {key: 1 for key in plugins("methods")[name].parameters if key.endswith("epochs")}
    values |= {"noisy_epochs": 2} if name == "random_noise_injection" else {}
    return {key: value for key, value in values.items() if key in plugins("methods")[name].parameters}


@pytest.mark.long
@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_on_tinyvit(name: str) -> None:
    dataset, start = base()
    method = plugin("methods", name)(**short(name))
    before = copy.deepcopy(start.state_dict())

    def once() -> nn.Module:
        data = UnlearnData(dataset, SETS, method.needs, generator(1, CPU), augment=True)
        with seeded(1, CPU):
            return unlearn(method, start, data)[0]

    model = once()
    after = model.state_dict()
    assert after.keys() == before.keys() and not model.training
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert any(not torch.equal(after[key], before[key]) for key in before), "it does something"
    assert all(torch.equal(start.state_dict()[key], before[key]) for key in before), "the base is left alone"
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    if name != "finetune":
        return
    again = once().state_dict()
    assert all(torch.equal(after[key], again[key]) for key in after), "dropped paths come from the seed"
