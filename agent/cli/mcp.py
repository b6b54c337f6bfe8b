"""`talkbus mcp`: the agent of one session, over stdio. The only command that imports the MCP SDK."""

from __future__ import annotations

import os

import click

from agent.cli.call import Call, pass_call


@click.command()
@pass_call
def mcp(call: Call) -> int:
    """Run as an MCP server, for a client to start.

    It speaks MCP on stdin and stdout, so it is of no use in a terminal.

    \b
    claude mcp add talkbus -- talkbus mcp
    """
    from agent.server import run

    return run(call.home, call.config, os.environ)
