"""The arithmetic of the method between two runs of the network, in NumPy.

One module a phase: `select` (average gradients → channels), `mask` (feature maps → masked images), `kriging` (scores of
masks that were not scored), `combine` (scores → visualization map), `fuse` (visualization maps → heatmap); `resample`
is the upsampling that several of them share. `smooth_mask` makes the masks that extremal perturbation optimises, and
differentiates them.
"""

from engine.kernels.combine import activate, scale_to_unit, visualization_map
from engine.kernels.fuse import FUSIONS, fuse, otsu_threshold
from engine.kernels.kriging import Kriging, thumbnails
from engine.kernels.mask import MaskWriter, is_flat
from engine.kernels.resample import axis, upsample
from engine.kernels.select import RULES, Selection, otsu_split, select_channels
from engine.kernels.smooth_mask import SmoothMask

__all__ = [
    "FUSIONS",
    "RULES",
    "Kriging",
    "MaskWriter",
    "Selection",
    "SmoothMask",
    "activate",
    "axis",
    "fuse",
    "is_flat",
    "otsu_split",
    "otsu_threshold",
    "scale_to_unit",
    "select_channels",
    "thumbnails",
    "upsample",
    "visualization_map",
]
