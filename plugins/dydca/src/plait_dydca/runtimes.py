"""What executes the paths: PyTorch itself, its compilers, ONNX Runtime, OpenVINO, ExecuTorch. Card, section 6.

Every back-end builds one program for each path, which serves all batches and sizes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import DydcaError
from .network import RoutedNetwork
from .symbolic import analyse

__all__ = ["RUNTIMES", "Runtime", "available", "build", "difference", "random_shapes"]

Program = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Runtime:
    """The paths of a network, ready to run.

    Attributes:
        name: of the back-end.
        programs: one for each path: [b, 3, h, w] float32 to [b, 3, h scale, w scale], any b, h, w.
        artefacts: files of compiled paths, one for each; empty where nothing is written.
    """

    name: str
    programs: tuple[Program, ...]
    artefacts: tuple[Path, ...]

    def __call__(self, path: int, x: Tensor) -> Tensor:
        """A path's output."""
        return self.programs[path](x)


def eager(path: nn.Module, file: Path) -> Program:
    """PyTorch operator by operator, channels last."""
    network = path.to(memory_format=torch.channels_last)
    return lambda x: network(x.contiguous(memory_format=torch.channels_last))


def inductor(path: nn.Module, file: Path, backend: Any = "inductor") -> Program:
    """torch.compile with dynamic shapes, compiled by a first call of two patches."""
    compiled = torch.compile(path, dynamic=True, backend=backend)

    def run(x: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            out: Tensor = compiled(x)
            return out

    warm = torch.rand(2, 3, 12, 14)  # a batch of 1 would be specialised
    for axis in (0, 2, 3):
        torch._dynamo.mark_dynamic(warm, axis)
    run(warm)
    return run


def aoti(path: nn.Module, file: Path) -> Program:
    """AOTInductor: a package of compiled code for all shapes; needs a C++ compiler."""
    package = file.with_suffix(".pt2")
    torch._inductor.aoti_compile_and_package(analyse(path).program, package_path=str(package))
    loaded = torch._inductor.aoti_load_package(str(package))

    def run(x: Tensor) -> Tensor:
        out: Any = loaded(x.contiguous())
        result: Tensor = out[0] if isinstance(out, (tuple, list)) else out
        return result

    return run


def onnxruntime(path: nn.Module, file: Path) -> Program:
    """ONNX Runtime on the CPU, over an ONNX file with dynamic axes."""
    model = file.with_suffix(".onnx")
    program: Any = torch.onnx.export(analyse(path).program, dynamo=True, verbose=False)
    program.save(str(model), external_data=False)
    return onnx_session(model)


def onnx_session(model: Path) -> Program:
    """What executes an ONNX file."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 3
    session = ort.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: np.ascontiguousarray(x.numpy())})[0])


def openvino(path: nn.Module, file: Path) -> Program:
    """OpenVINO on the CPU, in float32."""
    import openvino as ov

    core = ov.Core()
    model = ov.convert_model(analyse(path).program)
    saved = file.with_suffix(".xml")
    ov.save_model(model, str(saved), compress_to_fp16=False)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(str(saved), "CPU", settings)
    return lambda x: torch.from_numpy(compiled([np.ascontiguousarray(x.numpy())])[0].copy())


def executorch(path: nn.Module, file: Path) -> Program:
    """ExecuTorch with XNNPACK, for batches up to 16 patches of 128x128."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime as Machine

    bounded = analyse(path, (16, 128, 128)).program  # its memory plan is for the largest shape
    program = to_edge_transform_and_lower(bounded, partitioner=[XnnpackPartitioner()]).to_executorch()
    saved = file.with_suffix(".pte")
    saved.write_bytes(program.buffer)
    method = Machine.get().load_program(saved).load_method("forward")
    return lambda x: method.execute([x.contiguous()])[0].clone()


RUNTIMES: dict[str, tuple[Callable[[nn.Module, Path], Program], tuple[str, ...]]] = {
    "eager": (eager, ()),
    "inductor": (inductor, ()),
    "aoti": (aoti, ()),
    "onnxruntime": (onnxruntime, ("onnxruntime", "onnx", "onnxscript")),
    "openvino": (openvino, ("openvino",)),
    "executorch": (executorch, ("executorch",)),
}
"""Back-end -> how it builds a path, and the packages that it needs, which its extra brings."""


def available() -> list[str]:
    """The back-ends whose packages are installed."""
    return [name for name, (_, packages) in RUNTIMES.items() if all(find_spec(p) is not None for p in packages)]


def build(name: str, network: RoutedNetwork, folder: Path | None = None) -> Runtime:
    """Build every path of a network for a back-end.

    Args:
        name: of `RUNTIMES`.
        network: its weight normalisation is folded in a copy.
        folder: where programs are written; default: a temporary one.

    Raises:
        DydcaError: an unknown back-end, one that is not installed (with the extra that brings it), or one that fails.
    """
    if name not in RUNTIMES:
        raise DydcaError(f"no runtime {name!r}; known: {', '.join(RUNTIMES)}.")
    builder, packages = RUNTIMES[name]
    if missing := [package for package in packages if find_spec(package) is None]:
        raise DydcaError(f"the runtime {name!r} needs {missing[0]}: pip install 'plait-dydca[{name}]'.")
    place = folder or Path(tempfile.mkdtemp(prefix="dydca-"))
    place.mkdir(parents=True, exist_ok=True)
    before = set(place.iterdir())
    try:
        with quiet():
            paths = enumerate(network.folded().cpu().paths)
            programs = tuple(builder(path, place / f"path-{number}") for number, path in paths)
    except DydcaError:
        raise
    except Exception as error:  # a compiler may raise anything
        line = str(error).strip().split("\n")[0] or type(error).__name__
        raise DydcaError(f"the runtime {name!r} cannot build the paths: {line}.") from error
    return Runtime(name, programs, tuple(sorted(set(place.iterdir()) - before)))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What compilers print and warn about is dropped; what they raise is not."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def random_shapes(count: int, seed: int = 0) -> list[tuple[int, int, int]]:
    """Batch, height and width, drawn from 1..4, 8..40 and 8..40."""
    random = np.random.default_rng(seed)
    drawn = zip(random.integers(1, 5, count), random.integers(8, 41, count), random.integers(8, 41, count), strict=True)
    return [(int(b), int(h), int(w)) for b, h, w in drawn]


@torch.no_grad()
def difference(runtime: Runtime, network: RoutedNetwork, shapes: Sequence[tuple[int, int, int]]) -> float:
    """The largest difference from PyTorch over all paths and shapes."""
    plain, generator, largest = network.folded().cpu(), torch.Generator().manual_seed(0), 0.0
    for batch, height, width in shapes:
        x = torch.rand(batch, 3, height, width, generator=generator)
        for number, path in enumerate(plain.paths):
            largest = max(largest, float((runtime(number, x) - path(x)).abs().max()))
    return largest
