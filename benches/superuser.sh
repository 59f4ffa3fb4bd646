# For the scripts beside it, which are in the repository's folder and have AUDIT_TEST_POSTGRES_URL.

# Runs SQL in the database $1 as the superuser.
as_superuser() {
    .dev/venv/bin/python - "$AUDIT_TEST_POSTGRES_URL" "$@" <<'PY'
import sys, urllib.parse, psycopg
server, database, sql = sys.argv[1:]
url = urllib.parse.urlsplit(server)._replace(path="/" + database).geturl()
with psycopg.connect(url, autocommit=True) as connection:
    result = connection.execute(sql)
    print(*(row[0] for row in result.fetchall()) if result.description else ())
PY
}

# Makes the database $1 anew, for the login of the address $2.
make_database() {
    local login
    login=$(sed 's|^[a-z]*://\([^:@]*\).*|\1|' <<<"$2")
    drop_database "$1"
    as_superuser postgres "CREATE DATABASE $1 OWNER $login" >/dev/null
}

drop_database() { as_superuser postgres "DROP DATABASE IF EXISTS $1 WITH (FORCE)" >/dev/null; }
