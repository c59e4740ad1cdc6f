"""The same service over several replicas and machines, with Ray Serve.

A replica is a process that holds the whole application of :mod:`deploylab.serving.app` over its own predictor, so an
address answers as it does on one machine. Ray adds what one machine does not need: it starts replicas where there is
room, shares the requests out among them, asks after their health, replaces the dead, and scales with the load.

:func:`serve` runs a cluster of one machine, closed to the outside. For a real one give ``cluster.yaml`` beside this
file to Ray's own command: ``serve deploy cluster.yaml``.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploylab import machine
from deploylab.errors import InputError, ServerError
from deploylab.serving import artifacts, background, leftovers, proxy
from deploylab.serving.asgi import AsgiApp
from deploylab.serving.batcher import Direct, QueueFull
from deploylab.serving.limits import Limits
from deploylab.serving.predictor import Predictor

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.schema import ServeDeploySchema

CONFIG = Path(__file__).with_name("cluster.yaml")
DEPLOYMENT = "predictor"
LOOPBACK = "127.0.0.1"
HEALTH_TIMEOUT_S = 5.0
READY_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 20.0

_SESSION = "deploylab-ray-"
_FOLDER = "DEPLOYLAB_RAY_FOLDER"
_STARTS = 2  # Ray gives up after 30 s, which a busy machine may need
_OBJECT_STORE_BYTES = 100 * 2**20  # pictures do not pass through it
_LEFT_OUT = ("pandas", "rfc3987_syntax")
"""Packages that Ray and its dependencies import where they find them: most of the time a process takes to start."""
_LONGEST_TEMP = 40  # Ray puts sockets below it, whose paths may have 107 bytes


@dataclass(frozen=True)
class Settings:
    """What a replica loads: ``args`` of an application in the config file.

    ``threads`` intra-op threads, so many CPUs should ``num_cpus`` reserve. ``batch`` > 1 lets Ray join up to that many
    waiting requests of one replica, for at most ``max_wait_ms``. ``timeout_s`` for a request in the replica.
    """

    model: str = "signnet"
    engine: str = "onnxruntime"
    threads: int = 1
    batch: int = 1
    max_wait_ms: float = 2.0
    timeout_s: float = 10.0

    @classmethod
    def read(cls, args: Mapping[str, Any]) -> Settings:
        """Raises :class:`InputError` for an unknown key or a value that is not positive."""
        known = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        for key, value in args.items():
            if key not in known:
                raise InputError(f"args has no {key!r}; there are {', '.join(known)}")
            least = 0 if key == "max_wait_ms" else 1e-9
            fits = isinstance(value, str) if known[key] is str else type(value) in (int, known[key]) and value >= least
            if not fits:
                raise InputError(
                    f"args.{key} must be a {'text' if known[key] is str else 'positive number'}, got {value!r}"
                )
        return cls(**args)


def application(args: dict[str, Any]) -> Application:
    """What ``import_path`` in the config file names: the application for Ray Serve. ``args`` as :class:`Settings`."""
    from ray import serve

    deployment = serve.deployment(name=DEPLOYMENT)(serve.ingress()(Replica))
    return deployment.bind(Settings.read(args))


def middlewares() -> list[Any]:
    """What Ray's proxies put before the application; Ray calls this where its environment variable says so."""
    from starlette.middleware import Middleware

    found = [Middleware(proxy.RetryOnDeath, max_bytes=Limits().max_bytes)]
    if _FOLDER in os.environ:
        found.append(Middleware(proxy.Gate, folder=Path(os.environ[_FOLDER])))
    return found


class Replica:
    """One copy of the service. Ray calls these methods; HTTP requests go to the ASGI application."""

    def __init__(self, settings: Settings) -> None:
        _keep_to_loopback()
        self._settings = settings
        self._limits = Limits(timeout_s=settings.timeout_s)
        self._single = Predictor.load(settings.model, settings.engine, settings.threads, limits=self._limits)

    async def __serve_build_asgi_app__(self) -> AsgiApp:
        from deploylab.serving.app import create_app

        self._predictor = await asyncio.to_thread(self._batching, asyncio.get_running_loop())
        return AsgiApp(create_app(self._predictor, limits=self._limits), max_bytes=self._limits.max_bytes)

    async def check_health(self) -> None:
        """Run the model once. An exception tells Ray that this replica must be replaced."""
        example = np.zeros((1, *self._single.input_shape), np.float32)
        with contextlib.suppress(QueueFull):  # busy is not ill
            await asyncio.to_thread(self._single.logits, example, timeout_s=HEALTH_TIMEOUT_S)

    def _batching(self, loop: asyncio.AbstractEventLoop) -> Predictor:
        """The predictor whose engine is fed by ``serve.batch``, or the plain one."""
        single = self._single
        if self._settings.batch == 1:
            return single
        queue = Direct(
            _joined_by_ray(single.queue, loop, self._settings),
            max_queue=self._limits.max_queue,
            parallel=self._limits.max_queue,
        )
        facts = single.facts | {"max_batch": self._settings.batch, "batcher": "ray.serve.batch"}
        return Predictor(queue, single.preprocess, single.labels, name=single.name, facts=facts, limits=self._limits)


def _joined_by_ray(
    run: Callable[[np.ndarray], np.ndarray], loop: asyncio.AbstractEventLoop, settings: Settings
) -> Callable[[np.ndarray], np.ndarray]:
    """``run`` for calls from many threads, which Ray's batcher on ``loop`` joins."""
    from ray import serve

    @serve.batch(max_batch_size=settings.batch, batch_wait_timeout_s=settings.max_wait_ms / 1000)
    async def together(arrays: list[np.ndarray]) -> list[np.ndarray | Exception]:
        return await asyncio.to_thread(_run_joined, run, arrays)

    def run_one(x: np.ndarray) -> np.ndarray:
        outcome = asyncio.run_coroutine_threadsafe(together(x), loop).result()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return run_one


def _run_joined(run: Callable[[np.ndarray], np.ndarray], arrays: list[np.ndarray]) -> list[np.ndarray | Exception]:
    """The rows of each array, or the error it causes alone."""
    try:
        rows = run(np.concatenate(arrays))
    except Exception as error:
        return [error] if len(arrays) == 1 else [_run_joined(run, [array])[0] for array in arrays]
    return np.split(rows, np.cumsum([len(array) for array in arrays])[:-1])


# ---------------------------------------------------------------------------------------------------------------------
# The config file


def read_config(path: Path = CONFIG) -> dict[str, Any]:
    """A config file as Ray's ``serve deploy`` takes it. Raises :class:`InputError` saying what Ray has against it."""
    import yaml

    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"cannot read the cluster's config file {path}: {error}") from error
    checked(config)
    return config


def checked(config: Any) -> ServeDeploySchema:
    """``config`` by Ray's own schema. Raises :class:`InputError`."""
    _import_ray()
    from ray.serve.schema import ServeDeploySchema

    try:
        schema = ServeDeploySchema.model_validate(config)
    except ValueError as error:
        raise InputError(f"not a config file of Ray Serve: {error}") from error
    _settings(schema)
    return schema


def _settings(schema: ServeDeploySchema) -> list[Settings]:
    """Of the applications that are ours."""
    ours = f"{__name__}:{application.__name__}"
    return [Settings.read(each.args) for each in schema.applications if each.import_path == ours]


def configured(
    config: Mapping[str, Any],
    *,
    host: str = LOOPBACK,
    port: int | None = None,
    replicas: int | None = None,
    **args: Any,
) -> dict[str, Any]:
    """A copy of ``config`` for this machine: its address, with ``replicas`` instead of autoscaling, with ``args``.

    ``port=0`` picks a free one, None keeps the file's. ``args`` as :class:`Settings`; None keeps the file's.
    """
    config = copy.deepcopy(dict(config))
    options = {**config.get("http_options", {}), "host": host}
    if port is not None:
        options["port"] = port or background.free_port()
    config["http_options"] = options
    given = {key: value for key, value in args.items() if value is not None}
    for each in config["applications"]:
        each["args"] = {**each.get("args", {}), **given}
        for deployment in each.get("deployments", ()):
            if replicas is not None:
                deployment.pop("autoscaling_config", None)
                deployment["num_replicas"] = replicas
            if "threads" in given:
                actor = deployment.get("ray_actor_options", {})
                deployment["ray_actor_options"] = {**actor, "num_cpus": given["threads"]}
    return config


# ---------------------------------------------------------------------------------------------------------------------
# A cluster of one machine


def serve(
    config: Mapping[str, Any],
    *,
    ready: Callable[[str], None] | None = None,
    stopped: threading.Event | None = None,
    ready_timeout_s: float = READY_TIMEOUT_S,
) -> None:
    """Start Ray on this machine, deploy ``config``, and serve until SIGTERM, Ctrl-C or ``stopped``.

    ``ready`` is called with the address once every application answers. Only loopback addresses are opened, except
    the one that ``http_options`` names. Nothing stays behind: no process, and no file outside ``build/``. Raises
    :class:`ServerError` if Ray does not start, a replica fails, or the replicas do not fit on this machine.
    """
    schema = checked(config)
    for settings in _settings(schema):
        artifacts.prepare(settings.model, settings.engine)  # once, and not in every replica
    options = schema.http_options
    stopped = stopped or threading.Event()
    with _ray() as folder, _ending(stopped):
        _deploy(schema)
        _wait_until_running(schema, stopped, ready_timeout_s)
        if ready and not stopped.is_set():
            ready(f"http://{options.host}:{options.port}")
        stopped.wait()
        _drain(folder, f"http://{options.host}:{options.port}")
        _stop_serving()


@contextlib.contextmanager
def _ray() -> Iterator[Path]:
    """Ray on this machine, for this process alone; the folder of its files."""
    ray, folder = _import_ray(), _session_folder()
    try:
        os.environ.update(_absent_in_children(_LEFT_OUT, folder))
        os.environ[_FOLDER] = str(folder)
        _start_ray(ray, folder)
        yield folder
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _start_ray(ray: Any, folder: Path) -> None:
    _start_fewer_processes()
    for attempt in range(_STARTS):
        try:
            ray.init(
                address="local",
                num_cpus=machine.usable_cores(),
                num_gpus=0,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level="ERROR",
                _temp_dir=str(folder),
            )
            return
        except Exception as error:  # Ray raises a bare one when its processes did not report within 30 s
            if attempt + 1 == _STARTS or "timed out" not in str(error):
                raise ServerError(f"Ray did not start: {error}") from error


def _start_fewer_processes() -> None:
    """Leave out what a cluster of one machine has no use for: adding machines, collecting logs, the web console.

    They take more time to start than all the rest.
    """
    from ray._private.node import Node

    for name in ("start_monitor", "start_log_monitor", "start_api_server"):
        setattr(Node, name, lambda *_, **__: None)


def _import_ray() -> Any:
    """Ray, told beforehand to stay on this machine: it reads its settings when it is imported."""
    if "ray" not in sys.modules:
        os.environ.update(_closed_to_others())
    try:
        with _absent(_LEFT_OUT):
            import ray
            import ray.serve
    except ImportError as error:
        raise ServerError(
            f"Ray Serve is not installed ({error}). Try: pip install -c constraints.txt -e '.[serving]'"
        ) from error
    return ray


@contextlib.contextmanager
def _absent(packages: Iterable[str]) -> Iterator[None]:
    """Let an import of these fail in this process, as if they were not installed."""
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def _absent_in_children(packages: Iterable[str], folder: Path) -> dict[str, str]:
    """Environment in which an import of these fails in the processes started from now on."""
    for name in packages:
        (folder / f"{name}.py").write_text("raise ImportError('left out to start faster')\n")
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(folder), *([before] if before else [])])}


def _closed_to_others() -> dict[str, str]:
    """Environment in which Ray talks to itself over the loopback interface only, with a secret, and to nobody else."""
    return {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's own switch for "the node's address is 127.0.0.1"
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),  # else Ray leaves one in the home folder
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}:{middlewares.__name__}",
    }


def _keep_to_loopback() -> None:
    """In a replica of a local cluster: bind its gRPC port, which takes pickles, to the loopback interface.

    Ray 2.60 binds it to every interface, whatever the node's address is.
    """
    import ray
    from ray.serve._private import replica

    if ray.util.get_node_ip_address() != LOOPBACK:
        return
    bind = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: bind(server, address.replace("[::]", LOOPBACK))


def _session_folder() -> Path:
    """A new folder for Ray's files, with a short path. Sweeps up those of processes that were killed."""
    parent = Path(tempfile.gettempdir())
    if len(str(parent)) > _LONGEST_TEMP:
        parent = Path("/tmp")
    leftovers.sweep(parent, _SESSION)
    return Path(tempfile.mkdtemp(prefix=f"{_SESSION}{os.getpid()}-", dir=parent))


@contextlib.contextmanager
def _ending(stopped: threading.Event) -> Iterator[None]:
    """Let SIGTERM and SIGINT set ``stopped``."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _deploy(schema: ServeDeploySchema) -> None:
    from ray import serve
    from ray.serve.context import _get_global_client

    serve.start(proxy_location=schema.proxy_location, http_options=schema.http_options.model_dump())
    _get_global_client().deploy_apps(schema)  # what Ray's command `serve run FILE` does


def _wait_until_running(schema: ServeDeploySchema, stopped: threading.Event, timeout_s: float) -> None:
    from ray import serve

    deadline = time.monotonic() + timeout_s
    while not stopped.wait(0.1):
        states = serve.status().applications
        failed = [state for state in states.values() if state.status in ("DEPLOY_FAILED", "UNHEALTHY")]
        if failed:
            raise ServerError(f"the application does not start: {_words(failed[0])}")
        if len(states) == len(schema.applications) and all(state.status == "RUNNING" for state in states.values()):
            return
        if time.monotonic() > deadline:
            told = "; ".join(map(_words, states.values())) or "Ray tells nothing"
            raise ServerError(
                f"the application is not ready after {timeout_s:g} s: {told}. This machine has "
                f"{machine.usable_cores()} usable cores; do the replicas ask for more?"
            )


def _words(state: Any) -> str:
    """What Ray says of an application and its deployments."""
    told = [state.message, *(f"{name}: {each.message}" for name, each in state.deployments.items())]
    return " ".join(part.strip() for part in told if part.strip())[-2000:] or str(state.status)


def _drain(folder: Path, url: str) -> None:
    """Let no request in any more, and wait for those inside."""
    closing, drained = proxy.closing_files(folder)
    closing.touch()
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while not drained.exists() and time.monotonic() < deadline:
        with contextlib.suppress(OSError):  # the refusal is an HTTPError, which is one
            urllib.request.urlopen(f"{url}/readyz", timeout=1)
        time.sleep(0.05)


def _stop_serving() -> None:
    from ray import serve

    serve.shutdown()
