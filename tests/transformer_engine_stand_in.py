"""Transformer Engine's real Python layer on a machine without a GPU, with a stand-in for its compiled part.

Modules construct, and their checkpoints are described, saved and loaded; whatever would start a kernel raises. Nothing
that comes out of it is a number: it shows what is built, not what is computed.

The real package lies in `.venv/te-stand-in` (tools/venv.sh), outside what other tests see, since megatron-core decides
at import whether there is a Transformer Engine, and one without its compiled part breaks that import. So this is for a
process of its own: `python -m pytest -p tests.transformer_engine_stand_in FILE` installs it before anything is
imported.
"""

import contextlib
import enum
import importlib
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import torch

PACKAGES = Path(sys.prefix) / "te-stand-in"
VERSION = "2.11.0"


class DType(enum.IntEnum):
    """The compiled part's number formats (its header `transformer_engine/transformer_engine.h`)."""

    kByte = 0
    kInt16 = 1
    kInt32 = 2
    kInt64 = 3
    kFloat32 = 4
    kFloat16 = 5
    kBFloat16 = 6
    kFloat8E4M3 = 7
    kFloat8E5M2 = 8
    kFloat8E8M0 = 9
    kFloat4E2M1 = 10


FP8FwdTensors = enum.IntEnum(
    "FP8FwdTensors", [f"GEMM{index}_{role}" for index in (1, 2, 3) for role in ("INPUT", "WEIGHT", "OUTPUT")], start=0
)
FP8BwdTensors = enum.IntEnum(
    "FP8BwdTensors", [f"GRAD_{role}{index}" for index in (1, 2, 3) for role in ("OUTPUT", "INPUT")], start=0
)


class _AnyMember(type):
    """Of an enumeration whose members are compared with each other only: each is its own name."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class FP8TensorMeta:
    """Scales and recent maxima of a module's tensors: a record that the Python layer fills."""

    scale = scale_inv = amax_history = None


class NeedsGpu(RuntimeError):
    """A kernel was called."""


class _CompiledPart(types.ModuleType):
    """The module `transformer_engine_torch`: enumerations as they are, versions as on an H100, functions that raise."""

    def __init__(self) -> None:
        super().__init__("transformer_engine_torch")
        self.__file__ = __file__
        for kind in (DType, FP8FwdTensors, FP8BwdTensors, FP8TensorMeta):
            setattr(self, kind.__name__, kind)
        for name in ("NVTE_Bias_Type", "NVTE_Mask_Type", "NVTE_Softmax_Type", "NVTE_QKV_Format", "NVTE_QKV_Layout"):
            setattr(self, name, _AnyMember(name, (), {}))
        for name in ("NVTE_Fused_Attn_Backend", "Float8BlockScaleTensorFormat"):
            setattr(self, name, _AnyMember(name, (), {}))
        for name in ("CommOverlapType", "CommOverlapAlgo", "CommOverlap", "CommOverlapP2P", "CommOverlapHelper"):
            setattr(self, name, _AnyMember(name, (), {}))
        self.get_cublasLt_version = lambda: 130100
        self.get_cudnn_version = lambda: 91400
        self.get_num_cublas_streams = lambda: 4

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def kernel(*_: Any, **__: Any) -> Any:
            raise NeedsGpu(f"transformer_engine_torch.{name} needs a GPU")

        setattr(self, name, kernel)
        return kernel


class _Anything:
    """Decorates, is called, indexed and asked for attributes, and does nothing: enough for what imports touch."""

    def __call__(self, *args: Any, **_: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()

    def __getitem__(self, _: Any) -> Any:
        return _Anything()


class _Compiler(types.ModuleType):
    """A package that makes kernels or graphs of functions, which none of the tests calls."""

    __version__ = "3.6.0"
    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()


class _H100:
    """What Transformer Engine reads of a device's properties."""

    major, minor = 9, 0
    multi_processor_count = 132
    name = "NVIDIA H100 (stand-in)"


@contextlib.contextmanager
def pretended_gpu() -> Iterator[None]:
    """PyTorch answers like a machine with one H100; for imports and construction only."""
    answers = {
        "is_available": True,
        "get_device_capability": (_H100.major, _H100.minor),
        "get_device_properties": _H100,
        "get_device_name": _H100.name,
        "is_current_stream_capturing": False,
        "current_device": torch.device("cpu"),
    }
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, lambda *_, _answer=answer, **__: _answer))
        stack.enter_context(mock.patch.object(torch.version, "cuda", "13.0"))
        yield


def install() -> None:
    """Makes `import transformer_engine.pytorch` give the real Python layer in this process.

    Raises:
        RuntimeError: megatron-core is imported already, and has decided that there is none.
    """
    if "megatron.core" in sys.modules:
        raise RuntimeError("install the stand-in before megatron-core is imported")
    # torch must have found out that there is no triton before it meets the stand-in for it
    importlib.import_module("torch.utils._triton").has_triton_package()
    importlib.import_module("torch._inductor.runtime.triton_compat")
    for name in ("triton", "triton.language", "triton.language.core", "triton.language.standard", "onnx", "onnxscript"):
        sys.modules[name] = _Compiler(name)
    sys.path.insert(0, str(PACKAGES))
    # the package's own switch for "do not load the CUDA libraries"
    os.environ["NVTE_PROJECT_BUILDING"] = "1"
    sys.modules["transformer_engine_torch"] = _CompiledPart()
    with pretended_gpu():
        common = importlib.import_module("transformer_engine.common")
        common.load_framework_extension = lambda _: None  # type: ignore[attr-defined]
        importlib.import_module("transformer_engine.pytorch")
        # decide now, while there seems to be a GPU
        importlib.import_module("megatron.core.extensions.transformer_engine")
        importlib.import_module("megatron.core.optimizer")


def pytest_configure() -> None:
    """As pytest's plugin (`-p`): before any test module is imported."""
    install()
