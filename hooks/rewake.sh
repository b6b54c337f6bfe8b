#!/bin/sh
# rewake.sh [MAILDIRS]: waits for a task, and wakes the session with it. For a hook with `asyncRewake`, which a client
# does not wait for: status 2 wakes, with what stands on stderr; any other status means nothing.
#
# It waits on the bell, a FIFO that the agent holds open: no process every second, awake at once, and when the agent
# ends, which it does with its client, reading ends too. One waits for each session; every registered event starts it
# again, for Esc fires no Stop. Nothing is waited for where the session's own inbox works, nor in `claude -p`, which
# would wait for us.

trap 'exit 0' EXIT
[ "${CLAUDE_CODE_ENTRYPOINT-}" != sdk-cli ] || exit 0
case $0 in */*) . "${0%/*}/maildir.sh" ;; *) exit 0 ;; esac
umask 077

# At the start of a session the agent is still on its way.
tries=0
until find_dir "${1-}" && [ -p "$dir/bell" ]; do
    tries=$((tries + 1))
    [ "$tries" -le 30 ] && kill -0 "${CLAUDE_PID:-0}" 2>/dev/null || exit 0
    sleep 1 || exit 0
done
still_it || exit 0
# The hooks of the start came before the agent: it sees by this file that there are hooks.
{ : >>"$dir/activity"; } 2>/dev/null || :
[ ! -e "$dir/native" ] || exit 0

# The lock: pid and start of who waits. One who lost a race for a stale lock only waits beside the other.
lock=$dir/waiter
hold() {
    start_of $$ || :
    set -C
    { echo "$$ $ticks" >"$lock"; } 2>/dev/null
    held=$?
    set +C
    return "$held"
}
if ! hold; then
    pid= start=
    { read -r pid start <"$lock"; } 2>/dev/null || :
    case $pid in
        '' | *[!0-9]*) ;;
        *) if kill -0 "$pid" 2>/dev/null && { ! start_of "$pid" || [ "$ticks" = "$start" ]; }; then exit 0; fi ;;
    esac
    rm -f "$lock"
    hold || exit 0
fi
release() {
    { read -r pid start <"$lock"; } 2>/dev/null && [ "$pid" = $$ ] && rm -f "$lock"
    exit 0
}
trap release EXIT
trap 'exit 0' TERM INT HUP

# take FILE KIND: claims it, if its first line is whole; the claims are the positional parameters.
take() {
    named "$1" "$2" || return 1
    claim=$dir/cur/$name.$$
    mv "$1" "$claim" 2>/dev/null || return 1
    { line=$(head -n 1 "$claim"); } 2>/dev/null
    [ ${#line} -eq "$size" ]
}

# Wakes, if there is a task that nobody else claimed; notes go along, and are no reason.
wake() {
    set --
    for file in "$dir"/new/*; do
        [ $# -lt 8 ] && take "$file" task && set -- "$@" "$claim"
    done
    [ $# -gt 0 ] || return 0
    for file in "$dir"/new/*; do
        [ $# -lt 8 ] && take "$file" note && set -- "$@" "$claim"
    done
    for claim; do
        tail -n +2 "$claim" >&2
        echo >&2
    done
    mv "$@" "$dir/done/" 2>/dev/null
    rm -f "$lock"
    trap - EXIT
    exit 2
}

while [ -d "$dir/new" ] && [ ! -e "$dir/native" ]; do
    clock=
    for file in "$dir"/new/*; do
        named "$file" task && wake
    done
    # First for both ends, which never blocks, then for reading alone: so the end of the agent is the end of the file.
    exec 3<>"$dir/bell" 4<"$dir/bell" 3>&-
    read -r ring <&4 || break
    exec 4<&-
done
exit 0
