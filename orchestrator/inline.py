"""The driver's protocol in this process, without ray: for the debugger, and for machines that have no ray."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from orchestrator import datasets
from orchestrator.errors import UserError
from orchestrator.session import Session

RUNNER = "inline"
DEVICES = {"auto": "auto", "cpu": "cpu", "gpu": "cuda"}  # as torch calls them


def run(session: Session, data: str, time_limit_s: float, device: str = "auto") -> None:
    """Run every task of the session, one after the other. A task over its time limit ends as `timeout`."""
    if not session.schedule.total:
        return
    from torch.cuda import is_available

    from workers.run_task import TimeLimit
    from workers.worker import Worker

    if device == "gpu" and not is_available():
        raise UserError("--device gpu: this process sees no GPU. Leave --device out to run on the CPU.")
    worker = Worker(data, DEVICES[device], folders=datasets.folders(session.plan.grid.datasets))
    session.load_datasets(lambda name, new: load_samples(worker, name, new), worker.try_out)
    session.progress.running = 1
    while (task := session.schedule.take(RUNNER)) is not None:
        held = task.base is None or task.base in worker.holds()
        weights = None if held else session.store.read_model(str(task.base))
        payload = session.payload(task)
        session.events.given(task, RUNNER)
        try:
            with _limit(time_limit_s):
                outcome = worker.run(payload, weights)
        except TimeLimit as error:  # it struck between the task's own handler and here
            session.failed(task, "timeout", str(error), RUNNER)
            continue
        session.finished(task, outcome, RUNNER)


def load_samples(worker: Any, dataset: str, new: bool = False) -> dict[str, Any]:
    """The table samples of a dataset, a new one with its duplicates; UserError when its files are missing."""
    try:
        return dict(worker.samples(dataset)) | (dict(worker.duplicates(dataset)) if new else {})
    except FileNotFoundError as error:
        raise UserError(str(error)) from None


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Raise TimeLimit inside the block after `seconds`; only the main thread of a process can do that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    from workers.run_task import TimeLimit

    def stop(*_: object) -> None:
        raise TimeLimit(f"longer than {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
