#!/bin/sh
# Makes the secrets that docker/compose.yaml mounts, each in a file of its own. Safe to repeat: what is there stays as it is, because
# a new key cannot open what an old one sealed. Usage: sh docker/make-secrets.sh [FOLDER]
set -eu

folder=${1:-$(dirname "$0")/secrets}
umask 077
mkdir -p "$folder"
# The folder is closed and its files are not: on this host nobody else comes as far as the files, while in a container, into which
# each is mounted by itself, a user without rights must be able to read it.
chmod 700 "$folder"

random() { od -An -N "$1" -tx1 /dev/urandom | tr -d ' \n'; }
keep() { # the name; the content is stdin
    if [ -e "$folder/$1" ]; then cat >/dev/null; else cat >"$folder/.$1" && mv "$folder/.$1" "$folder/$1"; fi
    chmod 444 "$folder/$1"
}

random 24 | keep postgres_password
printf 'postgresql://molecule:%s@postgres:5432/molecule' "$(cat "$folder/postgres_password")" | keep database_url # pragma: allowlist secret
printf 'requirepass %s\nsave ""\nappendonly no\n' "$(random 24)" | keep redis_conf
printf 'redis://:%s@redis:6379/0' "$(sed -n 's/^requirepass //p' "$folder/redis_conf")" | keep redis_url # pragma: allowlist secret
random 32 | keep secrets_encryption_key
# Empty until somebody writes the token of the server of templates into it.
printf '' | keep gitea_token
echo "secrets: in $folder; keep secrets_encryption_key somewhere else as well, because nothing opens without it" >&2
