#!/bin/sh
# deliver.sh EVENT [MAILDIRS]: hands waiting messages to the client when EVENT happens, and notes what it is doing.
#
# With nothing waiting it prints nothing and starts no other process. Whatever goes wrong, it prints nothing and ends
# with 0: of a hook, a client takes status 2 as "block this". A text is claimed by a rename, so it is shown once.

trap 'exit 0' EXIT
event=${1-}
case $0 in */*) . "${0%/*}/maildir.sh" ;; *) exit 0 ;; esac
umask 077
find_dir "${2-}" || exit 0

# once_dead: the session lives and its agent does not; the user is told, once.
once_dead() {
    [ -r "$dir/agent" ] && [ ! -e "$dir/told" ] || return 1
    { read -r agent <"$dir/agent"; } 2>/dev/null || return 1
    case $agent in '' | *[!0-9]*) return 1 ;; esac
    kill -0 "$agent" 2>/dev/null && return 1
    { : >"$dir/told"; } 2>/dev/null && [ -e "$dir/told" ]
}
death='talkbus: the agent of this session has ended; mail waits on the bus. To bring it back: /mcp, talkbus, Reconnect.'

case $event in
    SessionStart) doing idle ;;
    UserPromptSubmit | PreToolUse | PostToolUse | PostToolUseFailure) doing busy ;;
    Stop) doing idle ;;
    SessionEnd)
        doing ended
        exit 0
        ;;
    Notification)
        payload=$(cat)
        case $payload in
            *'"notification_type":"idle_prompt"'*) doing idle ;;
            *'"notification_type":"permission_prompt"'* | *'"notification_type":"elicitation_dialog"'*) doing asking ;;
        esac
        exit 0
        ;;
    *) exit 0 ;;
esac

# Does anything wait? A note is no reason to go on when a turn ends.
task= any=
for file in "$dir"/new/*; do
    named "$file" task && task=1 any=1 && break
    named "$file" note && any=1
done
[ "$event" != Stop ] || any=$task
if [ ! "$any" ]; then
    if [ "$event" = UserPromptSubmit ] && once_dead; then
        printf '%s\n' "{\"systemMessage\":\"$death\"}"
    fi
    exit 0
fi

still_it || exit 0

# A subagent has the hooks of its session: what is for the session is not for it. Only the client's own fields are
# looked at, they come before what a tool or a user may have said.
payload=$(cat) || :
case ${payload%%'"hook_event_name"'*} in *'"agent_id"'*) exit 0 ;; esac
if [ "$event" = Stop ]; then
    case $payload in *'"stop_hook_active":true'*) exit 0 ;; esac
fi

# take FILE KIND: claims it and adds it to $text; the claims are the positional parameters. At most 9,000 octets, or
# one text: above 10,000 characters the client shows a preview.
text= total=0 claimed= full= clock=
take() {
    [ ! "$full" ] && named "$1" "$2" || return 1
    if [ "$claimed" ] && [ $((total + size)) -gt 9000 ]; then
        full=1
        return 1
    fi
    claim=$dir/cur/$name.$$
    mv "$1" "$claim" 2>/dev/null || return 1
    { line=$(head -n 1 "$claim"); } 2>/dev/null
    case $line in '"'*'"') ;; *) return 1 ;; esac
    [ ${#line} -eq "$size" ] || return 1
    line=${line#?}
    text=$text${text:+\\n\\n}${line%?}
    total=$((total + size)) claimed=1
}

set --
for file in "$dir"/new/*; do
    if [ "$event" = Stop ]; then
        take "$file" task && set -- "$@" "$claim"
    elif take "$file" task || take "$file" note; then
        set -- "$@" "$claim"
    fi
done
[ "$claimed" ] || exit 0
if [ "$event" = Stop ]; then
    for file in "$dir"/new/*; do
        take "$file" note && set -- "$@" "$claim"
    done
    doing busy
fi
# After Stop too the turn goes on with it; a "block" with the text as its reason would reach the model twice.
printf '%s\n' "{\"hookSpecificOutput\":{\"hookEventName\":\"$event\",\"additionalContext\":\"$text\"}}" || exit 0
mv "$@" "$dir/done/" 2>/dev/null
exit 0
