"""A stdio MCP server of the standard library that speaks just enough: one tool, which says who it is.

Run by the client in the tests. It must not import anything of this tree: it is started as a bare file.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

NAMES = ("CLAUDE_CODE_SESSION_ID", "CLAUDE_CODE_MESSAGING_SOCKET", "CLAUDE_PROJECT_DIR")
TOOL = {
    "name": "who",
    "description": "Says who this server is.",
    "inputSchema": {"type": "object", "properties": {}},
    "_meta": {"anthropic/alwaysLoad": True},  # else the model has to search for it first
}


def answer(method: str) -> dict[str, Any]:
    if method == "initialize":
        about = {"name": "probe", "version": "1"}
        result: dict[str, Any] = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": about}
    elif method == "tools/list":
        result = {"tools": [TOOL]}
    elif method == "tools/call":
        who = {"pid": os.getpid(), "parent": os.getppid(), "cwd": os.getcwd()}
        who |= {name: os.environ.get(name) for name in NAMES}
        result = {"content": [{"type": "text", "text": json.dumps(who)}]}
    elif method == "ping":
        result = {}
    else:  # such as server/discover of a newer protocol: the client then falls back to initialize
        return {"error": {"code": -32601, "message": f"no method {method}"}}
    return {"result": result}


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        if "id" in asked and "method" in asked:
            print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **answer(asked["method"])}), flush=True)


if __name__ == "__main__":
    main()
