#!/bin/sh
# The MCP server of the plugin. usage: mcp.sh CHECKOUT
#
# Starts the agent with the first of these that is there: the command talkbus, uvx, or a Python that has what talkbus
# needs; the latter two run the code of this very checkout. Where there is none, and where 'talkbus install' has given
# the session its server already, a server without tools answers instead: it says what to do, and nothing looks broken.

root=$1
hint=''

if [ -n "$TALKBUS_INSTALLED" ]; then
    : # the installed server does the work
elif command -v talkbus >/dev/null 2>&1; then
    exec talkbus mcp
elif command -v uvx >/dev/null 2>&1; then
    exec uvx --quiet --from "$root" talkbus mcp
else
    for python in python3 python; do
        needs='import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, ("mcp", "zmq", "msgpack", "click"))))'
        if "$python" -P -c "$needs" >/dev/null 2>&1; then
            exec "$python" -P "$root/talkbus.py" mcp
        fi
    done
    hint='talkbus is not installed, so this session is not on the bus. To mend it: uv tool install talkbus, or pipx'
    hint="$hint install talkbus, then start a new session. Only if the user asks about talkbus, tell them so."
    echo "talkbus is not installed (uv tool install talkbus, or pipx install talkbus)" >&2
fi

# A server without tools. One JSON a line; the id is echoed as it was written.
about='"serverInfo":{"name":"talkbus","version":"0"}'
while IFS= read -r line; do
    case $line in *'"id"'*) ;; *) continue ;; esac # notifications get no answer
    id=$(printf '%s\n' "$line" | sed -n -e 's/.*"id" *: *\([0-9][0-9]*\).*/\1/p' -e 's/.*"id" *: *\("[^"]*"\).*/\1/p')
    [ -n "$id" ] || continue
    case $line in
    *'"initialize"'*)
        version=$(printf '%s\n' "$line" | sed -n 's/.*"protocolVersion" *: *"\([^"]*\)".*/\1/p')
        answer="\"protocolVersion\":\"${version:-2025-06-18}\",\"capabilities\":{\"tools\":{}},$about"
        [ -z "$hint" ] || answer="$answer,\"instructions\":\"$hint\""
        printf '{"jsonrpc":"2.0","id":%s,"result":{%s}}\n' "$id" "$answer"
        ;;
    *'"tools/list"'*) printf '{"jsonrpc":"2.0","id":%s,"result":{"tools":[]}}\n' "$id" ;;
    *'"ping"'*) printf '{"jsonrpc":"2.0","id":%s,"result":{}}\n' "$id" ;;
    *) printf '{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"nothing here"}}\n' "$id" ;;
    esac
done
