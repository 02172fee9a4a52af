"""The architectures of torchvision, with random weights that make a comparison prove something.

A plain random network is no test: a MobileNetV3 has logits of 4e-16, a ResNet-50 saturates its softmax. So every
network is normalised on photo-like images: batch normalisation by the statistics of those images, networks without it
layer by layer, and the logits centred and scaled on the image that is compared. As in a trained network, few classes
come into question for an image: among a thousand equal ones each mask's score would be near 0.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import engine
from engine.export.torch_module import write_onnx
from tests.comparison import Case
from tests.models import Exported
from tests.reference import method
from tests.reference.network import TorchNetwork

try:
    import torchvision
except RuntimeError:  # its compiled operators do not fit this torch; no classifier needs them
    _OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

from torchvision.models.efficientnet import FusedMBConv, MBConv  # needs the operators above
from torchvision.models.resnet import Bottleneck

SIZE = 224
_RESIDUAL = (Bottleneck, FusedMBConv, MBConv)
LAYERS: dict[str, tuple[tuple[int, int], ...]] = {
    "resnet50": ((64, 112), (256, 56), (512, 28), (1024, 14), (2048, 7)),
    "resnext50_32x4d": ((64, 112), (256, 56), (512, 28), (1024, 14), (2048, 7)),
    "resnet18": ((64, 112), (64, 56), (128, 28), (256, 14), (512, 7)),
    "vgg16": ((64, 224), (128, 112), (256, 56), (512, 28), (512, 14)),
    "densenet121": ((64, 112), (128, 56), (256, 28), (512, 14), (1024, 7)),
    "mobilenet_v2": ((96, 112), (144, 56), (192, 28), (576, 14), (1280, 7)),
    "mobilenet_v3_large": ((64, 112), (72, 56), (240, 28), (672, 14), (960, 7)),
    "efficientnet_b0": ((96, 112), (144, 56), (240, 28), (672, 14), (1280, 7)),
    "regnet_y_400mf": ((32, 112), (48, 56), (104, 28), (208, 14), (440, 7)),
    "inception_v3": ((64, 109), (192, 52), (288, 25), (768, 12), (2048, 5)),
    "googlenet": ((64, 112), (192, 56), (480, 28), (832, 14), (1024, 7)),
    "shufflenet_v2_x1_0": ((24, 112), (116, 28), (232, 14), (1024, 7)),
    "squeezenet1_1": ((64, 111), (128, 55), (256, 27), (512, 13)),
    "alexnet": ((64, 55), (192, 27), (256, 13)),
    "efficientnet_v2_s": ((24, 112), (48, 56), (256, 28), (960, 14), (1280, 7)),
    "mnasnet1_0": ((48, 112), (72, 56), (240, 28), (576, 14), (1280, 7)),
    "wide_resnet50_2": ((64, 112), (256, 56), (512, 28), (1024, 14), (2048, 7)),
    "convnext_tiny": ((96, 56), (192, 28), (384, 14), (768, 7)),
}
"""Channels and height of each feature layer at 224×224, shallow to deep (design.md, section 4)."""

ALPHA = 3e-5
"""Bound of the Agreement's (b) for random weights, whose gradients cancel in the sum over h, w by a factor of 50 to 80.

torch's own float32 is off by 8e-6 (MobileNetV3, EfficientNet-B0). Trained networks keep to 1e-5; the rules themselves
are held to 1e-8 by (a).
"""
_CALIBRATION_IMAGES = 12
_LOGIT_SPREAD = 3.0
_LARGEST_LOGIT = 18.0
_LIKELY_CLASSES = 20
_SEED = 20102


def photo_like(count: int, size: int, seed: int = _SEED) -> NDArray[np.float32]:
    """Images [count, 3, size, size] with the 1/f spectrum of photos, mean 0 and deviation 1, as if normalised."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequency[0, 0] = np.inf
    grey = np.fft.rfft2(random.standard_normal((count, 1, size, size)))
    colour = np.fft.rfft2(random.standard_normal((count, 3, size, size)))
    images = np.fft.irfft2((grey + 0.5 * colour) / frequency, s=(size, size))
    images -= images.mean(axis=(1, 2, 3), keepdims=True)
    images /= images.std(axis=(1, 2, 3), keepdims=True)
    return images.astype(np.float32)


def build(name: str, size: int = SIZE) -> nn.Module:
    """Build an architecture with 1000 classes and seeded, normalised weights, in evaluation mode."""
    torch.manual_seed(_SEED)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    network: nn.Module = getattr(torchvision.models, name)(weights=None, **options).eval()
    generator = torch.Generator().manual_seed(_SEED)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.requires_grad_(False)
        nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
        nn.init.normal_(norm.bias, 0.0, 0.2, generator=generator)
    for module in network.modules():
        if isinstance(module, _RESIDUAL):  # a deep chain of equal branches is chaotic, as no trained network is
            [*_, norm] = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
            norm.weight *= 0.3
    for key, parameter in network.named_parameters():
        if key.endswith("layer_scale"):
            nn.init.uniform_(parameter, 0.2, 1.0, generator=generator)
    weighted = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    *_, last = [module for module in weighted if isinstance(module, nn.Linear)] or weighted

    hooks = [module.register_forward_hook(_standardise) for module in ([] if norms else weighted)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        network(_calibration_images(size))
        network.eval()
        for hook in hooks:
            hook.remove()
        whole = torch.from_numpy(compared_image(size))
        masked = _behind_own_masks(network, whole)
        _forget_whether_masked(network, last, whole, masked)
        hook = last.register_forward_hook(_standardise)
        network(masked)
        hook.remove()
        if isinstance(last, nn.Conv2d):  # SqueezeNet's logits pass a Relu, below which every mask would have the same
            last.bias += 1
        spread = float(network(masked).std(0)[:_LIKELY_CLASSES].mean())
        factor = min(_LOGIT_SPREAD / spread, _LARGEST_LOGIT / float(network(whole)[:, :_LIKELY_CLASSES].abs().max()))
        last.weight *= factor
        last.bias *= factor
        for parameter in (last.weight, last.bias):
            parameter[_LIKELY_CLASSES:] *= 0.1
        last.bias[_LIKELY_CLASSES:] -= _LOGIT_SPREAD
    return network


def compared_image(size: int = SIZE) -> NDArray[np.float32]:
    """The image [1, 3, size, size] on which the engine is compared with the reference."""
    return photo_like(1, size, _SEED + 2)


def write(name: str, network: nn.Module, folder: Path) -> Path:
    """Write an architecture with the weights of `build` as ONNX, as a user would: factory and state dict."""
    weights, path = folder / f"{name}.pt", folder / f"{name}.onnx"
    torch.save(network.state_dict(), weights)
    write_onnx(f"torchvision.models:{name}", path, weights=weights, image_shape=(3, SIZE, SIZE))
    weights.unlink()
    return path


def make_case(source: Path, bundle: Path) -> Case:
    """Open an exported architecture; the target is the class whose score the masks move most."""
    model = Exported(source=source, explainer=engine.load(bundle), activation="softmax")
    x, network = compared_image(), TorchNetwork(source)
    top = Case(model, x, x, network)
    masks = torch.cat([masks_of(maps[:: max(1, len(maps) // 8)], SIZE) for maps in top.maps])
    with torch.inference_mode():
        masked = torch.from_numpy(x) * masks[:, None]
        logits = network.run(masked, network.outputs, dtype=torch.float32)[network.outputs[0]]
    return Case(model, x, x, network, target=int(logits.softmax(1).std(0).argmax()))


def _calibration_images(size: int) -> Tensor:
    """Photo-like images, and the same behind smooth masks of 0 to 1."""
    whole = photo_like(_CALIBRATION_IMAGES, size, _SEED)
    masks = photo_like(_CALIBRATION_IMAGES, size, _SEED + 1)[:, :1]
    masks -= masks.min(axis=(2, 3), keepdims=True)
    masks /= masks.max(axis=(2, 3), keepdims=True)
    return torch.from_numpy(np.concatenate([whole, whole * masks]))


def _behind_own_masks(network: nn.Module, image: Tensor) -> Tensor:
    """The image behind masks that are feature maps of the network itself, from all its convolutions but the last."""
    maps: list[Tensor] = []
    *convolutions, _ = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    hooks = [module.register_forward_hook(lambda *passed: maps.append(passed[-1][0, :4])) for module in convolutions]
    network(image)
    for hook in hooks:
        hook.remove()
    chosen = [entry for layer in maps if layer.shape[1] > 3 for entry in layer.relu() if entry.max() > entry.min()]
    chosen = chosen[:: max(1, len(chosen) // (2 * _CALIBRATION_IMAGES))]
    return image * torch.stack([masks_of(entry[None].numpy(), image.shape[2]) for entry in chosen])


def masks_of(maps: NDArray[np.float32], size: int) -> Tensor:
    """Attribution masks [K, size, size] of feature maps [K, h, w]."""
    return torch.from_numpy(method.masks(maps, size, size).astype(np.float32))


def _forget_whether_masked(network: nn.Module, last: nn.Conv2d | nn.Linear, whole: Tensor, masked: Tensor) -> None:
    """Take from the last weights most of the direction in which masked images differ from whole ones.

    It drowns all others: every mask takes the image to the same few classes, and all scores are equal.
    """
    features: list[Tensor] = []
    hook = last.register_forward_hook(lambda _, inputs, __: features.append(inputs[0]))
    network(whole)
    network(masked)
    hook.remove()
    apart, behind = (maps.flatten(2).mean((0, 2)) if maps.ndim == 4 else maps.mean(0) for maps in features)
    direction = (apart - behind) / (apart - behind).norm()
    flat = last.weight.flatten(1)
    last.weight -= 0.9 * torch.outer(flat @ direction, direction).reshape(last.weight.shape)


def _standardise(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Scale a layer's weights so that this output has mean 0 and deviation 1 in each channel; return it so."""
    assert isinstance(module, nn.Conv2d | nn.Linear)
    over = (0, 2, 3) if isinstance(module, nn.Conv2d) else tuple(range(output.ndim - 1))
    mean = output.mean(over)
    if isinstance(module, nn.Conv2d):
        deviation = output.std(over)
        shape: tuple[int, ...] = (-1, 1, 1)
    else:  # a unit that hardly varies over a few images would be blown up
        deviation = (output - mean).square().mean().sqrt().expand(len(mean))
        shape = (-1,)
    module.weight /= deviation.reshape(-1, *[1] * (module.weight.ndim - 1))
    assert module.bias is not None
    module.bias.copy_((module.bias - mean) / deviation)
    return (output - mean.reshape(shape)) / deviation.reshape(shape)
