"""Fingerprints of what each version of a method computes, kept in golden.json.

.venv/bin/python -m tests.contract.golden (or `make golden`) writes them anew.

A fingerprint has two numbers of the change of each weight tensor on a tiny fixed problem after a few steps:
its length and its component along a fixed random direction. Tensors are told apart so that a new learning
rate shows beside layers that are drawn anew.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from methods.base import Method, plugin
from orchestrator.catalogue import plugins
from tests.contract.cases import CASES
from tests.contract.checks import Case, apply, short
from tests.contract.toy import CPU, FORGET, NETS, RETAIN, Toy, ToyImages, arrays, class_sets
from workers.data import DeviceDataset
from workers.mnemonic import draw_codes
from workers.run_task import generator

PATH = Path(__file__).with_name("golden.json")

# Of the length of a tensor's change. Sums in another order, as by another CPU's instructions, change it by
# less than 1e-4 after so few steps from untrained weights, a learning rate off by one per cent by 1e-2.
TOLERANCE = 1e-3
# Adam's first steps make rounding errors of tiny gradients large, the less the shorter they are.
CALM = {"bad_teacher": {"learning_rate": 1e-3}}


def tiny(cls: type[Method]) -> Toy:
    """48 retained, 24 forgotten and 24 validation samples, and an untrained convolutional net."""
    dataset = DeviceDataset(ToyImages, arrays(), CPU)
    sets = {"retain": np.arange(48), "forget": np.arange(RETAIN, RETAIN + 24)}
    sets["val"] = np.arange(RETAIN + FORGET, RETAIN + FORGET + 24)
    if cls.scope == "class":
        whole = class_sets(dataset.host_labels, 0)
        sets |= {"retain": whole["retain"][:48], "forget": whole["forget"][:24]}
    with torch.random.fork_rng([]):
        torch.manual_seed(11)
        base = NETS["cnn"]().eval()
    return Toy(dataset, base, base, sets, codes=draw_codes(4, (1, 8, 8), generator(5, CPU)))


def fingerprint(cls: type[Method]) -> dict[str, list[float]]:
    """By weight tensor: the length of its change and the component along a random unit vector."""
    toy, rng = tiny(cls), np.random.default_rng(0)
    model = apply(short(cls, CASES.get(cls.name, Case()), **CALM.get(cls.name, {})), toy)
    found = {}
    for (name, after), before in zip(model.named_parameters(), toy.base.parameters(), strict=True):
        change = (after - before).detach().double().flatten().numpy()
        axis = rng.standard_normal(len(change))
        numbers = (np.linalg.norm(change), change @ axis / np.linalg.norm(axis))
        found[name] = [float(f"{number:.8g}") for number in numbers]
    return found


def verdict(cls: type[Method], found: dict[str, list[float]], kept: dict[str, Any]) -> str:
    """What is to be done about a method, '' if nothing."""
    if cls.name not in kept or kept[cls.name]["version"] != cls.version:
        return f"{cls.name}: golden.json has no version {cls.version} of it. Run `make golden`."
    numbers = kept[cls.name]["numbers"]
    if numbers.keys() != found.keys() or not all(near(found[name], numbers[name]) for name in numbers):
        return f"{cls.name}: its behaviour changed and its version {cls.version} did not. Raise it or undo."
    return ""


def near(found: list[float], kept: list[float]) -> bool:
    return bool(np.allclose(found, kept, rtol=0, atol=TOLERANCE * kept[0] + 1e-9))


def load() -> dict[str, Any]:
    return json.loads(PATH.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def main() -> None:
    """Write the fingerprints of all methods; refuse if one changed without its version.

    After a change of the tiny problem itself, delete golden.json first.
    """
    torch.set_num_threads(1)
    kept = load() if PATH.exists() else {}
    classes = [plugin("methods", name) for name in plugins("methods")]
    found = {cls.name: {"version": cls.version, "numbers": fingerprint(cls)} for cls in classes}
    told = [verdict(cls, found[cls.name]["numbers"], kept) for cls in classes]
    changed = [line for line in told if "Raise" in line]
    if changed:
        raise SystemExit("\n".join(changed) + "\nNothing was written.")
    found = {
        cls.name: found[cls.name] if line else kept[cls.name] for cls, line in zip(classes, told, strict=True)
    }
    text = json.dumps(found, indent=1)
    PATH.write_text(re.sub(r"\[\s+(\S+)\s+(\S+)\s+\]", r"[\1 \2]", text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
