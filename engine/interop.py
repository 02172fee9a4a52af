"""Explaining for a host that owns the GPU's memory and streams: images in and heatmaps out without a copy to the CPU.

The host may be C or C++ with Python inside, or a program that uses pycuda, CuPy, PyTorch, Numba …: whoever can name an
address. All of them share the GPU's *primary* context (pycuda: `drv.Device(0).retain_primary_context()` and `push()`;
never `pycuda.autoinit`, which makes another). The engine works on a stream of its own:

- it begins when the caller's stream has done what was asked of it before the call, and has copied the image when the
  call returns: the image stays the caller's, who may overwrite it then;
- the caller's stream goes on when the heatmap is there. The heatmap is a new array of the caller's, on the device. Its
  memory comes from the engine's stream, so it is to be kept until the caller's stream has done what uses it.
"""

from dataclasses import dataclass
from typing import Unpack, overload

from engine.errors import OptionError
from engine.explainer import Explainer
from engine.explanation import Explanation
from engine.kernels.device import Array, DeviceImage, DevicePointer
from engine.options import Choices, Target, Targets

__all__ = ["DeviceExplanation", "DevicePointer", "explain"]

DEFAULT_STREAM = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeviceExplanation:
    """A heatmap in device memory, and what is to be said of it.

    Attributes:
        heatmap: float32 [H, W], from 0 to 1: a `cupy.ndarray`, which has `__cuda_array_interface__` and `__dlpack__`;
            `heatmap.data.ptr` is its address.
        explanation: The report, with a copy of the heatmap for the host. Its picture is black: the host has not seen
            the image.
    """

    heatmap: Array
    explanation: Explanation


@overload
def explain(
    explainer: Explainer, image: object, target: Target = None, *, stream: int = ..., **choices: Unpack[Choices]
) -> DeviceExplanation: ...


@overload
def explain(
    explainer: Explainer, image: object, target: Targets, *, stream: int = ..., **choices: Unpack[Choices]
) -> list[DeviceExplanation]: ...


def explain(
    explainer: Explainer,
    image: object,
    target: Target | Targets = None,
    *,
    stream: int = DEFAULT_STREAM,
    **choices: Unpack[Choices],
) -> DeviceExplanation | list[DeviceExplanation]:
    """Explain an image that is in device memory.

    Args:
        explainer: Loaded with a device that is a GPU.
        image: The prepared input [1, C, H, W] or [C, H, W], of any float type and strides: a `DevicePointer`, or what
            has `__cuda_array_interface__` or `__dlpack__`, such as a `pycuda.gpuarray.GPUArray` or a torch tensor.
        target: As for `Explainer.explain`.
        stream: The address of the caller's stream (`cudaStream_t`; pycuda: `Stream.handle`); 0 for the default stream.
        choices: As for `Explainer.explain`: methods `ada-sise` and `sise`, baselines `zero` and a colour.

    Returns:
        One explanation, or a list of them for a list of targets.

    Raises:
        OptionError: The explainer does not work on a GPU, or the method cannot work on images there.
        ImageError: The image is not on the GPU, or of another shape or type; or the network computes NaN or infinity.
        EngineError: As for `Explainer.explain`.
    """
    if explainer.device_memory is None:
        raise OptionError(f"device is {explainer.device!r}; expected an explainer that was loaded with device='cuda'")
    given = DeviceImage(image, stream)
    targets: list[Target] = list(target) if isinstance(target, list | tuple) else [target]
    found = explainer.explain(given, targets, **choices)
    made = [
        DeviceExplanation(heatmap=heatmap, explanation=one) for heatmap, one in zip(given.heatmaps, found, strict=True)
    ]
    return made if isinstance(target, list | tuple) else made[0]
