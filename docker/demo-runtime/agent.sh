# Runs as uid 1000: serves the agent card, registers with the platform, then sends heartbeats for ever.
set -u
box=/bin/busybox
short=$(printf %.12s "$WORKSPACE_ID")
every=${HEARTBEAT_SECONDS:-30}
started=$($box date +%s)
card="{\"name\":\"demo-$short\",\"description\":\"A demonstration agent\",\"version\":\"1.0.0\",\"url\":\"http://ws-$short:8000\",\"capabilities\":{\"streaming\":false},\"skills\":[]}"

# PLATFORM_URL is http://host[:port][/path]; this runtime has no TLS.
rest=${PLATFORM_URL:-}
rest=${rest#http://}
case $rest in */*) prefix=/${rest#*/} ;; *) prefix= ;; esac
prefix=${prefix%/}
address=${rest%%/*}
host=${address%:*}
case $address in *:*) port=${address##*:} ;; *) port=80 ;; esac

# Each child is waited for in the background, because a shell hears TERM only between two commands.
server=
child=
trap 'kill $server $child 2>/dev/null; exit 0' TERM INT
in_background() { "$@" & child=$!; wait $child; }

# The token is read by post.sh from its file at each call: never in an argv, never an old one.
post() {
    HOST=$address TARGET=$prefix$1 BODY=$2 in_background \
        $box timeout 15 $box nc -w 5 "$host" "$port" -e $box sh /app/post.sh
}
register() {
    post /registry/register "{\"id\":\"$WORKSPACE_ID\",\"url\":\"http://ws-$short:8000\",\"agent_card\":$card}"
}
heartbeat() {
    uptime=$(($($box date +%s) - started))
    post /registry/heartbeat "{\"workspace_id\":\"$WORKSPACE_ID\",\"error_rate\":0,\"sample_error\":\"\",\"active_tasks\":0,\"current_task\":\"\",\"uptime_seconds\":$uptime}"
}

$box mkdir -p /tmp/www/.well-known
printf '%s\n' "$card" >/tmp/www/.well-known/agent-card.json
printf '%s\n' "$card" >/tmp/www/.well-known/agent.json
$box httpd -f -p 0.0.0.0:8000 -h /tmp/www &
server=$!

case ${PLATFORM_URL:-} in
http://?*) ;;
*)
    echo "register agent: PLATFORM_URL is not an http:// address; serving the card only"
    while :; do in_background $box sleep 3600; done
    ;;
esac

pause=1
while :; do
    if register; then
        echo "registered"
        pause=1
        while in_background $box sleep "$every"; heartbeat || heartbeat; do :; done
        echo "heartbeat refused or unanswered; registering again"
    else
        echo "not registered yet; next try in $pause s"
        in_background $box sleep $pause
        pause=$((pause * 2 > 15 ? 15 : pause * 2))
    fi
done
