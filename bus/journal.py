"""How the records of the journal are chained (PROTOCOL.md §14): whoever changes one changes all that follow.

Pure. It must not know where records are kept, nor what they are about.
"""

from __future__ import annotations

import hashlib

from bus.wire import pack

START = bytes(16)  # what stands before the first record


def chain(
    previous: bytes, seq: int, at: int, ob: str, q: int, op: str, digest: bytes, code: int, reply: bytes, who: str
) -> bytes:
    """The next link, 16 octets: everything the record says goes into it."""
    told = hashlib.blake2b(reply, digest_size=16).digest()
    return hashlib.blake2b(previous + pack([seq, at, ob, q, op, digest, code, told, who]), digest_size=16).digest()


def early_chain(previous: bytes, seq: int, at: int, ob: str, q: int, op: str, digest: bytes) -> bytes:
    """The link of records that a database of the first schema holds: without what was answered, and to whom."""
    return hashlib.blake2b(previous + pack([seq, at, ob, q, op, digest]), digest_size=16).digest()
