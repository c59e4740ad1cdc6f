"""TVM's compiler and tuner in a process of their own: ``python -m deploylab.engines._tvm_child``.

LLVM ends the process that meets a full disk, a schedule may crash, and the parent must be able to stop both.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import types
from pathlib import Path
from typing import Any

from deploylab import machine
from deploylab.engines import _tvm

RELAX, LIBRARY, BUILT_FOR = "relax.json", "model.so", "built_for.json"
STATISTICS = {"number": 1, "repeat": 3, "min_repeat_ms": 10}
"""How a trial is timed: three times at least ten milliseconds, of which the median counts."""


def build(folder: Path, sizes: list[list[int]] | None = None, records: Path | None = None) -> None:
    """Compile ``relax.json`` in ``folder`` to ``model.so`` for this CPU, with the best of ``records`` if given."""
    tvm = _tvm.compiler()
    from tvm import relax

    target = _tvm.target()
    with target:
        module = _tvm.fixed(tvm.ir.load_json((folder / RELAX).read_text(encoding="utf-8")), sizes)
        shapes = [spec.shape for spec in _tvm.specs(module)[0]]
        programs, tuned = _tvm.lowered(module), 0
        if records is not None:
            programs, tuned = with_best(programs, database(records), target)
        programs = _tvm.scheduled(programs)
        library = tvm.compile(programs, target, relax_pipeline=relax.get_pipeline("default_build"))
        work = folder / "work"
        work.mkdir()
        library.export_library(str(folder / LIBRARY), workspace_dir=str(work))
    for leftover in work.iterdir():
        leftover.unlink()
    work.rmdir()
    built = {
        "target": str(target),
        "architecture": machine.architecture(),
        "features": list(machine.features()),
        "tensor_programs": len(_tvm.tensor_programs(programs)),
        "tuned_programs": tuned,
        "shapes": shapes,
    }
    (folder / BUILT_FOR).write_text(json.dumps(built, indent=1) + "\n", encoding="utf-8")


def database(folder: Path) -> Any:
    """MetaSchedule's records in ``folder``: which schedule was tried for which program, and the seconds it took."""
    from tvm.s_tir.meta_schedule.database import JSONDatabase

    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.json"):
        whole = file.read_bytes().rpartition(b"\n")
        if whole[2]:  # what ended in the middle of a line left it unfinished
            file.write_bytes(b"".join(whole[:2]))
    return JSONDatabase(str(folder / "workloads.json"), str(folder / "records.json"))


def with_best(programs: Any, found: Any, target: Any) -> tuple[Any, int]:
    """Every tensor program with the fastest schedule recorded for it, and how many there were."""
    from tvm import IRModule

    changed, tuned = dict(programs.functions_items()), 0
    for variable, function in _tvm.tensor_programs(programs).items():
        best = found.query_schedule(IRModule({"main": function}), target, variable.name_hint)
        if best is not None:
            changed[variable] = best.mod["main"].with_attr("tirx.is_scheduled", True)
            tuned += 1
    return IRModule(changed, attrs=programs.attrs), tuned


def tune(folder: Path, sizes: list[list[int]], records: Path, trials: int, seconds: float) -> None:
    """Try schedules for the programs of ``relax.json`` until ``trials`` are on record or ``seconds`` are over.

    One line of JSON a trial: how many ``trials`` are on record, ``seconds`` since the start, the ``program``, its
    ``milliseconds`` (None if it failed), the ``total`` of all programs at their best, weighted by how often each is
    called.
    """
    os.environ["TVM_NUM_THREADS"] = "1"
    tvm = _tvm.compiler()
    _skip_gpu_intrinsics(tvm)
    target, start = _tvm.target(), time.monotonic()
    with target:
        module = tvm.ir.load_json((folder / RELAX).read_text(encoding="utf-8"))
        programs = _tvm.lowered(_tvm.fixed(module, sizes))
        tasks = _tasks(programs, database(records), target)
        done = sum(task.tried for task in tasks)
        for task in tasks:  # what the rule gives is the first trial of each
            if not task.tried and time.monotonic() - start < seconds:
                done += 1
                _tell(done, start, task, task.try_rule(), tasks)
        while done < trials and time.monotonic() - start < seconds:
            task = max(tasks, key=lambda task: task.promise)
            for candidate in task.candidates():
                if done < trials and time.monotonic() - start < seconds:
                    done += 1
                    _tell(done, start, task, task.try_one(candidate), tasks)
            if not any(task.promise for task in tasks):
                break


def _skip_gpu_intrinsics(tvm: Any) -> None:
    """MetaSchedule imports descriptions of every GPU's matrix instructions, which takes longer than many trials."""
    name = "tvm.s_tir.tensor_intrin"
    if name not in sys.modules:
        package = types.ModuleType(name)
        package.__path__ = [str(Path(tvm.__file__).parent / "s_tir" / "tensor_intrin")]
        sys.modules[name] = package
        importlib.import_module(f"{name}.{'x86' if machine.architecture() == 'x86_64' else 'arm_cpu'}")


def _tell(done: int, start: float, task: Task, took: float | None, tasks: list[Task]) -> None:
    known = [each.best * each.calls for each in tasks if each.best is not None]
    line = {
        "trials": done,
        "seconds": round(time.monotonic() - start, 3),
        "program": task.name,
        "milliseconds": None if took is None else took * 1e3,
        "total": sum(known) * 1e3 if len(known) == len(tasks) else None,
    }
    print(json.dumps(line), flush=True)


def _tasks(programs: Any, found: Any, target: Any) -> list[Task]:
    calls = _tvm.calls(programs)
    return [
        Task(variable.name_hint, function, calls.get(variable.name_hint, 1), found, target)
        for variable, function in _tvm.tensor_programs(programs).items()
    ]


class Task:
    """One tensor program to tune: its records, and where its next schedules come from."""

    AT_ONCE = 8

    def __init__(self, name: str, function: Any, calls: int, found: Any, target: Any) -> None:
        from tvm import IRModule

        self.name, self.calls, self.target, self.database = name, calls, target, found
        self.module = IRModule({"main": function.with_attr("global_symbol", "main")})
        self.workload = found.commit_workload(IRModule({"main": function}))
        costs = [_median(r.run_secs) for r in found.get_all_tuning_records() if r.workload.same_as(self.workload)]
        self.tried = len(costs)
        self.best = min((cost for cost in costs if cost is not None), default=None)
        self.fruitless = 0
        self._context: Any = None
        self._proposed: Any = None

    @property
    def promise(self) -> float:
        """What one may hope to save here: its share of the time, less after trials that brought nothing."""
        return 0.0 if self.best is None else self.best * self.calls * 0.7**self.fruitless

    def try_rule(self) -> float | None:
        """Time the schedule that the rule gives."""
        schedule = _tvm.schedule_by_rule(self.module["main"])
        return self._record(schedule)

    def try_one(self, candidate: Any) -> float | None:
        return self._record(candidate.sch)

    def candidates(self) -> list[Any]:
        """Some schedules that MetaSchedule's evolutionary search proposes; none if it has no more."""
        from tvm.s_tir import meta_schedule as ms

        if self._context is None:
            strategy = ms.search_strategy.EvolutionarySearch(
                population_size=12, init_min_unmeasured=8, genetic_num_iters=1
            )
            self._context = ms.TuneContext(
                self.module,
                target=self.target,
                space_generator="post-order-apply",
                search_strategy=strategy,
                task_name=self.name,
                num_threads=1,
                rand_state=1 + self.tried,
            ).clone()
            self._context.pre_tuning(
                max_trials=1 << 20,
                num_trials_per_iter=self.AT_ONCE,
                database=self.database,
                cost_model=ms.cost_model.RandomModel(seed=1),
            )
        if self._proposed:  # it counts them only; what they took it reads in the database
            done = ms.runner.RunnerResult([1.0], None)
            self._context.notify_runner_results(self._proposed, [done] * len(self._proposed))
        self._proposed = self._context.generate_measure_candidates()
        self.fruitless = self.fruitless + 1 if self._proposed else 10_000
        return list(self._proposed or ())

    def _record(self, schedule: Any) -> float | None:
        from tvm.s_tir import meta_schedule as ms

        try:
            took = _timed(schedule.mod, self.target)
        except Exception:  # a schedule that the compiler refuses is a trial that failed
            took = []
        self.tried += 1
        self.database.commit_tuning_record(
            ms.database.TuningRecord(schedule.trace, self.workload, took or [1e10], self.target)
        )
        cost = _median(took)
        if cost is not None and (self.best is None or cost < 0.98 * self.best):
            self.fruitless = 0
        if cost is not None:
            self.best = cost if self.best is None else min(self.best, cost)
        return cost


def _median(seconds: Any) -> float | None:
    ordered = sorted(float(each) for each in seconds or ())
    middle = ordered[len(ordered) // 2] if ordered else None
    return None if middle is None or middle >= 1e9 else middle


def _timed(module: Any, target: Any) -> list[float]:
    """Seconds of some runs of a tensor program on made-up numbers."""
    import numpy as np
    import tvm
    from tvm.s_tir.transform import RemoveWeightLayoutRewriteBlock

    function = module["main"]
    library = tvm.compile(RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(module), target)
    rng = np.random.default_rng(0)
    tensors = [
        tvm.runtime.tensor(rng.random([int(size) for size in buffer.shape]).astype(str(buffer.dtype)))
        for buffer in function.params
    ]
    run = library.mod.time_evaluator("main", tvm.cpu(), **STATISTICS)
    return [float(seconds) for seconds in run(*tensors).results]


def main(arguments: list[str]) -> None:
    """``build FOLDER [SIZES RECORDS]`` or ``tune FOLDER SIZES RECORDS TRIALS SECONDS``; sizes are JSON."""
    command, folder, *rest = arguments
    if command == "build" and not rest:
        build(Path(folder))
    elif command == "build":
        build(Path(folder), json.loads(rest[0]), Path(rest[1]))
    else:
        tune(Path(folder), json.loads(rest[0]), Path(rest[1]), int(rest[2]), float(rest[3]))


if __name__ == "__main__":
    main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # nothing is left to do, and LLVM takes its time to leave
