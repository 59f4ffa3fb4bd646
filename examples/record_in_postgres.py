"""Record in the application's own PostgreSQL transaction, from Python with psycopg 3: the event is logged
exactly when the application's change is committed.

    AUDIT_STORE_URL=postgres://audit:…@localhost/audit python examples/record_in_postgres.py TENANT

Nobody may call audit.record until a superuser has said so; record_in_postgres.rs shows the two grants.
The tenant must exist, or the event is parked with the dead letters until it does. A relay appends the
event: in audit-server with that AUDIT_STORE_URL, or in a program that embeds the log.
"""

import json
import os
import sys

import psycopg

tenant = sys.argv[1]
with psycopg.connect(os.environ["AUDIT_STORE_URL"], autocommit=True) as connection:
    connection.execute("CREATE TEMPORARY TABLE invoices (id text PRIMARY KEY, state text NOT NULL)")
    event = {
        "action_type": "UPDATE",
        "action": "invoice.approve",
        "resource_type": "invoice",
        "resource_id": "inv-1",
        "user_id": "ann",
    }

    # Committed: change and event, or neither.
    with connection.transaction():
        connection.execute("INSERT INTO invoices VALUES ('inv-1', 'approved')")
        (recorded,) = connection.execute(
            "SELECT audit.record(%s, %s)", (tenant, json.dumps(event))
        ).fetchone()

    # Rolled back: neither.
    with connection.transaction() as transaction:
        connection.execute("INSERT INTO invoices VALUES ('inv-2', 'approved')")
        connection.execute(
            "SELECT audit.record(%s, %s)", (tenant, json.dumps({**event, "resource_id": "inv-2"}))
        )
        raise psycopg.Rollback(transaction)

print(recorded)
