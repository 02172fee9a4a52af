"""Compiles an ONNX classifier into an explanation bundle, once per model.

The steps, one module each: `source` (read, fold, find the logits), `cut` (feature layers), `split` (blocks and head),
`differentiate` (gradient companions, by the `rules`), `link` (forward and tapped graphs), `verify` and `pack`;
`compile` runs them all.
"""

from engine.export.compile import ExportReport, export

__all__ = ["ExportReport", "export"]
