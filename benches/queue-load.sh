#!/usr/bin/env bash
# How many events a second are accepted into SQS and appended by two workers: a server with a worker,
# and a worker by itself, which share a guard, on the PostgreSQL of AUDIT_STORE_URL and the SQS of
# AUDIT_SQS_ENDPOINT. The database, and each kind of queue, is made anew. After `dev/services up --bench`:
#   set -a; . .dev/env; set +a; benches/queue-load.sh
# A JVM takes its time to get fast: WARM_UP seconds of load come before the first run of each kind.
#   SECONDS_EACH=2 RUNS=1 TENANTS=1 benches/queue-load.sh fifo
#   BUILT=target/debug benches/queue-load.sh    programs that were built before
set -euo pipefail
cd "$(dirname "$0")/.."

: "${AUDIT_STORE_URL:?}" "${AUDIT_SQS_ENDPOINT:?}" "${AUDIT_TEST_POSTGRES_URL:?}"
unset AUDIT_SEARCH_URL
port=${PORT:-18080}
kinds=("$@")
[ ${#kinds[@]} -gt 0 ] || kinds=(standard fifo)

if [ -z "${BUILT:-}" ]; then
    cargo build --release --locked --quiet -p audit-server -p benches --features audit-server/sqs
fi
data=$(mktemp -d "${TMPDIR:-/tmp}/audit-queue-load.XXXXXX")
servers=()
stop() {
    for server in "${servers[@]}"; do kill "$server" 2>/dev/null || true; done
    for server in "${servers[@]}"; do wait "$server" 2>/dev/null || true; done
    servers=()
}
. benches/superuser.sh
database=audit_queue_load_$$
trap 'stop; rm -rf "$data"; drop_database "$database" || true' EXIT
make_database "$database" "$AUDIT_STORE_URL"
export AUDIT_STORE_URL=${AUDIT_STORE_URL%/*}/$database AUDIT_TLOG_GUARD=$data/guard
target=$PWD/${BUILT:-target/release}

serve() { # name, port, roles
    mkdir -p "$data/$1"
    (cd "$data/$1" && AUDIT_BIND=127.0.0.1:$2 AUDIT_ROLES=$3 AUDIT_RATE_LIMIT=off AUDIT_LOG=warn \
        exec "$target/audit-server" serve) >"$data/$1.log" 2>&1 &
    servers+=($!)
    for _ in $(seq 300); do
        if curl -fs "http://127.0.0.1:$2/health/ready" >/dev/null; then return; fi
        sleep 0.1
    done
    cat "$data/$1.log" >&2
    exit 1
}

load() {
    "$target/http-load" --address "127.0.0.1:$port" queue --tenants "${TENANTS:-64}" "$@"
}

echo "machine: $(nproc) x $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2- | sed 's/^ //'), $(uname -sr), $(date -u +%F)"
for kind in "${kinds[@]}"; do
    case $kind in
        standard) suffix= ;;
        fifo) suffix=.fifo ;;
        *) echo "no such kind of queue: $kind" >&2; exit 2 ;;
    esac
    echo "-- $kind"
    export AUDIT_QUEUE_URL=$AUDIT_SQS_ENDPOINT/000000000000/load-$$-$kind$suffix
    (cd "$data" && "$target/audit-server" migrate)
    serve one "$port" api,worker
    serve other "$((port + 1))" worker
    AUDIT_TOKEN=$(cat "$data/one/audit-data/token")
    export AUDIT_TOKEN
    load --seconds "${WARM_UP:-40}" --runs 1 >/dev/null
    load --seconds "${SECONDS_EACH:-8}" --runs "${RUNS:-3}"
    stop
done
