#!/usr/bin/env bash
# The whole HTTP series against a server of its own in a new folder: what the HTTP framework does alone,
# single writes, bulks, a steady rate, reads and proofs of a filled log, an export, the evidence of the
# whole log, exported and verified, and what others wait for while entries are erased and pruned. Prints
# the machine and its fsync time with the figures.
#   benches/http-load.sh            every part at its full size
#   ENTRIES=100000 SECONDS_EACH=2 RUNS=1 benches/http-load.sh post bulk
set -euo pipefail
cd "$(dirname "$0")/.."

entries=${ENTRIES:-1000000}
seconds=${SECONDS_EACH:-8}
runs=${RUNS:-3}
steady=${STEADY_SECONDS:-60}
port=${PORT:-18080}
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(echo post bulk sustain reads export evidence erase prune)

cargo build --release --locked --quiet -p audit-server -p audit-cli -p benches
data=$(mktemp -d "${TMPDIR:-/tmp}/audit-load.XXXXXX")
server=
cleanup() {
    if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; fi
    rm -rf "$data"
}
trap cleanup EXIT

echo_only() {
    target/release/bare-echo "127.0.0.1:$port" &
    server=$!
    for _ in $(seq 300); do
        curl -s -o /dev/null "http://127.0.0.1:$port/" && break
        sleep 0.1
    done
    AUDIT_TOKEN=none target/release/http-load --address "127.0.0.1:$port" post --bare \
        --seconds "$seconds" --runs "$runs"
    kill "$server"
    wait "$server" || true
    server=
}

start() {
    rm -rf "$data/run"
    mkdir -p "$data/run"
    AUDIT_BIND=127.0.0.1:$port AUDIT_STORE_URL=sqlite://$data/run/audit.db AUDIT_RATE_LIMIT=off \
        AUDIT_LOG=warn target/release/audit-server serve >"$data/server.log" 2>&1 &
    server=$!
    for _ in $(seq 300); do
        if curl -fs "http://127.0.0.1:$port/health/ready" >/dev/null; then
            AUDIT_TOKEN=$(cat "$data/run/token")
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
    echo "server: $(grep -E 'VmHWM|VmRSS' /proc/"$server"/status | tr -s ' \t' ' ' | tr '\n' ' ')"
    kill "$server"
    wait "$server" || true
    server=
}

load() { target/release/http-load --address "127.0.0.1:$port" --folder "$data/run" "$@"; }

audit() { AUDIT_URL=http://127.0.0.1:$port target/release/audit "$@"; }

# Waits until a head over all entries is signed, exports their evidence, and verifies it from its folder.
evidence() {
    local began status=0
    began=$(date +%s.%N)
    audit export --evidence "$data/evidence"
    echo "evidence: exported in $(since "$began") s, $(du -sm "$data/evidence" | cut -f1) MiB"
    began=$(date +%s.%N)
    target/release/audit verify "$data/evidence" >"$data/report" || status=$?
    echo "audit verify: status $status in $(since "$began") s"
    head -n 3 "$data/report"
    rm -rf "$data/evidence"
}

since() { python3 -c 'import sys, time; print(round(time.time() - float(sys.argv[1]), 2))' "$1"; }

echo "machine: $(nproc) x $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2- | sed 's/^ //'), $(uname -sr), $(date -u +%F)"
for part in "${parts[@]}"; do
    echo "-- $part"
    if [ "$part" = echo ]; then
        echo_only
        continue
    fi
    start
    case $part in
        post) load post --seconds "$seconds" --runs "$runs" ;;
        bulk) load bulk --seconds "$seconds" --runs "$runs" ;;
        sustain) load sustain --seconds "$steady" ;;
        reads) load fill --entries "$entries" && load reads ;;
        export) load fill --entries "$entries" && load export ;;
        evidence) load fill --entries "$entries" && evidence ;;
        erase) load fill --entries "$entries" && load erase ;;
        prune) load prune --entries "$entries" ;;
        *) echo "no such part: $part" >&2; exit 2 ;;
    esac
    stop
done
