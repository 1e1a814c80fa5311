# Runs as root: gives the volumes to the agent, then becomes the agent for good.
set -eu
box=/bin/busybox
token=/configs/.auth_token

[ -n "${WORKSPACE_ID:-}" ] || { echo "start agent: WORKSPACE_ID is not set" >&2; exit 64; }
[ -s /configs/config.yaml ] || { echo "start agent: /configs/config.yaml is missing or empty" >&2; exit 66; }
# Said before anything else runs, so that a token which comes too late can be seen in the log.
if [ -f "$token" ]; then
    echo "token file: mode $($box stat -c %a "$token")"
else
    echo "token file: none"
fi

$box chown -R 1000:1000 /configs
if [ -d /workspace ]; then $box chown -R 1000:1000 /workspace; fi
$box mkdir -p /tmp
$box chmod 1777 /tmp 2>/dev/null || true

# A pid file of its own, because without one start-stop-daemon finds this very shell and starts nothing.
exec $box start-stop-daemon -S -q -p /tmp/none.pid -c agent:agent -x $box -- sh /app/agent.sh
