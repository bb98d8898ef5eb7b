"""What tuning sees of a method after each epoch: the right number, and nothing of the run disturbed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from methods.base import plugin
from workers.data import Arrays, DeviceDataset, UnlearnData
from workers.pruning import SAMPLES, EpochWatch, Pruned, spread
from workers.run_task import seeded, unlearn

CPU = torch.device("cpu")
PLUGIN = SimpleNamespace(
    name="toy", num_classes=5, mean=(0.5,), std=(0.25,), augment_pad=0, augment_flip=False
)
RETRAIN = {"ra": 0.9, "fa": 0.5, "va": 0.4, "val_auc": 0.55}
SETS = {"retain": np.arange(0, 120, 2), "forget": np.arange(1, 60, 2), "val": np.arange(61, 120, 2)}


@pytest.fixture(scope="module")
def dataset() -> DeviceDataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (150, 1, 6, 6), dtype=np.uint8)
    labels = rng.integers(0, 5, 150)
    return DeviceDataset(PLUGIN, Arrays(images[:120], labels[:120], images[120:], labels[120:]), CPU)


@pytest.fixture
def model() -> nn.Module:
    """BatchNorm and dropout: what evaluation could disturb. One part is frozen in eval mode by its owner."""
    with seeded(1, CPU):
        made = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 5)
        )
    made.train()
    made[3].eval()
    return made


def by_hand(model: nn.Module, dataset: DeviceDataset) -> float:
    """The distance from probabilities of each sample, one at a time, with a plain count for the AUC."""
    model.eval()
    accuracy, losses = {}, {}
    for name, index in SETS.items():
        right, found = [], []
        for i in index:
            image = (dataset.images[i].double() / 255 - 0.5) / 0.25
            with torch.no_grad():
                p = model(image.float()[None]).double().softmax(1)[0]
            label = int(dataset.host_labels[i])
            right.append(float(int(p.argmax()) == label))
            found.append(-float(p[label].log()))
        accuracy[name], losses[name] = np.mean(right), found
    wins = [(f < v) + 0.5 * (f == v) for f in losses["forget"] for v in losses["val"]]
    gaps = [accuracy[s] - RETRAIN[k] for s, k in (("retain", "ra"), ("forget", "fa"), ("val", "va"))]
    return float(np.sqrt(np.mean(np.square([*gaps, 2 * (np.mean(wins) - RETRAIN["val_auc"])]))))


def test_the_value_is_the_distance_by_hand(model: nn.Module, dataset: DeviceDataset) -> None:
    watch = EpochWatch(model, dataset, SETS, RETRAIN, [])
    watch()
    assert watch.values == pytest.approx([by_hand(model, dataset)], abs=1e-6)
    assert watch.seconds > 0


def test_nothing_of_the_model_and_no_random_state_is_touched(
    model: nn.Module, dataset: DeviceDataset
) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.random.get_rng_state()
    EpochWatch(model, dataset, SETS, RETRAIN, [])()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.is_grad_enabled() and all(p.requires_grad for p in model.parameters())


def test_a_run_is_ended_after_the_first_epoch_above_its_limit(
    model: nn.Module, dataset: DeviceDataset
) -> None:
    value = by_hand(model, dataset)
    watch = EpochWatch(model, dataset, SETS, RETRAIN, [float("inf"), value + 1e-3, value - 1e-3])
    watch()
    watch()
    with pytest.raises(Pruned, match=rf"pruned after epoch 3: {value:.4f}, the median is") as caught:
        watch()
    assert caught.value.values == pytest.approx([value] * 3, abs=1e-6)


def test_an_epoch_beyond_the_limits_has_none_and_a_value_that_is_no_number_ends_the_run(
    model: nn.Module, dataset: DeviceDataset
) -> None:
    watch = EpochWatch(model, dataset, SETS, RETRAIN, [float("inf")])
    for _ in range(3):
        watch()
    odd = EpochWatch(model, dataset, SETS, RETRAIN | {"ra": float("nan")}, [1.0])
    with pytest.raises(Pruned):
        odd()


def test_large_sets_are_seen_from_end_to_end() -> None:
    """Of a dataset whose classes come one after the other, the first samples are of one class."""
    index = np.arange(5000, 7000)
    chosen = spread(index)
    assert len(chosen) == SAMPLES == len(set(chosen.tolist()))
    assert np.bincount((chosen - 5000) // 200).tolist() == pytest.approx([SAMPLES / 10] * 10, abs=1)
    assert spread(index[:7]).tolist() == index[:7].tolist()
    assert spread(index[:0]).tolist() == []


@pytest.mark.parametrize("name", ["finetune", "scrub", "bad_teacher"])
def test_a_method_that_is_watched_gives_the_same_bits(
    name: str, model: nn.Module, dataset: DeviceDataset
) -> None:
    kind = plugin("methods", name)
    small = {field: 16 for field in kind.__dataclass_fields__ if field.endswith("batch_size")}
    method = kind(epochs=2, **small)

    def run(judge: Any) -> tuple[dict[str, Any], Any]:
        rng = torch.Generator().manual_seed(3)
        data = UnlearnData(dataset, SETS, method.needs, rng, augment=False)
        with seeded(3, CPU):
            made, watch = unlearn(method, model, data, judge=judge)
        return made.state_dict(), watch

    plain, clock = run(None)
    watched, judged = run(lambda copy: EpochWatch(copy, dataset, SETS, RETRAIN, [float("inf")] * 2))
    assert plain.keys() == watched.keys()
    assert all(torch.equal(plain[key], watched[key]) for key in plain)
    assert clock.epoch_values == [] and len(judged.epoch_values) == 2
    if name != "scrub":  # which may go back to an earlier epoch
        ended = run_again = EpochWatch(build_like(model, watched), dataset, SETS, RETRAIN, [])
        ended()
        assert run_again.values[-1] == pytest.approx(judged.epoch_values[-1])


def build_like(model: nn.Module, state: dict[str, Any]) -> nn.Module:
    model.load_state_dict(state)
    return model
