#!/bin/sh
# Brings a Docker engine to a Debian machine and starts it, also in a container without systemd; with it what the tests build and compose
# images with.
# Safe to repeat: what is there stays as it is. Usage, as root: sh docker/install-engine.sh
set -eu

deadline=${DOCKER_START_DEADLINE_S:-60} # seconds
log=/var/log/dockerd.log

say() { echo "docker engine: $*" >&2; }
answers() { docker version --format '{{.Server.Version}}' 2>/dev/null; }

lacks() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" != installed ]; }

if version=$(answers); then
    engine=there
elif [ -n "${DOCKER_HOST:-}" ]; then
    say "nothing answers at DOCKER_HOST; unset it to use an engine on this machine, or start the one it names"
    exit 1
else
    engine=
fi
if ! command -v apt-get >/dev/null || [ ! -e /etc/debian_version ]; then
    [ -z "$engine" ] || { say "version $version answers; nothing to do"; exit 0; }
    say "this is not Debian: install Docker as your system does, start it, and come back"
    exit 1
fi

missing=
for package in busybox-static git debootstrap; do
    if lacks "$package"; then missing="$missing $package"; fi
done
# Either generation reads docker/compose.yaml; whoever has one keeps it.
if ! docker compose version >/dev/null 2>&1 && ! command -v docker-compose >/dev/null; then missing="$missing docker-compose"; fi
# An engine of Docker's own packages conflicts with Debian's, so one that is there is the one to start.
if [ -z "$engine" ] && ! command -v dockerd >/dev/null; then missing="$missing docker.io iptables"; fi

if [ -n "$engine" ] && [ -z "$missing" ]; then
    say "version $version answers; nothing to do"
    exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
    say "needs root: run \`sudo make docker-engine\`"
    exit 1
fi
if [ -n "$missing" ]; then
    say "installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q >&2
    # shellcheck disable=SC2086 # because it is a list of package names
    apt-get install -q -y --no-install-recommends $missing >&2
fi

if ! version=$(answers); then
    if [ -d /run/systemd/system ]; then
        say "starting the service"
        systemctl start docker >&2
    else
        say "starting dockerd in the background, log in $log"
        # A pid file that names no living dockerd is left by a machine that stopped hard, and dockerd refuses to start over it.
        if [ -e /var/run/docker.pid ] && ! grep -qs dockerd "/proc/$(cat /var/run/docker.pid)/comm"; then
            rm -f /var/run/docker.pid
        fi
        setsid dockerd >>"$log" 2>&1 </dev/null &
    fi
fi

waited=0
until version=$(answers); do
    if [ "$waited" -ge "$deadline" ]; then
        say "did not answer within $deadline s; its last words:"
        tail -n 5 "$log" >&2 2>/dev/null || true
        exit 1
    fi
    waited=$((waited + 1))
    sleep 1
done
say "version $version answers"
