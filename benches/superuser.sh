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
