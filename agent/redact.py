"""Secrets out of a text: what looks like a key, token or password becomes a placeholder that says what it was.

Pure, and safe to call twice. It finds what has a form of its own; a secret without one it cannot know. Must not know
where the text comes from nor where it goes.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_EDGE = r"(?<![A-Za-z0-9_])"
_END = r"(?![A-Za-z0-9_])"


def _plain(kind: str) -> Callable[[re.Match[str]], str]:
    return lambda _: f"[redacted {kind}]"


def _middle(kind: str) -> Callable[[re.Match[str]], str]:
    """Groups 1 and 2 stay: what stands before and after the secret."""
    return lambda found: f"{found[1]}[redacted {kind}]{found[2]}"


# No pattern repeats a repetition: time stays linear however the text was made.
_RULES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (
        re.compile(
            r"-----BEGIN ([A-Z0-9 ]{0,40})PRIVATE KEY( BLOCK)?-----"
            r"(?:(?!-----BEGIN )[\s\S]){0,20000}?(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\Z)"
        ),
        _plain("private key"),
    ),
    (re.compile(rf"{_EDGE}AGE-SECRET-KEY-1[0-9A-Z]{{50,70}}"), _plain("private key")),
    (
        re.compile(rf"{_EDGE}eyJ[A-Za-z0-9_-]{{8,4096}}\.eyJ[A-Za-z0-9_-]{{8,8192}}\.[A-Za-z0-9_-]{{0,4096}}"),
        _plain("JWT"),
    ),
    (re.compile(rf"{_EDGE}sk-ant-[A-Za-z0-9_-]{{16,256}}"), _plain("Anthropic key")),
    (re.compile(rf"{_EDGE}sk-(?:proj-|svcacct-|admin-|or-v1-)?[A-Za-z0-9_-]{{20,256}}"), _plain("API key")),
    (re.compile(rf"{_EDGE}(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{{16}}{_END}"), _plain("AWS key id")),
    (
        re.compile(
            r"(?i)(aws_?(?:secret|session)_?(?:access_?)?(?:key|token)[\"']?\s{0,4}[:=]\s{0,4}[\"']?)"
            r"[A-Za-z0-9/+=]{30,2048}()"
        ),
        _middle("AWS secret"),
    ),
    (re.compile(rf"{_EDGE}gh[pousr]_[A-Za-z0-9]{{30,255}}"), _plain("GitHub token")),
    (re.compile(rf"{_EDGE}github_pat_[A-Za-z0-9_]{{40,255}}"), _plain("GitHub token")),
    (re.compile(rf"{_EDGE}gl(?:pat|dt|rt|cbt|ptt|ft|soat)-[A-Za-z0-9_.-]{{16,255}}"), _plain("GitLab token")),
    (re.compile(rf"{_EDGE}xox[abeoprs]-[A-Za-z0-9-]{{10,255}}"), _plain("Slack token")),
    (re.compile(rf"{_EDGE}xapp-[0-9]-[A-Za-z0-9-]{{10,255}}"), _plain("Slack token")),
    (re.compile(r"https://hooks\.slack\.com/services/[A-Za-z0-9/_-]{10,255}"), _plain("Slack webhook")),
    (re.compile(rf"{_EDGE}AIza[A-Za-z0-9_-]{{35}}"), _plain("Google key")),
    (re.compile(rf"{_EDGE}ya29\.[A-Za-z0-9_-]{{20,1024}}"), _plain("Google token")),
    (re.compile(rf"{_EDGE}GOCSPX-[A-Za-z0-9_-]{{20,64}}"), _plain("Google secret")),
    (re.compile(rf"{_EDGE}(?:sk|rk|whsec)_(?:live_|test_)?[A-Za-z0-9]{{20,255}}"), _plain("Stripe key")),
    (re.compile(rf"{_EDGE}npm_[A-Za-z0-9]{{30,64}}"), _plain("npm token")),
    (re.compile(rf"{_EDGE}pypi-[A-Za-z0-9_-]{{40,512}}"), _plain("PyPI token")),
    (re.compile(rf"{_EDGE}(?:hf_[A-Za-z0-9]{{30,64}}|dop_v1_[a-f0-9]{{64}})"), _plain("API token")),
    (re.compile(rf"{_EDGE}SG\.[A-Za-z0-9_-]{{16,64}}\.[A-Za-z0-9_-]{{16,64}}"), _plain("API token")),
    (re.compile(rf"{_EDGE}hv[sbr]\.[A-Za-z0-9_-]{{20,255}}"), _plain("Vault token")),
    (re.compile(r"(?i)(AccountKey=)[A-Za-z0-9+/=]{40,128}()"), _middle("Azure key")),
    # user:password@ in a URL; an @ in the password has to be written as %40.
    (
        re.compile(r"(://[^\s/:@\"'<>]{0,128}:)(?!\[redacted )[^\s/@\"'<>]{1,256}(@)"),
        _middle("password"),
    ),
    (
        re.compile(
            r"(?i)(authorization[\"']?\s{0,4}[:=]\s{0,4}[\"']?(?:bearer|basic|token)\s{1,4})(?!\[redacted )"
            r"[A-Za-z0-9._~+/=-]{8,4096}()"
        ),
        _middle("token"),
    ),
    (
        re.compile(r"(?i)(bearer\s{1,4})(?!\[redacted )(?=[A-Za-z._~+/=-]{0,200}[0-9])[A-Za-z0-9._~+/=-]{20,4096}()"),
        _middle("token"),
    ),
    (
        re.compile(
            r"(?i)((?:password|passwd|passphrase|secret|api[_-]?key|access[_-]?key|auth[_-]?token|access[_-]?token|"
            r"refresh[_-]?token|private[_-]?key)[A-Za-z0-9_]{0,32}[\"']?\s{0,4}[:=]\s{0,4}[\"']?)"
            r"(?![\"'\s]|\[redacted |\$|<|\*{3}|os\.|process\.|env\b|None\b|null\b|true\b|false\b)"
            r"[^\s\"',;&<>{}()\[\]]{8,512}()"
        ),
        _middle("secret"),
    ),
)


def redact(text: str) -> str:
    """The text with private keys, tokens of known services, JWTs, and passwords in URLs or settings replaced."""
    for pattern, placeholder in _RULES:
        text = pattern.sub(placeholder, text)
    return text
