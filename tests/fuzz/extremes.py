"""Values at which programs break: numbers at the ends of their ranges, and texts that are no names."""

from random import Random

NUMBERS = (
    *(0, 1, 2, 3, 7, -1, -2, 255, 256, 1025, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53 + 1, 2**63 - 1),
    *(2**63, -(2**63), 2**64, 10**400, 0.5, -0.0, 1e-308, 5e-324, 1e308, -1e308),
    *(float("nan"), float("inf"), float("-inf")),
)
INT64 = tuple(number for number in NUMBERS if isinstance(number, int) and -(2**63) <= number < 2**63)
FLOATS = tuple(number for number in NUMBERS if isinstance(number, float))
TEXTS = (
    *("", " ", "0", "nan", "null", "relu1", "weights.bin", "../weights.bin", "/etc/passwd", "a/b", ".", "..", "%s{0}"),
    *("x" * 300, "x" * 100_000, "two\nlines", "nul\0", "\x1b[31m", "\u202eright to left", "e\u0301", "\U0001f408"),
    "\ud800",  # half a surrogate pair: JSON can say it, UTF-8 cannot
)


def junk(random: Random, depth: int = 3) -> object:
    """Return any JSON value."""
    kind = random.randrange(8 if depth else 5)
    if kind < 2:
        return random.choice(NUMBERS)
    if kind == 2:
        return random.choice(TEXTS)
    if kind < 5:
        return random.choice((None, True, False))
    if kind == 5:
        return {str(random.choice(TEXTS)): junk(random, depth - 1) for _ in range(random.randrange(3))}
    if kind == 6:
        return [[[[[[[[junk(random, 0)]]]]]]]]
    return [junk(random, depth - 1) for _ in range(random.randrange(4))]


def edit_bytes(random: Random, data: bytes) -> bytes:
    """Flip, insert, delete or copy bytes at a few places, or cut the end off."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        if not changed:
            break
        at = random.randrange(len(changed))
        length = min(random.choice((1, 2, 4, 16)), len(changed) - at)
        edit = random.randrange(6)
        if edit == 0:
            changed[at] ^= 1 << random.randrange(8)
        elif edit == 1:
            changed[at : at + length] = random.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * length
        elif edit == 2:
            changed[at:at] = bytes(random.getrandbits(8) for _ in range(length))
        elif edit == 3:
            del changed[at : at + length]
        elif edit == 4:
            source = random.randrange(len(changed))
            changed[at:at] = changed[source : source + length]
        else:
            del changed[at:]
    return bytes(changed)
