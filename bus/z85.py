"""Z85 (ZeroMQ RFC 32): CURVE keys as text. Pure; knows only the alphabet."""

from __future__ import annotations

from bus.config import Z85, is_key


def encode(data: bytes) -> str:
    """The text of a multiple of four octets, five characters for each four."""
    out: list[str] = []
    for i in range(0, len(data), 4):
        number = int.from_bytes(data[i : i + 4], "big")
        out += [Z85[number // 85**power % 85] for power in (4, 3, 2, 1, 0)]
    return "".join(out)


def decode_key(text: str) -> bytes:
    """The 32 octets of a key; ValueError when it is none."""
    if not is_key(text):
        raise ValueError("no key")
    out = bytearray()
    for i in range(0, 40, 5):
        number = 0
        for letter in text[i : i + 5]:
            number = number * 85 + Z85.index(letter)
        if number >= 1 << 32:
            raise ValueError("no key")
        out += number.to_bytes(4, "big")
    return bytes(out)
