"""Options that several commands have."""

from typing import Annotated, TypeAlias

import typer

from engine.backends import BACKENDS

Activation: TypeAlias = Annotated[
    str | None, typer.Option(help="softmax, sigmoid or none, instead of the bundle's own.")
]
Device: TypeAlias = Annotated[str, typer.Option(help=f"Where to compute: {', '.join(BACKENDS)}.")]
Precision: TypeAlias = Annotated[
    str, typer.Option(help="In what masks are scored: float32; or int8, if the bundle was exported with --int8.")
]
Threads: TypeAlias = Annotated[
    int | None, typer.Option(help="CPU threads; one per CPU that the process may use if left out.", metavar="N")
]
Providers: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(help="ONNX Runtime provider, repeat for several in order of preference.", metavar="NAME"),
]
