"""benchmarks/several.py: what is stacked trains as what stands alone, and what is printed has its shape."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from benchmarks import several
from benchmarks.several import Stacked, batch, build, measure
from methods.base import descend, sgd

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["mlp", "cnn_small"])
def test_models_of_a_stack_are_those_that_train_alone(name: str) -> None:
    """Three steps of three models with their own weights and batches, running statistics included."""
    stack = Stacked(name, 3, 8, CPU)
    for _ in range(3):
        stack()
    for seed in range(3):
        model = build(name, seed, CPU)
        optimizer, (images, labels) = sgd(model, 0.01, 0.9, 5e-4), batch(name, seed, 8, CPU)
        for _ in range(3):
            descend(optimizer, cross_entropy(model(images), labels))
        stacked = stack.parameters | stack.buffers
        for key, alone in model.state_dict().items():
            torch.testing.assert_close(stacked[key][seed].detach(), alone, rtol=1e-4, atol=1e-6)
            assert key.endswith("tracked") or not torch.equal(alone, build(name, seed, CPU).state_dict()[key])


def given(**changes: Any) -> argparse.Namespace:
    usual = {"device": "cpu", "engine": "eager", "models": ["mlp"], "n": [1, 2]}
    usual["ways"] = ["threads", "vectorised"]
    return argparse.Namespace(**usual | {"batch_size": 8, "seconds": 0.05} | changes)


@pytest.mark.parametrize("engine", ["eager", "graphs"])
def test_rates_are_of_all_models_together(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "somewhere")
    found = measure(given(engine=engine))
    assert found["mps"] and found["device"] == "cpu" and found["batch_size"] == 8
    assert [(row["way"], row["n"]) for row in found["rows"]] == [
        (way, n) for way in ("threads", "vectorised") for n in (1, 2)
    ]
    first = found["rows"][0]["images_per_s"]
    for row in found["rows"]:
        assert row["ratio"] == pytest.approx(
            row["images_per_s"] / first, abs=0.006 + 0.1 * row["ratio"] / first + 0.1 / first
        )


@pytest.mark.long
def test_processes_train_side_by_side() -> None:
    assert several.processes("mlp", 2, given(seconds=0.5)) > 0


@pytest.mark.parametrize(
    ("option", "value"),
    [("--n", "1 0"), ("--batch-size", "0"), ("--seconds", "-1"), ("--device", "cuda"), ("--n", "2")],
)
def test_bad_input_ends_in_one_line(
    option: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(several, "measure", lambda _: pytest.fail("it began"))
    monkeypatch.setattr("sys.argv", ["several", option, *value.split()])
    with pytest.raises(SystemExit, match="2"):
        several.main()
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error: --" in last and option in last
