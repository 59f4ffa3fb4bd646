#!/usr/bin/env bash
# What evidence costs, all of it in one run, each figure beside its bound: an append with and without hashing and
# the bytes of an entry that are there for its proofs alone, from a build of its own, since no other one can leave
# hashes out; then a proof of a filled log, and the verification of its export. That idle tenants cost nothing
# is a test: a_thousand_idle_tenants_add_no_leaf, of audit-core. A bound that is missed is said, and is no
# failure: how fast a machine is decides about it.
#   benches/evidence-cost.sh
#   ENTRIES=20000 ROUNDS=1 benches/evidence-cost.sh
# ENTRIES is 100,000 for each append run and 1,000,000 for the filled log when nothing is said.
set -euo pipefail
cd "$(dirname "$0")/.."

figures=$(mktemp)
trap 'rm -f "$figures"' EXIT

RUSTFLAGS='--cfg audit_unhashed' cargo bench --locked --quiet -p benches --bench evidence_cost \
    --target-dir target/unhashed | tee "$figures"
benches/http-load.sh evidence | tee -a "$figures"

python3 - "$figures" <<'PY'
import re, sys

text = open(sys.argv[1]).read()


def figure(what, unit, pattern, bound, at_most):
    found = re.search(pattern, text)
    if not found:
        sys.exit(f"evidence-cost.sh: {what} was not measured")
    value = float(found[1])
    kept = value <= bound if at_most else value >= bound
    sign = "≤" if at_most else "≥"
    print(f"{what:<28} {value:>12,.1f} {unit:<9} {sign} {bound:>9,} {'' if kept else 'MISSED'}".rstrip())


print("-- evidence, and its bounds")
figure("evidence of an entry", "bytes", r"([\d.]+) bytes of evidence an entry", 300, True)
figure("of the rate of appends", "%", r"evidence takes (-?[\d.]+) %", 15, True)
figure("a proof, p99", "ms", r"a proof, .* p99 ([\d.]+) ms", 5, True)
figure("audit verify", "entries/s", r"audit verify: .* ([\d.]+) entries/s", 200_000, False)
PY
