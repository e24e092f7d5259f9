"""The door to ExecuTorch: a torch module becomes a program (``.pte``), and a program runs on arrays.

The only file that imports ``executorch``, an optional package (extra ``executorch``); its runtime also loads torch.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from operators.errors import Stop

if TYPE_CHECKING:
    import torch

INSTALL = "install it: make executorch, or pip install 'ruvllm[executorch]'"
FORWARD = "forward"
"""The method of a program that runs the network."""

_lock = threading.Lock()
_pool: dict[str, int] = {}


def installed() -> str:
    """The version of ExecuTorch that is installed. Raises ``Stop`` if there is none."""
    try:
        return importlib.metadata.version("executorch").partition("+")[0]
    except importlib.metadata.PackageNotFoundError as e:
        raise Stop("executorch", "the Python package 'executorch' is not installed", INSTALL) from e


class Program:
    """A loaded program; calls from several threads wait for each other.

    ``threads``: of XNNPACK's pool, which the whole process shares: the first program decides, 1 if it does not say.
    ``language`` also loads the operators that exported language models use.
    """

    def __init__(self, data: Path | bytes, who: str, *, threads: int = 0, language: bool = False) -> None:
        self._native, self._from_numpy = _runtime(threads, language)
        check = self._native.Verification.InternalConsistency
        self._data = data  # bytes are read where they are
        try:
            if isinstance(data, bytes):
                self._program = self._native._load_program_from_buffer(data, program_verification=check)
            else:
                self._program = self._native._load_program(str(data), program_verification=check)
            # A method does not keep its program alive.
            self._method = self._program.load_method(FORWARD)
        except RuntimeError as e:
            there = ", ".join(self._native._get_registered_backend_names())
            got = f"ExecuTorch {installed()} can't load it: {e}"
            raise Stop(who, got, f"export it with this version, for one of the backends here: {there}") from e
        self._methods = {self._program.get_method_name(i) for i in range(self._program.num_methods())}
        self._who, self._language = who, language
        self._running = threading.Lock()

    def anew(self, data: bytes) -> Program:
        """The same program from its bytes, with nothing remembered."""
        return Program(data, self._who, language=self._language)

    def forward(self, *inputs: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """The outputs of ``forward``, as new arrays. Raises ``Stop`` if it takes no such inputs."""
        tensors = [self._from_numpy(np.require(array, None, ["C", "W"])) for array in inputs]
        with self._running:
            try:
                return [output.numpy() for output in self._method(tensors)]
            except RuntimeError as e:
                shapes = ", ".join(f"{array.dtype}{list(array.shape)}" for array in inputs)
                raise Stop(self._who, f"ExecuTorch refused {shapes}: {e}", "export the program anew") from e

    def constant(self, name: str) -> Any:
        """What the method ``name``, which takes no inputs, returns: a number or a list; ``None`` if there is none."""
        if name not in self._methods:
            return None
        found = self._program.load_method(name)([])
        return found[0] if len(found) == 1 else list(found)

    def state(self, name: str) -> npt.NDArray[Any] | None:
        """The buffer ``name`` that ``forward`` changes, as a view of it; ``None`` if the export kept no such name."""
        try:
            found: npt.NDArray[Any] = self._method.get_attribute(name).numpy()
        except RuntimeError:
            return None
        return found


def _runtime(threads: int, language: bool) -> tuple[Any, Any]:
    """ExecuTorch's native module and ``torch.from_numpy``.

    Not ``executorch.runtime``, the same with a coat on: it imports the exporter as well, seconds and 200 MB.
    """
    try:
        import torch
        from executorch.extension.pybindings import _C
    except ImportError as e:
        raise Stop("executorch", f"the Python package 'executorch' can't be imported: {e}", INSTALL) from e
    with _lock:
        if "threads" not in _pool:
            # The only door to the thread count, and unsafe while a program runs: so before the first one is loaded.
            _C._unsafe_reset_threadpool(threads or 1)
            _pool["threads"] = threads or 1
        if language and "language" not in _pool:
            # Libraries register what they have; the packages around them import torch's compiler as well.
            for package in ("executorch.extension.llm.custom_ops", "executorch.kernels.quantized"):
                found = importlib.util.find_spec(package)
                for place in (found and found.submodule_search_locations) or []:
                    for library in Path(place).glob("*_aot_lib.*"):
                        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
            _pool["language"] = 1
    return _C, torch.from_numpy


def lower(module: torch.nn.Module, example: tuple[torch.Tensor, ...], varies: Any = None) -> bytes:
    """``module`` as a program for XNNPACK; what that can't run, ExecuTorch's own kernels do.

    ``example`` are inputs of the module; ``varies`` says which of their axes have no fixed length, as ``torch.export``
    takes it. Takes seconds to a minute, and is loud.
    """
    try:
        import torch
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    except ImportError as e:
        raise Stop("executorch", f"the Python package 'executorch' can't be imported: {e}", INSTALL) from e
    with torch.no_grad(), warnings.catch_warnings():
        # Of torch, by its own exporter.
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        program = torch.export.export(module, example, dynamic_shapes=varies, strict=True)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        made: bytes = lowered.to_executorch().buffer
    return made
