"""The explanation methods: one small class each, whose fields are its options.

They share what `engine.probe.Probe` offers: the tapped pass, scoring and differentiating in batches, budgets, progress.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass

from engine.errors import OptionError
from engine.methods.ada_sise import AdaSise, Sise
from engine.methods.base import Attribution, Method
from engine.methods.cam import GradCam, GradCamPlusPlus, LayerCam, XGradCam
from engine.methods.extremal import ExtremalPerturbation
from engine.methods.full_grad import FullGrad
from engine.methods.gradients import Gradient, IntegratedGradients, SmoothGrad
from engine.methods.group_cam import GroupCam
from engine.methods.head_cams import AblationCam, ReciproCam
from engine.methods.rise import Rise
from engine.methods.score_cam import ScoreCam

__all__ = [
    "METHODS",
    "AblationCam",
    "AdaSise",
    "Attribution",
    "ExtremalPerturbation",
    "FullGrad",
    "GradCam",
    "GradCamPlusPlus",
    "Gradient",
    "GroupCam",
    "IntegratedGradients",
    "LayerCam",
    "Method",
    "ReciproCam",
    "Rise",
    "ScoreCam",
    "Sise",
    "SmoothGrad",
    "XGradCam",
    "create_method",
]

METHODS: dict[str, type[Method]] = {
    "ada-sise": AdaSise,
    "sise": Sise,
    "rise": Rise,
    "score-cam": ScoreCam,
    "grad-cam": GradCam,
    "grad-cam++": GradCamPlusPlus,
    "xgrad-cam": XGradCam,
    "layer-cam": LayerCam,
    "ablation-cam": AblationCam,
    "gradient": Gradient,
    "smooth-grad": SmoothGrad,
    "integrated-gradients": IntegratedGradients,
    "full-grad": FullGrad,
    "extremal-perturbation": ExtremalPerturbation,
    "group-cam": GroupCam,
    "recipro-cam": ReciproCam,
}


def create_method(method: str | Method, options: Mapping[str, object]) -> Method:
    """Return a method with its options.

    Args:
        method: One of `METHODS`, or a method that is made already: then there are no options.
        options: The method's own options.

    Raises:
        OptionError: There is no such method, or it has no such option, or the option has no meaning.
    """
    if not isinstance(method, str):
        if isinstance(method, type) or not callable(getattr(method, "explain", None)):
            raise OptionError(f"method is {method!r}; expected one of {', '.join(METHODS)}, or a method object")
        if not is_dataclass(method):
            raise OptionError(
                f"method is {method!r}, of a class that is no dataclass; expected one, as Method describes"
            )
        if options:
            raise OptionError(f"{', '.join(options)}: given beside a method object, which has its options already")
        return method
    if method not in METHODS:
        raise OptionError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    known = [field.name for field in fields(METHODS[method])]
    for name in options:
        if name not in known:
            taken = f"expected some of {', '.join(known)}" if known else "it takes none"
            raise OptionError(f"{name}: is no option of method {method!r}; {taken}")
    return METHODS[method](**options)
