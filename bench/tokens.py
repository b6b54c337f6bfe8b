"""What the bus costs a model: tool definitions, instructions and one injected message, in octets and in tokens.

The tokenizer is the one that the PyPI package anthropic 0.38 ships, Claude's of that time; later ones differ by some
per cent. It is loaded without the package's code. Without it (`pip install tokenizers anthropic==0.38.0`) only octets
are told.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib import metadata

from agent.render import Letter, render
from agent.server import definitions
from agent.tools import INSTRUCTIONS, table
from bench.frame import OURS, Options, Row, bench, left_out

TEXT = "The migration is in; please run the tests of the billing package and tell me what fails."


@bench("tokens")
def tokens(_options: Options) -> Iterator[Row]:
    """Octets and tokens of everything that reaches a model unasked."""
    count = _tokenizer()
    for case, text in _texts():
        yield Row("tokens", case, OURS, "octets", float(len(text.encode())), "B")
        if count is not None:
            yield Row("tokens", case, OURS, "tokens (anthropic 0.38)", float(count(text)), "tokens")


def _texts() -> Iterator[tuple[str, str]]:
    tools = definitions(table())
    told = [json.dumps(t.model_dump(by_alias=True, exclude_none=True), separators=(",", ":")) for t in tools]
    always = [t for t, tool in zip(told, table().values(), strict=True) if tool.always]
    yield "instructions", INSTRUCTIONS
    yield f"definitions of all {len(told)} tools", "[" + ",".join(told) + "]"
    yield f"definitions of the {len(always)} tools always loaded", "[" + ",".join(always) + "]"
    yield "instructions and all definitions", INSTRUCTIONS + "[" + ",".join(told) + "]"
    letter = Letter("k3v7h2qmx5azt4cd", "api", "vm", "web", "task", "", "", "", 0, TEXT.encode(), False)
    yield "the body of a message", TEXT
    yield "that message injected", render([letter], 60_000)
    yield "two such messages injected", render([letter, letter], 60_000)


def _tokenizer() -> Callable[[str], int] | None:
    try:
        from tokenizers import Tokenizer  # type: ignore[import-not-found, unused-ignore]

        files = metadata.files("anthropic") or []
    except (ImportError, metadata.PackageNotFoundError):
        left_out("tokens, beside octets", "pip install tokenizers anthropic==0.38.0")
        return None
    found = next((file for file in files if file.name == "tokenizer.json"), None)
    if found is None:
        left_out("tokens, beside octets", "this anthropic ships no tokenizer: pip install anthropic==0.38.0")
        return None
    loaded = Tokenizer.from_file(str(found.locate()))
    return lambda text: len(loaded.encode(text).ids)
