#!/usr/bin/env python3
"""Recomputes every leaf and root of an audit.db from its rows, and compares them with the heads.

Written from the leaf format alone; it shares no code with the log. Only Python's standard library.

    dev/recompute_root.py audit-data/audit.db        prints a line for each tenant; exit status 1
                                                     when a leaf, a position or a root differs
"""

import base64
import hashlib
import hmac
import ipaddress
import json
import sqlite3
import sys
import uuid
from datetime import datetime, timedelta, timezone

GROUPS = ["actor", "resource", "context", "reason", "before_state", "after_state", "metadata"]


def b64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def string(text):
    """A JSON string as RFC 8785, section 3.2.2.2, has it."""
    return json.dumps(text, ensure_ascii=False)


def time(micros):
    moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=micros)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond:06d}Z"


def obj(*members):
    kept = [f"{string(name)}:{value}" for name, value in members if value is not None]
    return "{" + ",".join(kept) + "}" if kept else None


def text(value):
    return None if value is None else string(value)


def related(stored):
    """`related_resources` are stored as the array that is hashed; it must be in canonical form."""
    if stored is None:
        return None
    items = json.loads(stored)
    return "[" + ",".join(
        obj(("type", text(i["type"])), ("id", text(i["id"])), ("name", text(i.get("name"))))
        for i in items
    ) + "]"


def address(octets):
    if octets is None:
        return None
    ip = ipaddress.ip_address(octets)
    return string(str(ip))


def values(row):
    return {
        "actor": obj(*[(n, text(row[n])) for n in ("user_id", "actor_type", "actor_name", "on_behalf_of")]),
        "resource": obj(
            *[(n, text(row[n])) for n in ("resource_type", "resource_id", "resource_name")],
            ("related_resources", related(row["related_resources"])),
        ),
        "context": obj(
            *[(n, text(row[n])) for n in ("session_id", "request_id", "trace_id", "user_agent")],
            ("ip_address", address(row["ip_address"])),
        ),
        "reason": text(row["reason"]),
        "before_state": row["before_state"],
        "after_state": row["after_state"],
        "metadata": row["metadata"],
    }


def opening(blob):
    """Salts and stored digests by group: all salts follow from the seed until something is erased."""
    if blob[0] == 1:
        seed = blob[1:]
        salts = {
            g: hmac.new(seed, b"audit-log/v1/salt/" + g.encode(), hashlib.sha256).digest()[:16]
            for g in GROUPS
        }
        return salts, {}
    salts, digests, at = {}, {}, 1
    for group in GROUPS:
        flags, at = blob[at], at + 1
        if flags & 1:
            digests[group], at = blob[at:at + 32], at + 32
        if flags & 2:
            salts[group], at = blob[at:at + 16], at + 16
    return salts, digests


def leaf(tenant, row):
    salts, digests = opening(row["opening"])
    sd = []
    for group, value in values(row).items():
        if value is not None:
            disclosure = f'["{b64url(salts[group])}","{group}",{value}]'
            digest = hashlib.sha256(b64url(disclosure.encode()).encode()).digest()
            sd.append(string(b64url(digest)))
        elif group in digests:
            sd.append(string(b64url(digests[group])))
        else:
            sd.append("null")
    members = [
        ("v", "1"),
        ("kind", string(row["kind"])),
        ("tenant_id", string(str(tenant))),
        ("id", string(str(uuid.UUID(bytes=row["id"])))),
        ("created_at", string(time(row["created_at"]))),
        ("occurred_at", string(time(row["occurred_at"]))),
        ("action_type", string(row["action_type"])),
        ("action", string(row["action"])),
        ("outcome", string(row["outcome"])),
        ("severity", string(row["severity"])),
        ("ctl", row["ctl"]),
        ("sd", "[" + ",".join(sd) + "]"),
    ]
    return obj(*members).encode()


def fold(peaks):
    root = None
    for peak in reversed(peaks):
        root = peak if root is None else hashlib.sha256(b"\x01" + peak + root).digest()
    return root if root is not None else hashlib.sha256(b"").digest()


def merkle_root(leaves):
    """RFC 6962, section 2.1, by merging equal subtrees from the left."""
    peaks = []
    for hash_ in leaves:
        size = 1
        while peaks and peaks[-1][0] == size:
            hash_ = hashlib.sha256(b"\x01" + peaks.pop()[1] + hash_).digest()
            size *= 2
        peaks.append((size, hash_))
    return fold([hash_ for _, hash_ in peaks])


def main(path):
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    db.row_factory = sqlite3.Row
    wrong = 0
    tenants = db.execute(
        "SELECT t.no, t.id, h.size, h.peaks, h.pruned_below FROM tenants t JOIN heads h ON h.tenant = t.no"
    ).fetchall()
    for no, tenant_id, size, peaks, pruned in tenants:
        tenant = uuid.UUID(bytes=tenant_id)
        leaves = {
            row["seq"]: row["leaf_hash"]
            for row in db.execute("SELECT seq, leaf_hash FROM ids WHERE tenant = ?", (no,))
        }
        faults = []
        if sorted(leaves) != list(range(size)):
            faults.append(f"the ids have {len(leaves)} positions, and the head says {size}")
        present = 0
        for row in db.execute("SELECT * FROM entries WHERE tenant = ? ORDER BY seq", (no,)):
            recomputed = hashlib.sha256(b"\x00" + leaf(tenant, row)).digest()
            if recomputed != row["leaf_hash"] or recomputed != leaves.get(row["seq"]):
                faults.append(f"seq {row['seq']}: the leaf differs from the stored hash")
            present += row["seq"] >= pruned
        if present != size - pruned:
            faults.append(f"{present} rows from {pruned} on, and the head says {size}")
        root = merkle_root([leaves[seq] for seq in sorted(leaves)])
        stored = fold([peaks[i:i + 32] for i in range(0, len(peaks), 32)])
        if root != stored:
            faults.append("the recomputed root differs from the head's")
        print(f"{tenant} size {size} rows {present} root {root.hex()} {'ok' if not faults else 'WRONG'}")
        for fault in faults[:10]:
            print(f"  {fault}")
        wrong += len(faults)
    return 1 if wrong else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    sys.exit(main(sys.argv[1]))
