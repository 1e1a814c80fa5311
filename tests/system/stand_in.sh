#!/bin/sh
# The entry point of the one image that stands in for the official ones of Postgres and Redis: as much of theirs as docker/compose.yaml uses.
set -eu

if [ "${1:-}" != postgres ]; then exec "$@"; fi
programs=$(echo /usr/lib/postgresql/*/bin)
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    "$programs/initdb" --pgdata="$PGDATA" --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" \
        --auth-local=trust --auth-host=scram-sha-256 --encoding=UTF8 --no-sync >/dev/null
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    echo "CREATE DATABASE $POSTGRES_DB" | "$programs/postgres" --single -D "$PGDATA" postgres >/dev/null
fi
shift
exec "$programs/postgres" -D "$PGDATA" -c listen_addresses='*' "$@"
