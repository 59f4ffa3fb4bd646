#!/usr/bin/env bash
# What evidence costs: an append with and without hashing, side by side in one run, and the bytes of an
# entry that are there for its proofs alone. A build of its own, since no other one can leave hashes out.
#   benches/evidence-cost.sh
#   ENTRIES=20000 ROUNDS=1 benches/evidence-cost.sh
# What a proof and a verification cost: benches/http-load.sh reads evidence
set -euo pipefail
cd "$(dirname "$0")/.."

RUSTFLAGS='--cfg audit_unhashed' cargo bench --locked --quiet -p benches --bench evidence_cost \
    --target-dir target/unhashed
