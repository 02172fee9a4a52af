"""The C library: built by gcc and clang, against the engine, under sanitizers and valgrind."""

import ctypes
import os
import resource
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image

import engine
from engine.export import export
from engine.image import prepare
from tests.models import PHOTOS, VOC, exported
from tests.reference import agreement
from tests.tiny_cnn import photo_pixels, write_tiny_cnn

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
RUNTIME = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.1.*"), None)
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]
EXPECTED = "expected a whole bundle or single file, as python -m engine.export writes it"
SANITIZED = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g"

pytestmark = pytest.mark.skipif(
    RUNTIME is None or not shutil.which("cmake") or not COMPILERS, reason="needs cmake, and gcc or clang"
)


def build(source: Path, folder: Path, compiler: str, flags: str = "", *options: str) -> Path:
    settings = [
        f"-DCMAKE_C_COMPILER={compiler}",
        f"-DCMAKE_C_FLAGS=-Werror {flags}",
        "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
    ]
    run("cmake", "-S", source, "-B", folder, "-DADA_SISE_FIND_ONNXRUNTIME=OFF", *settings, *options)
    run("cmake", "--build", folder)
    return folder


def run(*command: object, **environment: str) -> str:
    words, variables = list(map(str, command)), {**os.environ, **environment}
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=900, env=variables)
    assert done.returncode == 0, f"{words[0]}: {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done.stdout


class Info(ctypes.Structure):
    _fields_ = [("takes_photos", ctypes.c_int), *((name, ctypes.c_int64) for name in ("channels", "height", "width"))]
    _fields_ += [("classes", ctypes.c_int64), ("layers", ctypes.c_int64)]


class Result(ctypes.Structure):
    _fields_ = [("target", ctypes.c_int64), ("class_score", ctypes.c_float), ("selected", ctypes.c_int64 * 16)]
    _fields_ += [("scored", ctypes.c_int64 * 16), ("milliseconds", ctypes.c_double), ("message", ctypes.c_char * 512)]


class Options(ctypes.Structure):
    _fields_ = [("onnxruntime", ctypes.c_char_p), ("threads", ctypes.c_int), ("use_cuda", ctypes.c_int)]
    _fields_ += [("cuda_device", ctypes.c_int)]


class Model:
    """A handle of the library."""

    def __init__(self, library: Path, path: Path, **options: object) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.ada_sise_label.restype = ctypes.c_char_p
        self.handle = ctypes.c_void_p()
        given = Options(**{"onnxruntime": str(RUNTIME).encode(), **options})
        self.code = self.library.ada_sise_open(str(path).encode(), ctypes.byref(given), ctypes.byref(self.handle))
        self.info = Info()
        if self.code == 0:
            self.library.ada_sise_get_info(self.handle, ctypes.byref(self.info))

    def error(self) -> str:
        text = ctypes.create_string_buffer(512)
        self.library.ada_sise_error(self.handle, text, ctypes.c_size_t(512))
        return text.value.decode()

    def label(self, target: int) -> str:
        return self.library.ada_sise_label(self.handle, ctypes.c_int64(target)).decode()

    def explain(
        self, image: NDArray[np.generic], target: int = -1, max_masks: int = 0
    ) -> tuple[NDArray[np.float32], Result]:
        heatmap, result = np.full((self.info.height, self.info.width), np.nan, np.float32), Result()
        data, place = (ctypes.c_void_p(array.ctypes.data) for array in (image, heatmap))
        asked = (ctypes.c_int64(target), ctypes.c_int64(max_masks), place, ctypes.c_size_t(heatmap.size))
        if image.dtype == np.uint8:
            sizes = map(ctypes.c_int64, image.shape[:2])
            code = self.library.ada_sise_explain_photo(self.handle, data, *sizes, *asked, ctypes.byref(result))
        else:
            count = ctypes.c_size_t(image.size)
            code = self.library.ada_sise_explain(self.handle, data, count, *asked, ctypes.byref(result))
        assert code == 0, f"code {code}: {result.message.decode()}"
        return heatmap, result

    def close(self) -> None:
        self.library.ada_sise_close(self.handle)


@pytest.fixture(scope="module", params=COMPILERS)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT / "native", tmp_path_factory.mktemp(request.param), request.param) / "libada_sise.so"


@pytest.fixture(scope="module")
def photo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    model, preprocess, labels = write_tiny_cnn(folder)
    file = folder / "photos.onnx"
    export(model, single_file=file, preprocess=preprocess, labels=labels, activation="softmax", embed_preprocess=True)
    return file


@pytest.fixture
def opened(library: Path) -> Iterator[type]:
    models: list[Model] = []

    def make(path: Path, **options: object) -> Model:
        models.append(Model(library, path, **options))
        return models[-1]

    yield make
    for model in models:
        model.close()


def check(heatmap: NDArray[np.float32], found: Result, result: engine.Explanation) -> None:
    views, cuts = list(result.visualization_maps), [layer.fusion_threshold for layer in result.layers]
    agreement.assert_heatmap(heatmap, result.heatmap, views, cuts)
    count = len(result.layers)
    assert found.target == result.target
    assert found.class_score == pytest.approx(result.class_score, abs=1e-6)
    assert found.selected[:count] == [layer.selected for layer in result.layers]
    assert found.scored[:count] == [layer.scored for layer in result.layers]
    assert 0 < found.milliseconds < 60_000


@pytest.mark.parametrize("target", [-1, 0, 4])
@pytest.mark.parametrize("max_masks", [0, 5])
def test_the_engines_heatmap(target: int, max_masks: int, tiny_bundle: Path, opened) -> None:
    model, explainer = opened(tiny_bundle), engine.load(tiny_bundle)
    bundle = explainer.bundle
    x = prepare(photo_pixels(), bundle.preprocess, bundle.image_shape).array
    asked = {"max_masks": max_masks or None, "visualization_maps": True}
    result = explainer.explain(x, None if target == -1 else target, **asked)
    check(*model.explain(x, target, max_masks), result)
    info = model.info
    assert (info.takes_photos, info.channels, info.height, info.width, info.classes, info.layers) == (
        0,
        3,
        24,
        32,
        5,
        3,
    )
    assert [model.label(k) for k in range(5)] == list(bundle.labels)
    assert model.error() == ""


def test_a_pretrained_network(assets: Path, tmp_path_factory: pytest.TempPathFactory, opened) -> None:
    explainer = exported(assets, "resnet50-thin-voc20", tmp_path_factory.getbasetemp()).explainer
    bundle = explainer.bundle
    x = prepare(assets / "images" / PHOTOS[VOC][0], bundle.preprocess, bundle.image_shape).array
    check(*opened(bundle.path, threads=2).explain(x), explainer.explain(x, visualization_maps=True))


def test_a_photo(photo_model: Path, tiny_bundle: Path, opened) -> None:
    heatmap, found = opened(photo_model).explain(photo_pixels(80, 99), 2)
    result = engine.load(tiny_bundle).explain(photo_pixels(80, 99), 2)
    assert found.scored[:3] == [layer.scored for layer in result.layers]
    assert np.abs(heatmap - result.heatmap).mean() < 0.02  # pixels differ by 1 of 255 here and there


def test_cuda_that_is_not_there(tiny_bundle: Path, opened) -> None:
    model = opened(tiny_bundle, use_cuda=1)
    assert model.code == 3
    assert model.error() == (
        "the CUDA provider: CUDA execution provider is not enabled in this build; use an ONNX Runtime that was "
        "built for CUDA, or set use_cuda to 0"
    )


def test_a_runtime_that_is_too_old(tiny_bundle: Path, tmp_path: Path, opened) -> None:
    """A library that offers what ONNX Runtime 1.25 does, which lacks kernels that the graphs call for."""
    (tmp_path / "old.c").write_text(
        "#include <dlfcn.h>\n"
        "#include <ort_abi.h>\n"
        "static const OrtApi *get(uint32_t version) {\n"
        f'    const OrtApiBase *(*base)(void) = dlsym(dlopen("{RUNTIME}", RTLD_NOW), "OrtGetApiBase");\n'
        "    return version <= 25 ? base()->GetApi(version) : NULL;\n"
        "}\n"
        'static const char *version(void) { return "1.25.0"; }\n'
        "static const OrtApiBase old = {get, version};\n"
        "const OrtApiBase *OrtGetApiBase(void) { return &old; }\n"
    )
    run(COMPILERS[0], "-shared", "-fPIC", f"-I{ROOT / 'native'}", tmp_path / "old.c", "-o", tmp_path / "old.so")
    model = opened(tiny_bundle, onnxruntime=str(tmp_path / "old.so").encode())
    assert (model.code, model.error()) == (3, "ONNX Runtime 1.25.0 is too old; expected 1.26 or newer")


def test_a_graph_that_is_no_explain_onnx(tiny_bundle: Path, opened) -> None:
    model = opened(tiny_bundle / "forward.onnx")
    assert model.code == 2
    assert model.error().endswith(f"is no explain.onnx; {EXPECTED}")


def test_a_long_path_leaves_room_for_the_reason(tmp_path: Path, opened) -> None:
    folder = tmp_path / ("€" * 80) / ("x" * 100) / ("€" * 80)
    folder.mkdir(parents=True)
    missing = opened(folder / "none.onnx").error()
    assert missing.startswith(str(tmp_path))
    assert missing.endswith(f"/none.onnx: cannot be opened: No such file or directory; {EXPECTED}")
    (folder / "noise.onnx").write_bytes(b"noise")
    assert opened(folder / "noise.onnx").error().endswith(f"/noise.onnx failed:Protobuf parsing failed; {EXPECTED}")
    runtime = str(folder / "libonnxruntime.so").encode()
    told = opened(folder, onnxruntime=runtime).error()
    assert told.endswith("No such file or directory; install it, or name its library in options")


def test_a_photo_that_memory_does_not_hold(photo_model: Path, opened) -> None:
    model, limits = opened(photo_model), resource.getrlimit(resource.RLIMIT_AS)
    photo = np.zeros((1, 20_000_000, 3), np.uint8)
    used_pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (used_pages * resource.getpagesize() + (1 << 28), limits[1]))
    try:
        with pytest.raises(AssertionError, match="code 5: ONNX Runtime: there is not enough memory; use a smaller"):
            model.explain(photo)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def with_open_sizes() -> onnx.ModelProto:
    """A graph with the names of explain.onnx, whose sizes nobody knows."""
    floats, whole = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    sizes = {"heatmap": 2, "target_index": 1, "class_score": 1, "logits": 2, "selected": 1, "scored": 1}
    nodes, outputs = [], []
    for name, axes in sizes.items():
        kind = whole if name in ("target_index", "selected", "scored") else floats
        source = "target" if kind == whole else "image"
        nodes.append(onnx.helper.make_node("Reshape", [source, f"shape{axes}"], [name]))
        outputs.append(onnx.helper.make_tensor_value_info(name, kind, [f"{name}{axis}" for axis in range(axes)]))
    shapes = [onnx.helper.make_node("Expand", ["max_masks", f"count{axes}"], [f"shape{axes}"]) for axes in (1, 2)]
    counts = [onnx.numpy_helper.from_array(np.array([axes]), f"count{axes}") for axes in (1, 2)]
    inputs = [onnx.helper.make_tensor_value_info("image", floats, [1, 3, 8, 8])]
    inputs += [onnx.helper.make_tensor_value_info(name, whole, [1]) for name in ("target", "max_masks")]
    graph = onnx.helper.make_graph([*shapes, *nodes], "open", inputs, outputs, counts)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)


def exercised(folder: Path, tiny_bundle: Path, photo_model: Path, opens: int, threads: int, calls: int) -> list[object]:
    """Return the arguments of `exercise`, whose files are made."""
    bundle = engine.load(tiny_bundle, tune=False).bundle
    x = prepare(photo_pixels(), bundle.preprocess, bundle.image_shape).array
    (folder / "image").write_bytes(x.tobytes())
    (folder / "heatmap").write_bytes(engine.load(tiny_bundle, tune=False).explain(x).heatmap.tobytes())
    content = photo_model.read_bytes()
    (folder / "truncated.onnx").write_bytes(content[: len(content) // 2])
    (folder / "noise.onnx").write_bytes(np.random.default_rng(1).bytes(5000))
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "folder.ada").mkdir()
    damaged = shutil.copytree(tiny_bundle, folder / "damaged.ada")
    weights = damaged / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:4000])
    onnx.save(with_open_sizes(), folder / "open.onnx")
    os.mkfifo(folder / "pipe.onnx")
    bad = ["missing.onnx", "noise.onnx", "empty.onnx", "truncated.onnx", "folder.ada", "damaged.ada", "open.onnx"]
    bad += ["pipe.onnx"]
    numbers = [opens, threads, calls]
    return [
        RUNTIME,
        tiny_bundle,
        photo_model,
        folder / "image",
        folder / "heatmap",
        *numbers,
        *(folder / name for name in bad),
    ]


@pytest.mark.parametrize("compiler", COMPILERS)
def test_under_sanitizers(compiler: str, tmp_path: Path, tiny_bundle: Path, photo_model: Path) -> None:
    program = build(HERE, tmp_path / "build", compiler, SANITIZED) / "exercise"
    run(program, *exercised(tmp_path, tiny_bundle, photo_model, 200, 8, 12))


@pytest.mark.slow
def test_ten_thousand_times(tmp_path: Path, tiny_bundle: Path, photo_model: Path) -> None:
    """Opened and closed, under sanitizers; every 20th time a model that is there."""
    program = build(HERE, tmp_path / "build", COMPILERS[0], SANITIZED) / "exercise"
    run(program, *exercised(tmp_path, tiny_bundle, photo_model, 10_000, 8, 12))


@pytest.mark.skipif(not shutil.which("valgrind"), reason="needs valgrind")
def test_under_valgrind(tmp_path: Path, tiny_bundle: Path, photo_model: Path) -> None:
    program = build(HERE, tmp_path / "build", COMPILERS[0]) / "exercise"
    known = f"--suppressions={HERE / 'valgrind.supp'}"
    options = (known, "--error-exitcode=99", "--leak-check=full", "--errors-for-leak-kinds=definite", "--quiet")
    run("valgrind", *options, program, *exercised(tmp_path, tiny_bundle, photo_model, 10, 2, 3))


def test_linked_to_an_installed_runtime(tmp_path: Path, tiny_bundle: Path, photo_model: Path) -> None:
    """The package's library, with a header of the functions that are called, stands for an installation."""
    header = (ROOT / "native" / "ort_abi.h").read_text(encoding="utf-8")
    (tmp_path / "onnxruntime_c_api.h").write_text(f"{header}\nconst OrtApiBase *OrtGetApiBase(void);\n")
    (tmp_path / "libonnxruntime.so.1").symlink_to(RUNTIME)
    (tmp_path / "onnxruntimeConfig.cmake").write_text(
        "add_library(onnxruntime::onnxruntime SHARED IMPORTED)\n"
        f"set_target_properties(onnxruntime::onnxruntime PROPERTIES IMPORTED_LOCATION {tmp_path}/libonnxruntime.so.1\n"
        f"  INTERFACE_INCLUDE_DIRECTORIES {tmp_path})\n"
    )
    found = ("-DADA_SISE_FIND_ONNXRUNTIME=ON", f"-Donnxruntime_DIR={tmp_path}")
    prefix = tmp_path / "prefix"
    settings = (*found, f"-DCMAKE_INSTALL_PREFIX={prefix}")
    library = build(ROOT / "native", tmp_path / "build", COMPILERS[0], "", *settings) / "libada_sise.so"
    named = Model(library, tiny_bundle)
    assert named.code == 1
    assert named.error().endswith("this library is linked to an ONNX Runtime, so expected NULL")
    named.close()
    no_cuda = Model(library, tiny_bundle, onnxruntime=None, use_cuda=1)
    assert no_cuda.error().startswith("the CUDA provider: CUDA execution provider is not enabled")
    no_cuda.close()
    model, explainer = Model(library, tiny_bundle, onnxruntime=None), engine.load(tiny_bundle)
    x = prepare(photo_pixels(), explainer.bundle.preprocess, explainer.bundle.image_shape).array
    check(*model.explain(x), explainer.explain(x, visualization_maps=True))
    model.close()
    run("cmake", "--install", tmp_path / "build")
    beside = build(ROOT / "examples" / "c", tmp_path / "beside", COMPILERS[0], "", f"-DCMAKE_PREFIX_PATH={prefix}")
    assert not (beside / "native").exists()
    photo = tmp_path / "photo.ppm"
    Image.fromarray(photo_pixels()).save(photo)
    assert run(beside / "explain", photo_model, photo, tmp_path / "x.pgm", 3).startswith("espresso (3): score ")


def test_the_example(photo_model: Path, tmp_path: Path) -> None:
    """Built beside an installed library, and with it."""
    runtime = f"-DADA_SISE_ONNXRUNTIME={RUNTIME}"
    prefix = tmp_path / "a prefix"
    build(ROOT / "native", tmp_path / "library", COMPILERS[0], "", runtime, f"-DCMAKE_INSTALL_PREFIX={prefix}")
    run("cmake", "--install", tmp_path / "library")
    beside = build(ROOT / "examples" / "c", tmp_path / "beside", COMPILERS[0], "", f"-DCMAKE_PREFIX_PATH={prefix}")
    within = build(ROOT / "examples" / "c", tmp_path / "within", COMPILERS[0], "", runtime)
    assert not (beside / "native").exists()
    photo = tmp_path / "photo.ppm"
    Image.fromarray(photo_pixels()).save(photo)
    for folder in (beside, within):
        output = tmp_path / f"{folder.name}.pgm"
        told = run(folder / "explain", photo_model, photo, output, 3)
        assert told.startswith("espresso (3): score ")
        with Image.open(output) as picture:
            assert picture.size == (32, 24)
            assert np.asarray(picture).max() == 255
    assert (tmp_path / "beside.pgm").read_bytes() == (tmp_path / "within.pgm").read_bytes()
    if shutil.which("pkg-config"):
        (described,) = prefix.rglob("ada_sise.pc")
        flags = shlex.split(run("pkg-config", "--cflags", "--libs", "ada_sise", PKG_CONFIG_PATH=str(described.parent)))
        program = tmp_path / "by-pkg-config"
        run(COMPILERS[0], ROOT / "examples" / "c" / "explain.c", *flags, "-o", program)
        run(program, photo_model, photo, tmp_path / "third.pgm", 3, LD_LIBRARY_PATH=str(described.parent.parent))
    if (within / "CMakeCache.txt").read_text().count("PNG_LIBRARY_RELEASE:FILEPATH=/"):
        Image.fromarray(photo_pixels()).save(tmp_path / "photo.png")
        for name in ("photo.png", "PHOTO.PNG"):
            (tmp_path / "photo.png").rename(tmp_path / name)
            run(within / "explain", photo_model, tmp_path / name, tmp_path / "png.pgm", 3)
            assert (tmp_path / "png.pgm").read_bytes() == (tmp_path / "within.pgm").read_bytes()

    def refused(*words: object) -> str:
        done = subprocess.run([within / "explain", *words], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        return done.stderr

    assert refused(photo_model, photo, "x", "cat") == "cat: is no whole number\n"
    missing = f"error: none.onnx: cannot be opened: No such file or directory; {EXPECTED}\n"
    assert refused("none.onnx", photo, "x") == missing
    content = photo.read_bytes()
    (tmp_path / "same.ppm").symlink_to(photo)
    for output in (photo, tmp_path / "same.ppm", photo_model):
        other = f"{output}: is the model or the photo; expected another file for the heatmap\n"
        assert refused(photo_model, photo, output) == other
    assert photo.read_bytes() == content
    Image.fromarray(photo_pixels()).save(tmp_path / "photo.jpg")
    told = refused(photo_model, tmp_path / "photo.jpg", "x")
    assert "is no whole PPM picture (P6, 8 bits, without comments); expected that" in told
    assert "convert the photo" in told
