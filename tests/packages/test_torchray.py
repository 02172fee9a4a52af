"""TorchRay, the code of extremal perturbation's authors, beside the float64 reference. It computes in float32."""

from types import ModuleType

import numpy as np
import pytest
import torch

from tests.packages.conftest import Subject
from tests.packages.squeezenet import SIDE
from tests.reference import extremal

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning", "ignore:__array_wrap__:DeprecationWarning")


@pytest.fixture(scope="module")
def torchray() -> ModuleType:
    return pytest.importorskip(
        "torchray.attribution.extremal_perturbation", reason="needs torchray: make test installs it"
    )


def test_the_mask_of_any_parameters(torchray: ModuleType, random: np.random.Generator) -> None:
    for size in ((SIDE, SIDE), (30, 45)):
        generator = torchray.MaskGenerator(size, step=7, sigma=21)
        parameters = torch.tensor(random.uniform(0, 1, generator.shape_in))
        mask, whole = extremal.smooth_mask(parameters, size)
        theirs, their_whole = generator.generate(parameters.float()[None, None])
        torch.testing.assert_close(mask.float(), theirs[0, 0], rtol=0, atol=1e-5)
        torch.testing.assert_close(whole.float(), their_whole[0, 0], rtol=0, atol=1e-5)


def test_a_mask_takes_pixels_from_between_two_levels(
    torchray: ModuleType, subject: Subject, random: np.random.Generator
) -> None:
    theirs = torchray.Perturbation(subject.x.float(), type="fade")
    mask = torch.tensor(random.uniform(0, 1, (SIDE, SIDE)))
    made = extremal.perturb(theirs.pyramid.double(), mask)
    torch.testing.assert_close(made.float(), theirs.apply(mask.float()[None, None])[0], rtol=0, atol=1e-5)


def test_the_blurs_far_from_the_border(torchray: ModuleType, subject: Subject) -> None:
    # Conventions: zeros beyond the border, where the reference shares the weight out; the kernel ends at 4 sigma.
    theirs = torchray.Perturbation(subject.x.float(), num_levels=4, max_blur=6).pyramid
    made = extremal.blur_pyramid(subject.image[0], 4, 6.0).float()
    inside = slice(24, SIDE - 24)
    torch.testing.assert_close(made[..., inside, inside], theirs[..., inside, inside], rtol=0, atol=1e-3)
    assert (made - theirs).abs().max() > 0.1


def test_steps_of_the_optimiser(torchray: ModuleType, subject: Subject) -> None:
    # Convention: TorchRay returns the mask of the parameters before the last step. Masks begin with equal values, whose
    # order among themselves float32 decides by its rounding: hence 2e-3 after five steps.
    steps, area = 5, 0.3
    theirs, history = torchray.extremal_perturbation(
        subject.quick, subject.x.float(), subject.target, areas=[area], perturbation="fade", max_iter=steps + 1
    )
    pyramid = torchray.Perturbation(subject.x, type="fade").pyramid
    ((_, mask),) = extremal.extremal_perturbation(pyramid, subject.target, subject.model, [area], steps)
    np.testing.assert_allclose(mask, theirs[0, 0].numpy(), atol=2e-3)
    assert mask.min() < 0.9  # all begin near 0.97
    assert history.shape == (1, 2, steps + 1)
