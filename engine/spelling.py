"""Methods as people write them on a command line: `ada-sise:rule=otsu-count:fusion=soft`."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Union, get_args, get_origin, get_type_hints

import numpy as np

from engine.errors import OptionError
from engine.methods import Method

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", NoneType: "none"}


def parse_method(text: str, known: Mapping[str, type[Method]], options: Mapping[str, str] | None = None) -> Method:
    """Read a method with its options.

    Args:
        text: `NAME`, or `NAME:OPTION=VALUE:OPTION=VALUE…`. Several numbers have `/` between them.
        known: The methods by name.
        options: More options, as text.

    Raises:
        OptionError: There is no such method, or it has no such option, or the value has no meaning.
    """
    name, *rest = (word.strip() for word in text.split(":"))
    if name not in known:
        raise OptionError(f"method is {name!r}; expected one of {', '.join(known)}")
    given = dict(options or {})
    for word in rest:
        option, equals, value = (part.strip() for part in word.partition("="))
        if not equals:
            raise OptionError(f"method {text!r}: has {word!r}; expected OPTION=VALUE after each colon")
        if option in given:
            raise OptionError(f"method {text!r}: option {option!r} is given twice; expected each once")
        given[option] = value
    kind = known[name]
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    for option in given:
        if option not in names:
            own = f"some of {', '.join(names)}" if names else "none, since it has no options"
            raise OptionError(f"{option}: is no option of method {name!r}; expected {own}")
    return kind(**{option: _value(option, value, hints[option]) for option, value in given.items()})


def spell(method: Method) -> str:
    """Return a method as `parse_method` reads it, with the options that are not its defaults: always the same text."""
    changed = []
    for field in fields(method):
        value = getattr(method, field.name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if _written(value) != _written(default):
            changed.append(f":{field.name}={_written(value)}")
    return method.name + "".join(changed)


def option_texts(method: Method) -> dict[str, str]:
    """Return every option of a method as text, by name."""
    return {field.name: _written(getattr(method, field.name)) for field in fields(method)}


def _value(option: str, text: str, hint: object) -> object:
    """Read a value by the type of its field; of a union the first that fits, texts last."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for kind in sorted(kinds, key=lambda kind: kind is str):
        read, value = _read(text.strip(), kind)
        if read:
            return value
    names = dict.fromkeys(_KINDS.get(kind, "numbers with / between them") for kind in kinds)
    raise OptionError(f"{option} is {text!r}; expected {' or '.join(names)}")


def _read(text: str, kind: object) -> tuple[bool, object]:
    """Return whether a text is a value of a type, and the value."""
    if kind is str:
        return True, text
    if kind is NoneType:
        return text.lower() == "none", None
    if kind is bool:
        return text.lower() in ("true", "false"), text.lower() == "true"
    try:
        if kind is int or kind is float:
            return True, int(text) if kind is int else float(text)
        if get_origin(kind) in (tuple, Sequence):
            return True, tuple(float(part) for part in text.replace(",", "/").split("/"))
    except ValueError:
        return False, None
    raise TypeError(f"an option of type {kind!r} cannot be read from text")


def _written(value: object) -> str:
    if isinstance(value, tuple | list):
        return "/".join(map(_written, value))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float | np.floating):
        return repr(int(value)) if float(value).is_integer() else repr(float(value))
    return "none" if value is None else str(value)
