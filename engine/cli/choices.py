"""Options that several commands have."""

from typing import Annotated, TypeAlias

import typer

from engine.backends import BACKENDS

Activation: TypeAlias = Annotated[
    str | None, typer.Option(help="softmax, sigmoid or none, instead of the bundle's own.")
]
Device: TypeAlias = Annotated[str, typer.Option(help=f"Where to compute: {', '.join(BACKENDS)}.")]
Precision: TypeAlias = Annotated[
    str,
    typer.Option(
        help="In what masks are scored: float32; int8, if the bundle was exported with --int8; bfloat16 on openvino; "
        "tf32 and float16 on cuda; tf32, float16 and bfloat16 on tensorrt."
    ),
]
Threads: TypeAlias = Annotated[
    int | None, typer.Option(help="CPU threads; one per CPU that the process may use if left out.", metavar="N")
]
Batch: TypeAlias = Annotated[
    int | None,
    typer.Option(help="Changed images that are scored at a time; what is fastest if left out.", metavar="N"),
]
Tune: TypeAlias = Annotated[
    bool, typer.Option(help="Measure what scores fastest when a bundle is first loaded on this machine, in about 3 s.")
]
Providers: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(help="ONNX Runtime provider, repeat for several in order of preference.", metavar="NAME"),
]
