"""What runs next, and where: pure bookkeeping over the plan and the ledger, the same for Ray and inline runs.

Unlearn tasks wait for their base and then go to the runner that holds it; idle runners train, and take over
waiting unlearn tasks when there is nothing left to train. Where requests follow each other, what is said of a
base holds for the unlearn task before, too: the next one starts from the model it left. Tasks that need the
scores of others are held back until these are done.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable

from orchestrator.held import Held, parents_of
from orchestrator.plan import Task

FAILURES = ("oom", "diverged", "timeout", "bug", "lost_worker", "skipped")


class Schedule:
    """The tasks of a plan that still have to run.

    statuses: how tasks of the ledger ended, by id. retry: failures to run again. has_model: whether the
    weights of a finished base are still there; a base whose weights are gone but needed is trained again, a
    predecessor is run again, with all before it whose weights are gone.
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        statuses: dict[str, str],
        *,
        retry: Collection[str] = (),
        has_model: Callable[[str], bool] = lambda _: True,
        limit: int | None = None,
    ) -> None:
        tasks = list(tasks)
        self._train: deque[Task] = deque()  # bases and retrains that wait for a runner
        self._ready: dict[str, deque[Task]] = {}  # base id -> unlearn tasks whose base is there, never empty
        self._waiting: dict[str, list[Task]] = {}  # base id -> unlearn tasks whose base is not there yet
        self._owner: dict[str, str] = {}  # base id in _ready -> the runner that holds it
        self._owned: dict[str, dict[str, None]] = {}  # runner -> bases in _ready it holds, newest last
        self._free: OrderedDict[str, None] = OrderedDict()  # the bases in _ready that nobody holds, in order
        self._children: dict[str, int] = {}  # base id -> unlearn tasks not finished
        self.skipped: list[tuple[Task, str]] = []  # cannot run, with the reason; to be recorded at the start
        todo = _to_run(tasks, statuses, retry)
        chosen = todo if limit is None else _limited(tasks, todo, limit)
        later = todo - chosen
        for task in tasks:  # a base is needed by later runs too
            if task.base is not None and task.id in later:
                self._children[task.base] = self._children.get(task.base, 0) + 1
        self._held = Held(tasks, chosen, statuses)
        self._by_id = {task.id: task for task in tasks}
        self._made: set[str] = set()  # tasks done in this run
        self._open: set[str] = set()  # tasks that wait for a runner, or for their base, or are being run
        self._statuses, self._has_model = dict(statuses), lambda base: base in self._made or has_model(base)
        for task in self._held.tasks():
            if task.base is not None:
                self._children[task.base] = self._children.get(task.base, 0) + 1
        self._sort_in(tasks, chosen - {task.id for task in self._held.tasks()}, statuses, has_model)
        self.total = self.left = 0
        self.skipped += self._release({})
        self.total = self.left = len(self)

    def __len__(self) -> int:
        groups = [*self._ready.values(), *self._waiting.values(), self._held.tasks()]
        return len(self._train) + sum(map(len, groups))

    def _sort_in(
        self, tasks: list[Task], todo: set[str], statuses: dict[str, str], has_model: Callable[[str], bool]
    ) -> None:
        by_id = {task.id: task for task in tasks}
        todo = todo | (_made_again(tasks, todo, statuses, has_model) - self._open)
        training = [task for task in tasks if task.id in todo and task.kind != "unlearn"]
        reasons: dict[str, str] = {}  # why tasks cannot run
        for task in tasks:
            base = task.base
            if task.id not in todo or base is None:
                continue
            if base in reasons:
                reasons[task.id] = reasons[base]
            elif base in todo or base in self._open:
                self._waiting.setdefault(base, []).append(task)
            elif statuses.get(base) == "done":
                self._group(base).append(task)
            else:
                reasons[task.id] = _reason(by_id.get(base), base, statuses.get(base, "missing"))
            if task.id in reasons:
                self.skipped.append((task, reasons[task.id]))
            else:
                self._children[base] = self._children.get(base, 0) + 1
        self._open |= todo - reasons.keys()
        self._train.extend(sorted(training, key=lambda task: task.kind != "base"))

    def pending(self) -> list[Task]:
        """The tasks that have not been taken."""
        groups = [self._train, *self._ready.values(), *self._waiting.values(), self._held.tasks()]
        return [task for group in groups for task in group]

    def take(self, runner: str) -> Task | None:
        """The next task for a runner, or None if it has to wait."""
        mine = self._owned.get(runner)
        if mine:
            return self._child(next(reversed(mine)))  # the newest first: few models wait to be gone on from
        if self._free:
            base = next(iter(self._free))
            self._own(base, runner)
            return self._child(base)
        if self._train:
            return self._train.popleft()
        base = max(self._ready, key=lambda base: len(self._ready[base]), default="")
        return self._child(base) if base else None

    def _group(self, base: str) -> deque[Task]:
        """The tasks that wait for a runner to start from a base that is there."""
        if base not in self._ready:
            self._ready[base], self._free[base] = deque(), None
        return self._ready[base]

    def _own(self, base: str, runner: str) -> None:
        """Note that a runner holds a base, and nobody else."""
        self._free.pop(base, None)
        if (before := self._owner.get(base)) is not None:
            del self._owned[before][base]
        self._owner[base] = runner
        self._owned.setdefault(runner, {})[base] = None

    def _child(self, base: str) -> Task:
        """The next task of a base; a base without further ones is dropped, so that `take` stays fast."""
        task = self._ready[base].popleft()
        if not self._ready[base]:
            self._close(base)
        return task

    def _close(self, base: str) -> Iterable[Task]:
        """Forget the group of a base, if there is one; returns its tasks."""
        self._free.pop(base, None)
        if (owner := self._owner.pop(base, None)) is not None:
            del self._owned[owner][base]
        return self._ready.pop(base, ())

    def put_back(self, task: Task) -> None:
        """A task that was taken did not finish and has to run again."""
        if task.base is None:
            self._train.appendleft(task)
        else:
            self._group(task.base).appendleft(task)

    def make_again(self, task: Task) -> None:
        """A task was taken whose base's weights turned out to be lost: the base runs again, it waits."""
        base = self._by_id[str(task.base)]
        if base.id not in self._open:
            self._made.discard(base.id)
            before = len(self)
            self._sort_in(self._with_bases([base]), {base.id}, self._statuses, self._has_model)
            self.total, self.left = self.total + len(self) - before, self.left + len(self) - before
        self._waiting.setdefault(base.id, []).extend([task, *self._close(base.id)])

    def finish(self, task: Task, status: str, runner: str) -> list[tuple[Task, str]]:
        """Note how a task ended; returns the tasks that cannot run because of it, with the reason."""
        skipped = self._finish(task, status, runner)
        self._made |= {task.id} if status == "done" else set()
        return skipped + self._release({task.id: status} | {child.id: "skipped" for child, _ in skipped})

    def add(self, tasks: Iterable[Task], known: Iterable[Task] = ()) -> list[tuple[Task, str]]:
        """Take in tasks that were not known before; returns those that cannot run, with the reason. known:
        what they start from, where it has run in earlier runs: it is made again if its weights are gone.
        """
        new = {task.id: task for task in tasks}
        self._by_id |= {task.id: task for task in known} | new
        before, skipped = len(self), len(self.skipped)
        self._sort_in(self._with_bases(list(new.values())), set(new), self._statuses, self._has_model)
        self.total, self.left = self.total + len(self) - before, self.left + len(self) - before
        lost = self.skipped[skipped:]
        del self.skipped[skipped:]
        return lost

    def _release(self, ended: dict[str, str]) -> list[tuple[Task, str]]:
        """Let the tasks go that were held back for some that ended; returns those that cannot run, with the
        reason.
        """
        self._statuses |= ended
        free, lost = self._held.ended(ended)
        for task in [*free, *(task for task, _ in lost)]:
            if task.base in self._children:
                self._children[task.base] -= 1
        self.left -= len(lost)
        if free:
            before, skipped = len(self), len(self.skipped)
            self._sort_in(self._with_bases(free), {task.id for task in free}, self._statuses, self._has_model)
            lost += self.skipped[skipped:]
            again = len(self) - before - len(free)  # bases whose weights are gone, less what cannot run
            self.left += again
            self.total += max(0, again)
            del self.skipped[skipped:]
        return lost

    def _with_bases(self, tasks: list[Task]) -> list[Task]:
        """The tasks, each after all that it starts from."""
        found: dict[str, Task] = {}
        for task in tasks:
            line = [task]
            while (base := line[-1].base) is not None and base in self._by_id:
                line.append(self._by_id[base])
            found |= {one.id: one for one in reversed(line)}
        return list(found.values())

    def _finish(self, task: Task, status: str, runner: str) -> list[tuple[Task, str]]:
        self.left -= 1
        self._open.discard(task.id)
        if task.base is not None:
            self._children[task.base] -= 1
        if status != "done":
            skipped = self._drop(task.id)
            self.left -= len(skipped)
            return [(child, _reason(task, task.id, status)) for child in skipped]
        if waiting := self._waiting.pop(task.id, []):
            self._group(task.id).extend(waiting)
            self._own(task.id, runner)
        return []

    def _drop(self, failed: str) -> list[Task]:
        """Take out what waits for a task that failed, and what waits for that."""
        dropped: list[Task] = []
        bases = deque([failed])
        while bases:
            base = bases.popleft()
            waiting = self._waiting.pop(base, [])
            if base in self._children:  # others may be running, with the weights it left before
                self._children[base] -= len(waiting)
            dropped += waiting
            self._open -= {task.id for task in waiting}
            bases.extend(task.id for task in waiting)
        return dropped

    def forget_runner(self, runner: str) -> None:
        """A runner is gone: what it held belongs to nobody."""
        for base in self._owned.pop(runner, {}):
            del self._owner[base]
            self._free[base] = None

    def needs(self, base: str) -> bool:
        """Whether an unlearn task that has not finished starts from this base."""
        return self._children.get(base, 0) > 0


def _to_run(tasks: list[Task], statuses: dict[str, str], retry: Collection[str]) -> set[str]:
    """Ids without a row, with a failure to be retried, or skipped for a base that is done or runs again."""
    todo = {task.id for task in tasks if task.id not in statuses or statuses[task.id] in retry}
    for task in tasks:
        if statuses.get(task.id) == "skipped":
            parents = parents_of(task)
            if parents and all(parent in todo or statuses.get(parent) == "done" for parent in parents):
                todo.add(task.id)
    return todo


def _made_again(
    tasks: list[Task], todo: set[str], statuses: dict[str, str], has_model: Callable[[str], bool]
) -> set[str]:
    """Finished tasks whose weights are gone and from which a task that runs, or one of these, starts."""
    again: set[str] = set()
    there: dict[str, bool] = {}  # each is looked up once
    for task in reversed(tasks):  # a base stands before its children
        base = task.base
        if base is None or base in todo or statuses.get(base) != "done":
            continue
        if task.id in todo or task.id in again:
            if base not in there:
                there[base] = has_model(base)
            if not there[base]:
                again.add(base)
    return again


def _reason(base: Task | None, name: str, status: str) -> str:
    """Why a task cannot run that starts, at once or at last, from this one."""
    what = "predecessor" if base is not None and base.kind == "unlearn" else "base"
    return f"its {what} {name} is {status}"


def _limited(tasks: list[Task], todo: set[str], limit: int) -> set[str]:
    """The first `limit` of the tasks to run, in the order of the plan (which has bases before their
    children).
    """
    chosen: set[str] = set()
    for task in tasks:
        if len(chosen) == limit:
            break
        if task.id in todo:
            chosen.add(task.id)
    return chosen
