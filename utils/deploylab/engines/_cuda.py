"""The little of the CUDA runtime that an engine on an NVIDIA GPU needs, through ctypes.

NVIDIA's own library is all it takes, on a Jetson as on a server; no Python package wraps it here. Names and signatures:
https://docs.nvidia.com/cuda/cuda-runtime-api. Every call into the library releases Python's global lock.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import sys
from collections.abc import Callable, Iterator
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from deploylab.errors import EngineError

LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so.10.2", "libcudart.so")
"""Names of the CUDA runtime library, of CUDA 13 to 10.2 (JetPack 4)."""

DEVICES = ("/dev/nvidia0", "/dev/nvhost-gpu", "/dev/nvmap", "/dev/dxg")
"""What the driver shows where there is a GPU: a card, a Jetson (two names), Windows' Linux subsystem."""

PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "cudaGetDeviceCount": (POINTER(c_int),),
    "cudaDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cudaGetDeviceProperties": (c_void_p, c_int),
    "cudaRuntimeGetVersion": (POINTER(c_int),),
    "cudaMalloc": (POINTER(c_void_p), c_size_t),
    "cudaFree": (c_void_p,),
    "cudaHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cudaFreeHost": (c_void_p,),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaStreamCreate": (POINTER(c_void_p),),
    "cudaStreamSynchronize": (c_void_p,),
    "cudaStreamDestroy": (c_void_p,),
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cudaGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),  # since CUDA 11.4
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaGraphExecDestroy": (c_void_p,),
    "cudaGraphDestroy": (c_void_p,),
    "cudaEventCreate": (POINTER(c_void_p),),
    "cudaEventRecord": (c_void_p, c_void_p),
    "cudaEventSynchronize": (c_void_p,),
    "cudaEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cudaEventDestroy": (c_void_p,),
}
"""Argument types of each function used; all of them return an error number."""

_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyKind
_THREAD_LOCAL = 1  # cudaStreamCaptureMode: other threads of this process may go on using CUDA meanwhile
_MAJOR, _MINOR = 75, 76  # cudaDeviceAttr: compute capability
_PROPERTIES_BYTES = 1 << 14  # larger than any version's cudaDeviceProp, whose first 256 bytes are the name


def has_gpu() -> bool:
    """Whether the driver shows a GPU."""
    return any(Path(device).exists() for device in DEVICES)


def missing() -> str:
    """Why CUDA cannot be used here, or an empty text. Does not start CUDA: that takes long and needs GPU memory."""
    if sys.platform != "linux":
        return "CUDA is looked for on Linux only"
    if not has_gpu():
        return "this machine has no NVIDIA GPU"
    try:
        library()
    except EngineError as error:
        return str(error)
    return ""


@cache
def runtime() -> Cuda:
    """The CUDA runtime of this process. Raises :class:`EngineError` naming what is missing."""
    problem = missing()
    if problem:
        raise EngineError(f"CUDA cannot be used: {problem}")
    cuda = Cuda(library())
    if not cuda.device_count():
        raise EngineError("CUDA finds no GPU; is it hidden by CUDA_VISIBLE_DEVICES?")
    return cuda


@cache
def library() -> ctypes.CDLL:
    """The CUDA runtime library, the newest there is. Raises :class:`EngineError` if there is none."""
    for path in _candidates():
        with contextlib.suppress(OSError):
            return ctypes.CDLL(path)
    raise EngineError(f"the CUDA runtime library is missing: {', '.join(LIBRARIES)}")


def _candidates() -> Iterator[str]:
    """Where CUDA's runtime may lie: on the loader's path, in NVIDIA's Python packages, in the CUDA toolkit."""
    packages = [str(Path(folder) / "nvidia") for folder in sys.path]
    for name in LIBRARIES:
        yield name
        for pattern in (*(f"{folder}/*/lib/{name}" for folder in packages), f"/usr/local/cuda*/lib64/{name}"):
            yield from glob.glob(pattern)


class Cuda:
    """The runtime library with its prototypes set; a call that fails raises :class:`EngineError` naming it."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.cudaGetErrorName.restype = c_char_p
        library.cudaGetErrorName.argtypes = (c_int,)
        library.cudaGetErrorString.restype = c_char_p
        library.cudaGetErrorString.argtypes = (c_int,)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of :data:`PROTOTYPES`. Raises :class:`EngineError` if the library lacks it or it fails."""
        try:
            function = getattr(self._library, name)
        except AttributeError as error:
            raise EngineError(f"this CUDA runtime has no {name}; a newer CUDA is needed") from error
        function.argtypes, function.restype = PROTOTYPES[name], c_int
        code = function(*arguments)
        if code:
            told = self._library.cudaGetErrorString(code).decode(errors="replace")
            raise EngineError(f"{name} failed: {self._library.cudaGetErrorName(code).decode()} ({code}), {told}")

    def device_count(self) -> int:
        count = c_int()
        self.call("cudaGetDeviceCount", byref(count))
        return count.value

    def describe(self) -> dict[str, str]:
        """Name and compute capability of the first GPU, and the version of the CUDA runtime."""
        major, minor, version = c_int(), c_int(), c_int()
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        self.call("cudaDeviceGetAttribute", byref(major), _MAJOR, 0)
        self.call("cudaDeviceGetAttribute", byref(minor), _MINOR, 0)
        self.call("cudaGetDeviceProperties", properties, 0)
        self.call("cudaRuntimeGetVersion", byref(version))
        return {
            "gpu": properties.value[:256].decode(errors="replace"),
            "compute_capability": f"{major.value}.{minor.value}",
            "cuda": f"{version.value // 1000}.{version.value % 1000 // 10}",
        }

    def created(self, name: str, *arguments: Any) -> c_void_p:
        """What a function that fills its first argument with a new pointer made."""
        pointer = c_void_p()
        self.call(name, byref(pointer), *arguments)
        return pointer


class Stream:
    """A queue of work for the GPU. What is put into it returns at once; only :meth:`synchronize` waits."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._pointer = cuda.created("cudaStreamCreate")

    @property
    def handle(self) -> int:
        """The pointer as a number, as TensorRT takes it."""
        return self._pointer.value or 0

    def to_device(self, memory: Memory, size: int) -> None:
        """Queue the copy of the first ``size`` bytes of ``memory`` to the GPU."""
        self._cuda.call("cudaMemcpyAsync", memory.device, memory.host, size, _TO_DEVICE, self._pointer)

    def to_host(self, memory: Memory, size: int) -> None:
        """Queue the copy of ``size`` bytes back."""
        self._cuda.call("cudaMemcpyAsync", memory.host, memory.device, size, _TO_HOST, self._pointer)

    def synchronize(self) -> None:
        """Wait until the GPU has done all that was queued; an error of that work is raised here."""
        self._cuda.call("cudaStreamSynchronize", self._pointer)

    def captured(self, work: Callable[[], None]) -> Graph:
        """Record what ``work`` queues, without running it, as a graph that one call launches."""
        graph = c_void_p()
        self._cuda.call("cudaStreamBeginCapture", self._pointer, _THREAD_LOCAL)
        try:
            work()
        finally:  # a stream that is left capturing is of no use any more
            self._cuda.call("cudaStreamEndCapture", self._pointer, byref(graph))
        return Graph(self._cuda, graph, self._pointer)

    def timed(self, work: Callable[[], None]) -> float:
        """Milliseconds the GPU spends between two marks around what ``work`` queues; waits for the end."""
        first, last = (self._cuda.created("cudaEventCreate") for _ in range(2))
        elapsed = c_float()
        try:
            self._cuda.call("cudaEventRecord", first, self._pointer)
            work()
            self._cuda.call("cudaEventRecord", last, self._pointer)
            self._cuda.call("cudaEventSynchronize", last)
            self._cuda.call("cudaEventElapsedTime", byref(elapsed), first, last)
        finally:
            for event in (first, last):
                self._cuda.call("cudaEventDestroy", event)
        return elapsed.value

    def close(self) -> None:
        if self._pointer:
            self._cuda.call("cudaStreamDestroy", self._pointer)
            self._pointer = c_void_p()


class Graph:
    """Recorded GPU work. :meth:`launch` queues all of it at once."""

    def __init__(self, cuda: Cuda, graph: c_void_p, stream: c_void_p) -> None:
        self._cuda, self._stream = cuda, stream
        try:
            self._pointer = cuda.created("cudaGraphInstantiateWithFlags", graph, 0)
        finally:
            cuda.call("cudaGraphDestroy", graph)

    def launch(self) -> None:
        self._cuda.call("cudaGraphLaunch", self._pointer, self._stream)

    def close(self) -> None:
        if self._pointer:
            self._cuda.call("cudaGraphExecDestroy", self._pointer)
            self._pointer = c_void_p()


class Memory:
    """``size`` bytes on the GPU, and as many in page-locked host memory, which the GPU copies from and to directly."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        self._cuda, self.size = cuda, max(size, 1)
        self.device = cuda.created("cudaMalloc", self.size)
        try:
            self.host = cuda.created("cudaHostAlloc", self.size, 0)
        except EngineError:
            cuda.call("cudaFree", self.device)
            raise

    def view(self, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        """The beginning of the host memory as an array; it dies with this object."""
        count = int(np.prod(shape, dtype=np.int64))
        raw = (ctypes.c_byte * self.size).from_address(self.host.value)
        return np.frombuffer(raw, dtype=dtype, count=count).reshape(shape)

    def close(self) -> None:
        if self.device:
            self._cuda.call("cudaFree", self.device)
            self._cuda.call("cudaFreeHost", self.host)
            self.device = self.host = c_void_p()
