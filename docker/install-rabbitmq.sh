#!/bin/sh
# Brings RabbitMQ's programs to a Debian machine, for the tests: each starts a private node of its own, so no service is left running.
# Safe to repeat: what is there stays as it is. Usage, as root: sh docker/install-rabbitmq.sh
set -eu

policy=/usr/sbin/policy-rc.d

say() { echo "rabbitmq: $*" >&2; }
version() { dpkg-query -W -f '${Version}' rabbitmq-server 2>/dev/null; }

if command -v rabbitmq-server >/dev/null || [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ]; then
    say "$(version || echo 'a version of its own') is there; nothing to do"
    exit 0
fi
if ! command -v apt-get >/dev/null || [ ! -e /etc/debian_version ]; then
    say "this is not Debian: install RabbitMQ as your system does, and come back"
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    say "needs root: run \`sudo make rabbitmq\`"
    exit 1
fi

# Debian starts what it installs unless this file says no. A machine that has one has decided already.
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    ours=yes
else
    ours=
fi
say "installing rabbitmq-server"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q >&2
apt-get install -q -y --no-install-recommends rabbitmq-server >&2
# Nor at the next boot.
if [ -n "$ours" ] && [ -d /run/systemd/system ]; then systemctl disable rabbitmq-server >&2; fi
say "version $(version) is installed; no service was started"
