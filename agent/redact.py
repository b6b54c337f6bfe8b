"""Secrets out of a text: what looks like a key, token or password becomes a placeholder that says what it was.

Pure, and safe to call twice. It finds what has a form of its own, or a name before it; a secret with neither it
cannot know. `outgoing` is what a link does to every request before it is written; it must not know where that goes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bus.errors import LocalError

# Before a token stands no part of a word: but the end of an escape (\n, %3D) is none, though it looks like one.
_EDGE = r"(?:(?<![A-Za-z0-9_])|(?<=\\[nrt])|(?<=%[0-9A-Fa-f]{2}))"
_END = r"(?![A-Za-z0-9_])"
_LITERAL = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Rule:
    """One form of secret. It is looked for only where one of `hints`, in lower case, is in the text at all; groups 1
    and 2, if there are any, stay.
    """

    kind: str
    hints: tuple[str, ...]
    pattern: re.Pattern[str]

    def placeholder(self, found: re.Match[str]) -> str:
        """What stands there instead."""
        before, after = found.groups() if self.pattern.groups else ("", "")
        return f"{before}[redacted {self.kind}]{after}"


def _token(kind: str, hints: str, body: str, edge: str = _EDGE) -> Rule:
    return Rule(kind, tuple(hints.split()), re.compile(edge + body))


def _after(kind: str, hints: str, pattern: str) -> Rule:
    return Rule(kind, tuple(hints.split()), re.compile(pattern))


# No pattern repeats a repetition, and every repetition has an end: time stays linear however the text was made.
_RULES: tuple[Rule, ...] = (
    _token(
        "private key",
        "-----begin",
        r"-----BEGIN (?:[A-Z0-9 ]{0,40})PRIVATE KEY(?: BLOCK)?-----"
        r"(?:(?!-----BEGIN )[\s\S]){0,20000}?(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\Z)",
        "",
    ),
    # One that was cut off, with other text behind it.
    _token(
        "private key",
        "-----begin",
        r"-----BEGIN (?:[A-Z0-9 ]{0,40})PRIVATE KEY(?: BLOCK)?-----(?:[A-Za-z0-9+/=\s]|\\[nr]){0,20000}",
        "",
    ),
    _token("private key", "age-secret-key-1", r"AGE-SECRET-KEY-1[0-9A-Z]{50,70}"),
    _token("JWT", "eyj", r"eyJ[A-Za-z0-9_-]{8,4096}\.eyJ[A-Za-z0-9_-]{8,8192}\.[A-Za-z0-9_-]{0,4096}"),
    _token("Anthropic key", "sk-ant-", r"sk-ant-[A-Za-z0-9_-]{16,256}", ""),
    _token("API key", "sk-", r"sk-(?:proj-|svcacct-|admin-|or-v1-)?[A-Za-z0-9_-]{20,256}"),
    _token("AWS key id", "akia asia abia acca", rf"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{{16}}{_END}"),
    _after(
        "AWS secret",
        "aws",
        r"(?i)(aws_?(?:secret|session)_?(?:access_?)?(?:key|token)[\"']?\s{0,4}[:=]\s{0,4}[\"']?)"
        r"[A-Za-z0-9/+=]{30,2048}()",
    ),
    _token("GitHub token", "ghp_ gho_ ghu_ ghs_ ghr_", r"gh[pousr]_[A-Za-z0-9]{30,255}", ""),
    _token("GitHub token", "github_pat_", r"github_pat_[A-Za-z0-9_]{40,255}", ""),
    _token(
        "GitLab token",
        "glpat- gldt- glrt- glcbt- glptt- glft- glsoat-",
        r"gl(?:pat|dt|rt|cbt|ptt|ft|soat)-[A-Za-z0-9_.-]{16,255}",
        "",
    ),
    _token("Slack token", "xox", r"xox[abeoprs]-[A-Za-z0-9-]{10,255}", ""),
    _token("Slack token", "xapp-", r"xapp-[0-9]-[A-Za-z0-9-]{10,255}", ""),
    _token("Slack webhook", "hooks.slack.com", r"https://hooks\.slack\.com/services/[A-Za-z0-9/_-]{10,255}", ""),
    _token(
        "Discord webhook",
        "/api/webhooks/",
        r"https://(?:\w{0,16}\.)?discord(?:app)?\.com/api/webhooks/[\w/-]{20,255}",
        "",
    ),
    _token("Google key", "aiza", r"AIza[A-Za-z0-9_-]{35}"),
    _token("Google token", "ya29.", r"ya29\.[A-Za-z0-9_-]{20,1024}"),
    _token("Google secret", "gocspx-", r"GOCSPX-[A-Za-z0-9_-]{20,64}"),
    _token("Stripe key", "sk_ rk_ whsec_", r"(?:sk|rk|whsec)_(?:live_|test_)?[A-Za-z0-9]{20,255}"),
    _token("npm token", "npm_", r"npm_[A-Za-z0-9]{30,64}"),
    _token("PyPI token", "pypi-", r"pypi-[A-Za-z0-9_-]{40,512}"),
    _token("Docker token", "dckr_", r"dckr_(?:pat|oat)_[A-Za-z0-9_-]{20,64}"),
    _token(
        "API token",
        "hf_ dop_v1_ gsk_ xai- pplx- r8_ lin_api_ ntn_ shpat_ shpca_ shppa_ shpss_ dapi",
        r"(?:hf_[A-Za-z0-9]{30,64}|dop_v1_[a-f0-9]{64}|gsk_[A-Za-z0-9]{40,64}|xai-[A-Za-z0-9]{60,120}|"
        r"pplx-[A-Za-z0-9]{40,64}|r8_[A-Za-z0-9]{36,48}|lin_api_[A-Za-z0-9]{32,64}|ntn_[A-Za-z0-9]{40,64}|"
        r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}|dapi[a-f0-9]{32})",
    ),
    _token("API token", "sg.", r"SG\.[A-Za-z0-9_-]{16,64}\.[A-Za-z0-9_-]{16,64}"),
    _token("Telegram token", ":aa", rf"[0-9]{{8,10}}:AA[A-Za-z0-9_-]{{33}}{_END}"),
    _token("Vault token", "hvs. hvb. hvr.", r"hv[sbr]\.[A-Za-z0-9_-]{20,255}"),
    _after("Azure key", "accountkey=", r"(?i)(AccountKey=)[A-Za-z0-9+/=]{40,128}()"),
    _after("Azure signature", "sig=", r"(?i)([?&]sig=)[A-Za-z0-9%+/=]{40,128}()"),
    # user:password@ in a URL; an @ in the password has to be written as %40.
    _after("password", "://", r"(://[^\s/:@\"'<>]{0,128}:)(?!\[redacted )[^\s/@\"'<>]{1,256}(@)"),
    _after(
        "password",
        "-u --user",
        r"(?:(?<=\s)|^)((?:-u|--user)[ =][\"']?[^\s:\"'\[\]]{1,64}:)"
        r"(?!\[redacted |[0-9]{1,9}(?![^\s\"'])|\$)[^\s\"']{3,128}()",
    ),
    _after(
        "token",
        "authorization",
        r"(?i)(authorization[\"']?\s{0,4}[:=]\s{0,4}[\"']?(?:bearer|basic|token)\s{1,4})(?!\[redacted )"
        r"[A-Za-z0-9._~+/=-]{8,4096}()",
    ),
    _after(
        "token",
        "bearer",
        r"(?i)(bearer\s{1,4})(?!\[redacted )(?=[A-Za-z._~+/=-]{0,200}[0-9])[A-Za-z0-9._~+/=-]{20,4096}()",
    ),
    _after(
        "secret",
        "passw passphrase secret apikey api_key api-key accesskey access_key access-key token privatekey private",
        r"(?i)((?:password|passwd|passphrase|secret|api[_-]?key|access[_-]?key|auth[_-]?token|access[_-]?token|"
        r"refresh[_-]?token|private[_-]?key)[A-Za-z0-9_]{0,32}[\"']?\s{0,4}[:=]\s{0,4}[\"']?)"
        r"(?![\"'\s]|\[redacted |\$|<|\*{3}|os\.|process\.|env\b|None\b|null\b|true\b|false\b)"
        r"[^\s\"',;&<>{}()\[\]]{8,512}()",
    ),
)


_HINTS = tuple((hint, number) for number, rule in enumerate(_RULES) for hint in rule.hints)


@dataclass(slots=True)
class Found:
    """How many secrets of which kind were taken out."""

    kinds: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.kinds)

    def __str__(self) -> str:
        """ "GitHub token, 2 × password"."""
        return ", ".join(kind if n == 1 else f"{n} × {kind}" for kind, n in self.kinds.items())

    def count(self, kind: str, n: int) -> None:
        if n:
            self.kinds[kind] = self.kinds.get(kind, 0) + n


def redact(text: str, found: Found | None = None) -> str:
    """The text with private keys, tokens of known services, JWTs, and passwords in URLs or settings replaced; what it
    was is counted in `found`.
    """
    lowered = text.lower()
    # One flat look for all hints, for most texts have none: this is on the way of every message.
    for number in sorted({number for hint, number in _HINTS if hint in lowered}):
        rule = _RULES[number]
        text, n = rule.pattern.subn(rule.placeholder, text)
        if n and found is not None:
            found.count(rule.kind, n)
    return text


# A name and its value; escapes and characters are told apart, so this takes each once.
_PAIR = re.compile(r'"([^"\\]{1,200})"(\s{0,8}:\s{0,8})("(?:[^"\\]|\\.){8,4096}")', re.DOTALL)
_BREAKS = re.compile(r"[\s\"',;&<>{}()\[\]\\]")


def _named(match: re.Match[str], found: Found) -> str:
    """A value that its name makes a secret, whatever characters are in it."""
    try:
        value = json.loads(match[3])
    except ValueError:
        return match[0]
    if value.startswith("[redacted ") or redact(probe := f"{match[1]}={_BREAKS.sub('x', value)}") == probe:
        return match[0]
    found.count("secret", 1)
    return f'"{match[1]}"{match[2]}"[redacted secret]"'


def redact_json(text: str, found: Found | None = None) -> str:
    """The same for a JSON text: what comes out is JSON too, and what was no secret stands as it was written."""
    own = Found() if found is None else found

    def literal(match: re.Match[str]) -> str:
        try:
            value = json.loads(match[0])
        except ValueError:
            return match[0]
        kept = redact(value, own)
        return match[0] if kept == value else json.dumps(kept, ensure_ascii=False)

    # The name of a setting is often one text and its value the next.
    inside = _PAIR.sub(lambda match: _named(match, own), _LITERAL.sub(literal, text))
    across = Found()
    whole = redact(inside, across)
    if not _is_json(whole) and _is_json(inside):
        return inside  # every literal of it was looked at
    for kind, n in across.kinds.items():
        own.count(kind, n)
    return whole


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


Args = dict[str, Any]


def outgoing(op: str, args: Args, body: bytes) -> tuple[Args, bytes, Found]:
    """A request as it may leave this machine: what peers could read of it, without the secrets in it.

    LocalError where one stands in something that is no text to be changed: a tag, a key.
    """
    found = Found()
    if op == "send":
        body = _octets(redact, body, found)
    elif op == "state.set":
        body = _octets(redact_json, body, found)
    shown = {name: _plain(value, found) for name, value in args.items() if name in _SHOWN.get(op, ())}
    for name in ("tag", "key"):
        fault = Found()
        if type(args.get(name)) is str and redact(args[name], fault) != args[name]:
            raise LocalError(f"the {name} holds a secret ({fault}); nothing was sent (choose another {name})")
    return {**args, **shown}, body, found


_SHOWN = {"status": ("summary", "metadata"), "hold.drop": ("reason",)}


def _octets(change: Callable[[str, Found], str], body: bytes, found: Found) -> bytes:
    text = body.decode("utf-8", "surrogateescape")
    kept = change(text, found)
    return body if kept == text else kept.encode("utf-8", "surrogateescape")


def _plain(value: Any, found: Found) -> Any:
    if isinstance(value, str):
        return redact(value, found)
    if isinstance(value, dict):
        return {key: _plain(entry, found) for key, entry in value.items()}
    return [_plain(entry, found) for entry in value] if isinstance(value, list) else value
