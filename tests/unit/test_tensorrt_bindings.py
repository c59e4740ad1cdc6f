"""Every TensorRT and CUDA name that the adapter and lab 27 use, looked up in NVIDIA's own files of several versions.

``python tools/tensorrt_api.py`` prints the list.
"""

from __future__ import annotations

import ctypes
import json
import re
import textwrap
from pathlib import Path

import pytest

import tensorrt_api
from deploylab.engines import _cuda
from deploylab.errors import EngineError

VERSIONS = tensorrt_api.VERSIONS


@pytest.fixture(scope="module")
def apis() -> dict[str, tensorrt_api.Api]:
    return {version: tensorrt_api.read(version) for version in VERSIONS if not tensorrt_api.why_not(version)}


@pytest.fixture
def api(request, apis) -> tensorrt_api.Api:
    if problem := tensorrt_api.why_not(request.param):
        pytest.skip(problem)
    return apis[request.param]


each_version = pytest.mark.parametrize("api", VERSIONS, indirect=True)


@each_version
class TestOurSource:
    def test_every_name_and_call_of_the_adapter_is_in_the_bindings(self, api):
        found = tensorrt_api.used_names([api])["adapter"][api.version]
        assert not found.problems
        assert {"Builder.create_network", "OnnxParser.parse_from_file", "BuilderFlag.TF32"} <= found.names
        assert len(found.names) > 50

    def test_every_name_and_call_of_the_lab_is_in_the_bindings(self, api):
        by_source = tensorrt_api.used_names([api])
        labs = {source: found for source, found in by_source.items() if source.startswith("lab 27")}
        assert labs
        for source, by_version in labs.items():
            for found in by_version.values():
                assert not found.problems, source
                assert found.names, source

    def test_the_record_that_the_lab_reads_says_the_same(self, api):
        stored = json.loads(tensorrt_api.RECORD.read_text(encoding="utf-8"))
        column = stored["versions"].index(api.version)
        have = {name for name, digits in stored["names"].items() if digits[column] == "1"}
        assert have == {name for name in api.names() if not name.endswith(".__init__")}


def test_code_for_older_versions_uses_what_some_version_has(apis):
    """What no version here reaches (TensorRT 8.0 to 8.4) is in the bindings of 8.6, which still have it."""
    if "8.6" not in apis:
        pytest.skip(tensorrt_api.why_not("8.6"))
    found = tensorrt_api.used_names(apis.values())["adapter"].values()
    reached = set().union(*(each.names for each in found))
    older = set().union(*(each.dead for each in found)) - reached
    assert {"IExecutionContext.execute_async_v2", "ICudaEngine.num_bindings"} <= older
    assert older <= apis["8.6"].names()


class TestTheCheckItself:
    """It must find what is planted; one sentence of what is wrong for each."""

    PLANTED = (
        ("config.set_flags(1)", "has no IBuilderConfig.set_flags"),
        ("config.set_flag(trt.BuilderFlag.FP17)", "has no BuilderFlag.FP17"),
        ("config.set_flag(trt.MemoryPoolType.WORKSPACE)", "IBuilderConfig.set_flag takes (flag: BuilderFlag)"),
        ("config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE)", "takes (pool: MemoryPoolType, pool_size: int)"),
        ("config.set_memory_pool_limit(pool=trt.MemoryPoolType.WORKSPACE, size=1)", "takes (pool: MemoryPoolType"),
        ("config.num_optimization_profiles = 3", "IBuilderConfig.num_optimization_profiles cannot be set"),
        ("builder.create_builder_config().set_flog(1)", "has no IBuilderConfig.set_flog"),
        (
            "profile = builder.create_optimization_profile(); profile.set_shape('x', 1, 2)",
            "set_shape takes (input: str",
        ),
        ("unheard_of().get_tensor_shape('x')", "looks like TensorRT's, but the type before it is not known"),
        ("[x.log('a') for x in [parser.get_error(i) for i in range(3)]]", "has no ParserError.log"),
        ("trt.Builder()", "Builder.__init__ takes (logger: ILogger)"),
        ("trt.Build(log)", "has no Build"),
        ("trt.OnnxParser(builder, log)", "OnnxParser.__init__ takes (network: INetworkDefinition"),
    )

    @pytest.mark.parametrize(("line", "problem"), PLANTED)
    def test_a_planted_mistake_is_found(self, apis, line, problem):
        found = tensorrt_api.check(self.around(line), self.newest(apis))
        assert len(found.problems) == 1
        assert problem in found.problems[0]

    def test_conditions_on_the_api_are_decided_by_version(self, apis):
        lines = """
        if hasattr(trt.BuilderFlag, "FP16"):
            config.set_flag(trt.BuilderFlag.FP16)
        else:
            config.clear_flag(trt.BuilderFlag.TF32)
        """
        for version, api in apis.items():
            found = tensorrt_api.check(self.around(textwrap.dedent(lines)), api)
            assert not found.problems
            weak = not version.startswith("11.")
            assert ("BuilderFlag.FP16" in found.names) == weak
            assert ("BuilderFlag.FP16" in found.dead) != weak

    def test_code_behind_a_return_is_not_reached(self, apis):
        source = """
        def flags(trt):
            if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
                return 0
            return trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH
        """
        found = tensorrt_api.check(textwrap.dedent(source), self.newest(apis))
        assert not found.problems
        assert "NetworkDefinitionCreationFlag.EXPLICIT_BATCH" in found.dead

    def newest(self, apis) -> tensorrt_api.Api:
        if not apis:
            pytest.skip(tensorrt_api.why_not(VERSIONS[-1]))
        return list(apis.values())[-1]

    def around(self, lines: str) -> str:
        start = """
        import tensorrt as trt
        log = trt.Logger(trt.Logger.WARNING)
        builder = trt.Builder(log)
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, log)
        config = builder.create_builder_config()
        """
        return textwrap.dedent(start) + lines + "\n"


class TestSignatures:
    def test_the_forms_that_pybind_writes(self):
        parse = tensorrt_api.Signature.parse
        one = parse(
            "f(self: tensorrt_bindings.tensorrt.A, a: typing.SupportsInt, b: List[int] = [1, 2], "
            "c: nvonnxparser::OnnxParserFlag = <F.X: 0>) -> List[tensorrt_bindings.tensorrt.Dims]"
        )
        assert [(p.name, p.type, p.required) for p in one.parameters] == [
            ("a", "int", True),
            ("b", "list[int]", False),
            ("c", "OnnxParserFlag", False),
        ]
        assert one.result == "list[Dims]"
        assert parse("(arg0: tensorrt_bindings.tensorrt.A) -> int").parameters == ()

    def test_versions_named_in_a_comment(self):
        assert tensorrt_api.versions_of("# TensorRT 8.6: by number") == ["8.6"]
        assert tensorrt_api.versions_of("# TensorRT 10 and 11: by name") == ["10.0", "10.3", "10.16", "11.0", "11.4"]


# ---------------------------------------------------------------------------------------------------------------------
# CUDA: the runtime library and its header, as NVIDIA's packages hold them

CUDA_VERSIONS = ("8.6", "10.3", "11.4")  # the environments that hold CUDA 11.8, 12.9 and 13.5
KINDS = {ctypes.c_int: "int", ctypes.c_uint: "unsigned", ctypes.c_size_t: "wide", ctypes.c_ulonglong: "wide"}
HANDLES = ("cudaStream_t", "cudaEvent_t", "cudaGraph_t", "cudaGraphExec_t")


def cuda_file(version: str, pattern: str) -> Path:
    if problem := tensorrt_api.why_not(version):
        pytest.skip(problem)
    return next((tensorrt_api.site_packages(version) / "nvidia").glob(pattern))


def c_kind(parameter: str) -> str:
    words = parameter.split("__dv")[0]
    if "*" in words or any(handle in words for handle in HANDLES):
        return "pointer"
    if "unsigned long long" in words or "size_t" in words:
        return "wide"
    return "unsigned" if "unsigned int" in words else "int"  # an enum is an int


@pytest.mark.parametrize("version", CUDA_VERSIONS)
class TestCuda:
    def test_every_function_is_in_the_library(self, version):
        library = ctypes.CDLL(str(cuda_file(version, "*/lib/libcudart.so.*")))
        for name in (*_cuda.PROTOTYPES, "cudaGetErrorName", "cudaGetErrorString"):
            assert hasattr(library, name), name

    def test_every_prototype_is_the_headers(self, version):
        header = cuda_file(version, "*/include/cuda_runtime_api.h").read_text(encoding="utf-8", errors="replace")
        for name, types in _cuda.PROTOTYPES.items():
            found = re.search(rf"cudaError_t CUDARTAPI {name}\(([^;]*)\);", header)
            assert found, name
            wanted = [c_kind(parameter) for parameter in re.sub(r"\([^()]*\)", "", found.group(1)).split(",")]
            assert [KINDS.get(kind, "pointer") for kind in types] == wanted, name

    def test_every_constant_is_the_headers(self, version):
        header = cuda_file(version, "*/include/driver_types.h").read_text(encoding="utf-8", errors="replace")
        ours = {
            "cudaMemcpyHostToDevice": _cuda._TO_DEVICE,
            "cudaMemcpyDeviceToHost": _cuda._TO_HOST,
            "cudaStreamCaptureModeThreadLocal": _cuda._THREAD_LOCAL,
            "cudaDevAttrComputeCapabilityMajor": _cuda._MAJOR,
            "cudaDevAttrComputeCapabilityMinor": _cuda._MINOR,
        }
        for name, value in ours.items():
            assert int(re.search(rf"\b{name}\s*=\s*(\d+)", header).group(1)) == value, name

    def test_the_real_library_answers_or_says_why_not(self, version):
        cuda = _cuda.Cuda(ctypes.CDLL(str(cuda_file(version, "*/lib/libcudart.so.*"))))
        if _cuda.has_gpu():
            assert cuda.device_count() >= 0
        else:
            with pytest.raises(EngineError, match=r"cudaGetDeviceCount failed: cudaError\w+ \(\d+\), \w+"):
                cuda.device_count()

    def test_the_adapter_finds_it_where_pip_puts_it(self, version, monkeypatch):
        library = cuda_file(version, "*/lib/libcudart.so.*")
        monkeypatch.syspath_prepend(str(tensorrt_api.site_packages(version)))
        assert str(library) in list(_cuda._candidates())
