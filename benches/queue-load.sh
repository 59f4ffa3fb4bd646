#!/usr/bin/env bash
# How many events a second are accepted into SQS and appended by two workers: a server with a worker,
# and a worker by itself, on the database of AUDIT_STORE_URL and the SQS of AUDIT_SQS_ENDPOINT. Each
# kind of queue is made anew. After `dev/services up`:
#   set -a; . .dev/env; set +a; benches/queue-load.sh
# A database of its own is filled, not emptied: use one that is made for it.
#   SECONDS_EACH=2 RUNS=1 TENANTS=1 benches/queue-load.sh fifo
set -euo pipefail
cd "$(dirname "$0")/.."

: "${AUDIT_STORE_URL:?}" "${AUDIT_SQS_ENDPOINT:?}"
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
trap 'stop; rm -rf "$data"' EXIT
target=$PWD/target/release

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
    AUDIT_TOKEN=$(cat "$data/one/audit-data/token") "$target/http-load" \
        --address "127.0.0.1:$port" queue --seconds "${SECONDS_EACH:-8}" --runs "${RUNS:-3}" \
        --tenants "${TENANTS:-64}"
    stop
done
