#!/bin/sh
# The status line of a session: `api · 3 peers · ✉2`, from the files its agent keeps; no Python is started.
#
# usage: statusline.sh [--quiet] [--after COMMAND]
#   --quiet          say nothing where there is no session
#   --after COMMAND  run COMMAND first, with the client's JSON on stdin, and put ours behind its last line
#
# Read by the client after every turn and every few seconds, so it forks for the user's own COMMAND only (and for
# `id`, where XDG_RUNTIME_DIR is not set). It fails open: whatever is missing, the exit code is 0.

quiet='' after=''
while [ $# -gt 0 ]; do
    case $1 in
    --quiet) quiet=1 ;;
    --after) after=${2-} && [ $# -gt 1 ] && shift ;;
    esac
    shift
done

# Facts of process $1, where there is /proc: its state, parent and start time. The name in parentheses is its own
# choice and may hold anything, so they are counted from the last ')'.
facts() {
    state='' up='' ticks=''
    [ -r "/proc/$1/stat" ] || return 1
    { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
    # shellcheck disable=SC2086
    set -- ${stat##*) }
    state=${1-} up=${2-} ticks=${20-}
}

# Whether process $1, which began at $2, still lives. A pid alone is given out again.
alive() {
    case ${1:-x} in *[!0-9]*) return 1 ;; esac
    kill -0 "$1" 2>/dev/null || return 1
    facts "$1" || return 0
    case $state in Z | X) return 1 ;; esac
    case ${2-} in
    "$boot"-*) [ "$2" = "$boot-$ticks" ] ;;
    *-*) return 1 ;; # of another boot
    esac
}

# The parent of process $1, in `up`.
parent() {
    facts "$1" && return
    up=$(ps -o ppid= -p "$1" 2>/dev/null)
    up=${up##* }
}

# Whether the broker described by a record in one of the folders "$@" lives.
broker() {
    for place in "$@"; do
        [ -r "$place/bus.json" ] || continue
        pid='' start=''
        while read -r key value; do
            value=${value%,}
            case $key in
            '"pid":') pid=$value ;;
            '"start":') start=${value#\"} start=${start%\"} ;;
            esac
        done <"$place/bus.json"
        alive "$pid" "$start" && return 0
    done
    return 1
}

# The folder of this client's line: $found, and its number in $client. Sets nothing where there is none.
search() {
    for place in "$@"; do
        [ -d "$place/status" ] || continue
        pid=${CLAUDE_PID:-$PPID} steps=0
        while [ "${pid:-0}" -gt 1 ] 2>/dev/null && [ $steps -lt 32 ]; do
            if [ -r "$place/status/$pid.line" ]; then
                found=$place client=$pid
                return 0
            fi
            [ -z "${CLAUDE_PID-}" ] || break
            parent "$pid"
            pid=$up steps=$((steps + 1))
        done
    done
    return 1
}

# Whether this machine uses another one's broker, as the environment, a join, or a config.toml in one of "$@" says.
hub() {
    [ -z "${TALKBUS_HUB-}" ] || return 0
    for place in "$@"; do
        [ ! -e "$place/hub.json" ] || return 0
        [ -r "$place/config.toml" ] || continue
        while read -r key value; do
            case $key$value in hub=*[\"\'][!\"\']*) return 0 ;; esac
        done <"$place/config.toml"
    done
    return 1
}

# Ours, in `text`. "$@" are the folders that may be the runtime directory, then those of state and configuration.
ours() {
    text='' found='' client='' agent='' start='' kind=''
    if search "$@"; then
        { read -r agent start kind <"$found/status/$client.pid"; } 2>/dev/null
        alive "$agent" "$start" || found=''
    fi
    if [ -n "$found" ]; then
        { read -r text <"$found/status/$client.line"; } 2>/dev/null
        [ "$kind" = hub ] || hub "$@" || broker "$@" || text='bus down'
    elif [ -z "$quiet" ]; then
        text='no session'
        hub "$@" || broker "$@" || text='bus down'
    fi
}

boot=''
{ read -r boot </proc/sys/kernel/random/boot_id; } 2>/dev/null
boot=${boot%%-*}

if [ -n "$after" ]; then
    theirs=$(sh -c "$after")
elif [ ! -t 0 ]; then
    while read -r _; do :; done # the client shall not write into a closed pipe
fi

case ${TALKBUS_HOME-} in
'')
    uid=''
    [ -n "${XDG_RUNTIME_DIR-}" ] || uid=$(id -u)
    state=${XDG_STATE_HOME:-$HOME/.local/state}/talkbus
    library=$HOME/Library
    ours ${XDG_RUNTIME_DIR:+"$XDG_RUNTIME_DIR/talkbus"} \
        ${uid:+"/run/user/$uid/talkbus"} ${uid:+"/var/run/user/$uid/talkbus"} \
        ${uid:+"${TMPDIR:-/tmp}/runtime-$uid/talkbus"} \
        "$library/Caches/TemporaryItems/talkbus" "$state/run" "$library/Application Support/talkbus/run" \
        "$state" "$library/Application Support/talkbus" "${XDG_CONFIG_HOME:-$HOME/.config}/talkbus"
    ;;
*)
    root=$TALKBUS_HOME
    case $root in "~/"*) root=$HOME/${root#??} ;; esac
    ours "$root/run" "$root/state" "$root/config"
    ;;
esac

if [ -n "${theirs-}" ] && [ -n "$text" ]; then
    printf '%s\033[0m · %s\n' "$theirs" "$text"
elif [ -n "${theirs-}$text" ]; then
    printf '%s\n' "${theirs-}$text"
fi
exit 0
