#!/usr/bin/env bash
# The whole HTTP series against a server of its own in a new folder: what the HTTP framework does alone,
# single writes, bulks, a steady rate, reads of a filled log, an export, what evidence costs (proofs, and the
# whole log exported and verified), and what others wait for while entries are erased and pruned. Prints the
# machine and its fsync time with the figures. After an erasure and a prune it demands that proofs from before
# hold and that the whole log verifies; it prints the space that the store took before, took then, and takes
# after `audit-server vacuum`. Exit status: not 0 when a call or a proof fails; a slow one is no failure.
#   benches/http-load.sh            every part at its full size
#   ENTRIES=100000 SECONDS_EACH=2 RUNS=1 benches/http-load.sh post bulk
#   BUILT=target/debug ENTRIES=20000 benches/http-load.sh erase    programs that were built before
# On PostgreSQL, after `dev/services up --bench`, with a new database for each part:
#   set -a; . .dev/env; set +a; STORE=$AUDIT_STORE_URL benches/http-load.sh erase prune
# CONNECTIONS=1 says how many clients send bulks, ROLES=api what the server does: no index then.
set -euo pipefail
cd "$(dirname "$0")/.."

entries=${ENTRIES:-1000000}
seconds=${SECONDS_EACH:-8}
connections=${CONNECTIONS:-4}
runs=${RUNS:-3}
steady=${STEADY_SECONDS:-60}
port=${PORT:-18080}
store=${STORE:-}
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(echo post bulk sustain reads export evidence erase prune)

# The services' other addresses are not what is measured here.
unset AUDIT_STORE_URL AUDIT_QUEUE_URL AUDIT_SQS_ENDPOINT AUDIT_SEARCH_URL
case $store in
    '') engine=SQLite ;;
    postgres://*) engine=PostgreSQL; : "${AUDIT_TEST_POSTGRES_URL:?is needed beside STORE, to make databases}" ;;
    *) echo "STORE=$store: postgres://… is expected, or nothing" >&2; exit 2 ;;
esac
if [ -z "${BUILT:-}" ]; then
    cargo build --release --locked --quiet -p audit-server -p audit-cli -p benches
fi
built=$PWD/${BUILT:-target/release}
data=$(mktemp -d "${TMPDIR:-/tmp}/audit-load.XXXXXX")
database=
server=
. benches/superuser.sh
fail() { printf 'http-load.sh: %s\n' "$*" >&2; exit 1; }

cleanup() {
    if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; fi
    rm -rf "$data"
    [ -z "$database" ] || drop_database "$database"
}
trap cleanup EXIT

echo_only() {
    "$built/bare-echo" "127.0.0.1:$port" &
    server=$!
    for _ in $(seq 300); do
        curl -s -o /dev/null "http://127.0.0.1:$port/" && break
        sleep 0.1
    done
    AUDIT_TOKEN=none "$built/http-load" --address "127.0.0.1:$port" post --bare \
        --seconds "$seconds" --runs "$runs"
    kill "$server"
    wait "$server" || true
    server=
}

# Becomes a command of the server's, in the data folder.
audit-server() {
    cd "$data/run"
    exec env AUDIT_BIND="127.0.0.1:$port" AUDIT_RATE_LIMIT=off AUDIT_LOG=warn \
        ${ROLES:+AUDIT_ROLES="$ROLES"} ${database:+AUDIT_STORE_URL="${store%/*}/$database"} "$built/audit-server" "$@"
}

start() {
    rm -rf "$data/run"
    mkdir -p "$data/run"
    if [ -n "$store" ]; then
        database=audit_load_$$
        make_database "$database" "$store"
        (audit-server migrate)
    fi
    (audit-server serve) >"$data/server.log" 2>&1 &
    server=$!
    for _ in $(seq 300); do
        if curl -fs "http://127.0.0.1:$port/health/ready" >/dev/null; then
            AUDIT_TOKEN=$(cat "$data/run/audit-data/token")
            export AUDIT_TOKEN
            return
        fi
        kill -0 "$server" 2>/dev/null || { cat "$data/server.log" >&2; exit 1; }
        sleep 0.1
    done
    echo "the server did not become ready" >&2
    exit 1
}

stop() {
    [ -n "$server" ] || return 0
    echo "server: $(grep -E 'VmHWM|VmRSS' /proc/"$server"/status | tr -s ' \t' ' ' | tr '\n' ' ')"
    kill "$server"
    wait "$server" || true
    server=
}

load() { "$built/http-load" --address "127.0.0.1:$port" --folder "$data/run" "$@"; }

audit() { AUDIT_URL=http://127.0.0.1:$port "$built/audit" "$@"; }

now() { date -u +%s.%N; }
since() { python3 -c 'import sys, time; print(round(time.time() - float(sys.argv[1]), 2))' "$1"; }

# Waits until a head over all entries is signed, exports their evidence, and verifies it from its folder, with
# these options.
evidence() {
    local began took size status=0
    began=$(now)
    audit export --quiet --evidence "$data/evidence"
    echo "evidence: exported in $(since "$began") s, $(du -sm "$data/evidence" | cut -f1) MiB"
    began=$(now)
    "$built/audit" verify "$data/evidence" "$@" >"$data/report" || status=$?
    took=$(since "$began")
    head -n 3 "$data/report"
    [ "$status" = 0 ] || fail "audit verify: exit status $status: $(cat "$data/report")"
    size=$(sed -n 's/^Root .* at size //p' "$data/report")
    echo "audit verify: status 0, $size entries in $took s, $(python3 -c \
        'import sys; print(round(int(sys.argv[1]) / max(float(sys.argv[2]), 0.01)))' "$size" "$took") entries/s"
    rm -rf "$data/evidence"
}

# What the store takes: bytes on disk, all files of SQLite or the whole database.
space() {
    if [ -n "$store" ]; then
        as_superuser postgres "SELECT pg_database_size('$database')"
    else
        du -s -B1 "$data/run" | cut -f1
    fi
}
# Says it, and how it differs from $2.
tell_space() {
    local now
    now=$(space)
    printf 'space %s: %d MiB' "$1" $((now >> 20))
    [ -z "${2:-}" ] || printf ' (%+d MiB)' $(((now - $2) / (1 << 20)))
    printf '\n'
}
# Waits until it changes by less than 1 MiB: rows that are pruned go in steps, which begin within five seconds,
# and a server at rest writes a page now and then.
settled() {
    local last=0 now change deadline=$((SECONDS + 900)) still=$SECONDS
    while [ $((SECONDS - still)) -lt 12 ]; do
        [ "$SECONDS" -lt "$deadline" ] || fail "the store's size still changes after 15 minutes"
        now=$(space)
        change=$((now - last))
        [ "${change#-}" -lt $((1 << 20)) ] || { last=$now still=$SECONDS; }
        sleep 1
    done
}

# Takes entries out of a filled log with `load $@`, and looks at what is left.
taken() {
    local before began
    settled
    before=$(space)
    tell_space "before"
    audit head >"$data/head"
    load "$@"
    settled
    tell_space "after" "$before"
    evidence --known "$data/head" --key "$(audit head --key)"
    stop
    began=$(now)
    (audit-server vacuum) >"$data/vacuum.log" 2>&1 || fail "vacuum: $(cat "$data/vacuum.log")"
    tell_space "after audit-server vacuum, which took $(since "$began") s" "$before"
}

echo "machine: $(nproc) x $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2- | sed 's/^ //'), $(uname -sr), $(date -u +%F)"
echo "store: $engine"
for part in "${parts[@]}"; do
    echo "-- $part"
    if [ "$part" = echo ]; then
        echo_only
        continue
    fi
    start
    case $part in
        post) load post --seconds "$seconds" --runs "$runs" ;;
        bulk) load bulk --connections "$connections" --seconds "$seconds" --runs "$runs" ;;
        sustain) load sustain --seconds "$steady" ;;
        reads) load fill --entries "$entries"; load reads; load proofs ;;
        export)
            load fill --entries "$entries"
            for _ in $(seq "$runs"); do load export; done
            ;;
        evidence) load fill --entries "$entries"; load proofs; evidence ;;
        erase) load fill --entries "$entries"; taken erase ;;
        prune)
            load fill --entries $((entries / 2))
            before=$(date -u +%FT%T.%6NZ)
            load fill --entries $((entries - entries / 2))
            taken prune --before "$before"
            ;;
        *) echo "no such part: $part" >&2; exit 2 ;;
    esac
    stop
done
