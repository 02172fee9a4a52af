"""Options that several commands have."""

from typing import Annotated, TypeAlias

import typer

Activation: TypeAlias = Annotated[
    str | None, typer.Option(help="softmax, sigmoid or none, instead of the bundle's own.")
]
Threads: TypeAlias = Annotated[
    int | None, typer.Option(help="CPU threads; one per CPU that the process may use if left out.", metavar="N")
]
Providers: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(help="ONNX Runtime provider, repeat for several in order of preference.", metavar="NAME"),
]
