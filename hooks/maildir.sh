# What deliver.sh and rewake.sh share; sourced, and functions of the shell itself: no process is started but by in_time.
# Names of texts and the folders are those of agent/delivery/maildir.py. POSIX sh: dash, busybox, bash.

# find_dir [MAILDIRS]: sets $dir to the folder of our client, CLAUDE_PID; fails when there is none.
# TALKBUS_HOME decides alone; else the folder the installer named, then those of the platform.
find_dir() {
    dir=
    case ${CLAUDE_PID-} in '' | *[!0-9]*) return 1 ;; esac
    if [ "${TALKBUS_HOME-}" ]; then
        case $TALKBUS_HOME in
            '~/'*) in_root "$HOME/${TALKBUS_HOME#??}/run/maildirs" ;;
            *) in_root "$TALKBUS_HOME/run/maildirs" ;;
        esac
        return
    fi
    { [ "${1-}" ] && in_root "$1"; } ||
        { [ "${XDG_RUNTIME_DIR-}" ] && in_root "$XDG_RUNTIME_DIR/talkbus/maildirs"; } ||
        in_root "/run/user/*/talkbus/maildirs" ||
        in_root "/var/run/user/*/talkbus/maildirs" ||
        in_root "/tmp/runtime-*/talkbus/maildirs" ||
        { [ "${HOME-}" ] && { in_root "$HOME/Library/Caches/TemporaryItems/talkbus/maildirs" ||
            in_root "${XDG_STATE_HOME:-$HOME/.local/state}/talkbus/run/maildirs" ||
            in_root "$HOME/Library/Application Support/talkbus/run/maildirs"; }; }
}

# in_root ROOT: the folder in there. Only one that is ours: anybody may make folders in /tmp.
in_root() {
    found=
    case $1 in
        */\*/* | */runtime-\*/*) for candidate in ${1%%\**}*${1#*\*}/"$CLAUDE_PID"-*; do candidate; done ;;
        *) for candidate in "$1/$CLAUDE_PID"-*; do candidate; done ;;
    esac
    [ "$found" ]
}

# One is taken as it is: what it costs to look closer is for when something waits (still_it). Of several, the right one.
candidate() {
    [ -d "$candidate/new" ] && [ -O "$candidate" ] || return
    if [ "$found" ] && ! still_it; then
        found=
    fi
    if [ ! "$found" ]; then
        dir=$candidate found=1
    fi
}

# still_it: whether $dir is of the process that has the pid now, for a pid comes again. Its start is in the folder's
# name; where a shell cannot read starts, the folder counts as long as its agent lives.
still_it() {
    if start_of "$CLAUDE_PID"; then
        case $dir in *"-$ticks") return 0 ;; *) return 1 ;; esac
    fi
    agent=
    { read -r agent <"$dir/agent"; } 2>/dev/null
    case $agent in '' | *[!0-9]*) return 1 ;; esac
    kill -0 "$agent" 2>/dev/null
}

# start_of PID: sets $ticks to the start of a process in clock ticks, on Linux; else fails. A shell reads octet by octet,
# so this costs some hundred system calls.
start_of() {
    ticks=
    [ -r "/proc/$1/stat" ] || return 1
    { IFS= read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
    # Its name, in parentheses, may hold anything: count from the last one.
    nth_word 20 ${stat##*) } && ticks=$word
}

nth_word() {
    [ $# -gt "$1" ] || return 1
    shift "$1"
    word=$1
}

# named FILE KIND: whether it has a name of ours and may be shown still; sets $name and $size, the length of its first
# line.
named() {
    name=${1##*/}
    case $name in *[!0-9a-z.]*) return 1 ;; esac
    case $name in [0-9]*."$2".[0-9]*.????????????) ;; *) return 1 ;; esac
    size=${name#*.*.}
    until=${size#*.}
    size=${size%%.*}
    case $size in '' | *[!0-9]* | ???????*) return 1 ;; esac
    case $until in *.*) in_time "${until%%.*}" ;; esac
}

# in_time UNTIL: whether that second is still to come. Only such a text costs a process, once for each $clock. Without
# a clock it is not shown: its agent takes it back.
clock=
in_time() {
    [ "$clock" ] || clock=$(date +%s 2>/dev/null) || clock=
    case $1$clock in *[!0-9]* | ?????????????????????????*) return 1 ;; esac
    [ "$1" ] && [ "$clock" ] && [ "$clock" -lt "$1" ]
}

# doing WHAT: what the session is doing, for the agent. Always of one length and written over what was there: to cut a
# file that is on a disk costs some file systems milliseconds.
doing() {
    { printf '%-8s%-24.24s\n' "$1" "$event" 1<>"$dir/activity"; } 2>/dev/null || :
}
