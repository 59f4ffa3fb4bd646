//! One person in everything that a deployment keeps: in each place before they are erased, and in none
//! after `vacuum`.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use audit_conformance::is_full;
use audit_conformance::person::{self, Person};
use audit_core::{TenantStatus, TenantUpdate};
use audit_server::config::Settings;
use audit_server::storage::{self, Storage};
use audit_store_sqlite::rusqlite::Connection;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx_core::connection::Connection as _;
use sqlx_core::executor::Executor as _;
use sqlx_core::query_as::query_as;
use sqlx_core::query_scalar::query_scalar;
use sqlx_postgres::PgConnection;

use crate::child::{Server, free_port, settings};
use crate::erasures::{Client, is_done, own_tenant, until};
use crate::service::{Answer, send};
use crate::stack::{Stack, needed};

/// A server's parts, all of them on this machine.
struct Deployment {
    folder: tempfile::TempDir,
    stack: Stack,
    /// To look into the database and to put rows into its outbox; none with SQLite.
    admin: Option<PgConnection>,
}

impl Deployment {
    async fn make() -> Self {
        let (folder, stack) = (tempfile::tempdir().unwrap(), Stack::make().await);
        let admin = match stack.database() {
            Some(url) => Some(PgConnection::connect(&url).await.unwrap()),
            None => None,
        };
        Self {
            folder,
            stack,
            admin,
        }
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        let archive = self.folder.path().join("archive");
        let archive = format!("file://{}", archive.display());
        let mut settings = self.stack.engines();
        settings.push(("AUDIT_ARCHIVE_URL", archive));
        settings
    }

    async fn serve(&self, roles: &str) -> Server {
        let mut settings = self.settings();
        settings.push(("AUDIT_ROLES", roles.to_owned()));
        Server::start_on(self.folder.path(), settings).await
    }

    fn vacuum(&self) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_audit-server"));
        settings(&mut command, self.folder.path(), free_port());
        command.envs(self.settings()).arg("vacuum");
        command.stdout(Stdio::piped()).output().unwrap()
    }

    /// Where the person is. Files by their names, each database with its write-ahead log, and folders by
    /// theirs. PostgreSQL's write-ahead log is looked at in the store's own tests.
    async fn places_with(&mut self, person: &Person) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for path in person.files_with(self.folder.path()).unwrap() {
            let name = path.iter().next().unwrap().to_str().unwrap();
            found.insert(name.replace("-wal", ""));
        }
        let Some(admin) = &mut self.admin else {
            if is_word(person, &self.folder.path().join("audit.index.db")) {
                found.insert("the index's words".to_owned());
            }
            return found;
        };
        found.extend(relations_with(person, admin).await);
        let url = self.stack.database().unwrap();
        if person.is_in(&dump(&url)) {
            found.insert("the dump".to_owned());
        }
        let queue = self.stack.setting("AUDIT_QUEUE_URL").unwrap();
        let queued = queued_events(&queue).await;
        // Not by the traces alone: as the text that was sent.
        if queued.iter().any(|event| event.contains(person.name())) {
            found.insert("the queue".to_owned());
        }
        let indexes = self.stack.setting("AUDIT_SEARCH_PREFIX").unwrap();
        let index = Index(format!("{indexes}-v1-*"));
        found.extend(index.places_with(person).await);
        found
    }
}

/// Whether the vocabulary of SQLite's index has the person.
fn is_word(person: &Person, index: &Path) -> bool {
    let index = Connection::open(index).unwrap();
    index
        .execute_batch("CREATE VIRTUAL TABLE temp.vocabulary USING fts5vocab (main, words, row)")
        .unwrap();
    let asked = "SELECT EXISTS (SELECT 1 FROM vocabulary WHERE term = ?1)";
    index
        .query_row(asked, [person.name()], |row| row.get(0))
        .unwrap()
}

/// The database's tables and indexes whose files have the person; partitions by their table's name.
async fn relations_with(person: &Person, admin: &mut PgConnection) -> BTreeSet<String> {
    let (data, number): (String, String) = query_as(
        "SELECT current_setting('data_directory'), oid::text FROM pg_database
         WHERE datname = current_database()",
    )
    .fetch_one(&mut *admin)
    .await
    .unwrap();
    let folder = Path::new(&data).join("base").join(number);
    let mut found = BTreeSet::new();
    for file in person.files_with(&folder).unwrap() {
        let file = file.to_str().unwrap().split(['.', '_']).next().unwrap();
        let relation: String = query_scalar(
            "SELECT coalesce(pg_filenode_relation(0, $1::oid)::regclass::text, 'a file of none')",
        )
        .bind(file)
        .fetch_one(&mut *admin)
        .await
        .unwrap();
        let is_partition = relation.starts_with("audit.events_");
        found.insert(match is_partition && !relation.ends_with("idx") {
            true => "audit.events".to_owned(),
            false => relation,
        });
    }
    found
}

/// What `pg_dump` makes of a whole database; it reads long values as they were before they were compressed.
fn dump(url: &str) -> Vec<u8> {
    let dump = Command::new("pg_dump").arg(url).output().unwrap();
    let told = String::from_utf8_lossy(&dump.stderr);
    assert!(dump.status.success(), "{told}");
    dump.stdout
}

/// The events that wait in a queue, ten at most, and go on waiting.
async fn queued_events(queue: &str) -> Vec<String> {
    let asked = json!({"QueueUrl": queue, "MaxNumberOfMessages": 10, "VisibilityTimeout": 0});
    let request = reqwest::Client::new()
        .post(needed("AUDIT_TEST_SQS_ENDPOINT"))
        .header("content-type", "application/x-amz-json-1.0")
        .header("x-amz-target", "AmazonSQS.ReceiveMessage")
        .body(asked.to_string());
    let answer = send(request).await.expect(200).json();
    let messages = answer["Messages"].as_array().into_iter().flatten();
    let event = |message: &Value| {
        let body: Value = serde_json::from_str(message["Body"].as_str().unwrap()).unwrap();
        let event = STANDARD.decode(body["event"].as_str().unwrap()).unwrap();
        String::from_utf8(event).unwrap()
    };
    messages.map(event).collect()
}

/// Indexes in OpenSearch, by a pattern.
struct Index(String);

impl Index {
    async fn ask(&self, method: Method, path: &str, body: Value) -> Value {
        let url = format!("{}/{path}", needed("AUDIT_TEST_OPENSEARCH_URL"));
        let request = reqwest::Client::new().request(method, url);
        let request = request.header("content-type", "application/json");
        send(request.body(body.to_string()))
            .await
            .expect(200)
            .json()
    }

    async fn places_with(&self, person: &Person) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let all = &self.0;
        // What a segment has of a removed document counts: the query goes through its dictionary.
        for field in ["resource_id", "text", "user_id"] {
            let terms =
                json!({"value": format!(".*{}.*", &person.name()[8..]), "rewrite": "top_terms_10"});
            let query = json!({"query": {"regexp": {field: terms}}});
            let path = format!("{all}/_validate/query?explain=true&rewrite=true&all_shards=true");
            let answer = self.ask(Method::POST, &path, query).await;
            assert_eq!(answer["_shards"]["failed"], 0, "{answer}");
            if answer.to_string().contains(person.name()) {
                found.insert(format!("terms of {field}"));
            }
        }
        let scan = json!({"size": 1_000, "sort": ["_doc"]});
        let path = format!("{all}/_search?scroll=1m");
        let mut page = self.ask(Method::POST, &path, scan).await;
        while !page["hits"]["hits"].as_array().unwrap().is_empty() {
            if person.is_in(page["hits"].to_string().as_bytes()) {
                found.insert("sources".to_owned());
            }
            let next = json!({"scroll": "1m", "scroll_id": page["_scroll_id"]});
            page = self.ask(Method::POST, "_search/scroll", next).await;
        }
        // It would keep segments.
        let scroll = json!({"scroll_id": [page["_scroll_id"]]});
        self.ask(Method::DELETE, "_search/scroll", scroll).await;
        let nodes = self.ask(Method::GET, "_nodes/stats/fs", Value::Null).await;
        let node = nodes["nodes"].as_object().unwrap().values().next().unwrap();
        let data = Path::new(node["fs"]["data"][0]["path"].as_str().unwrap());
        let path = format!("{all}/_settings");
        let settings = self.ask(Method::GET, &path, Value::Null).await;
        for index in settings.as_object().unwrap().values() {
            let index = index["settings"]["index"]["uuid"].as_str().unwrap();
            let folder = data.join("indices").join(index);
            assert!(
                folder.is_dir(),
                "{} isn't on this machine",
                folder.display()
            );
            if !person.files_with(&folder).unwrap().is_empty() {
                found.insert("segments".to_owned());
            }
        }
        found
    }
}

/// Entries, and how many of them are the person's: a tenth, or of so many that it takes long a hundredth.
fn sizes() -> (u64, u64) {
    match is_full() {
        true => (1_000_000, 10_000),
        false => (10_000, 1_000),
    }
}

/// Records events a thousand at a time, some of each thousand the person's, and answers when the first
/// one was accepted, and the id of one of another user's.
async fn record(client: &Client, entries: u64, person: &Person) -> (String, String) {
    let (all, theirs) = sizes();
    let every = usize::try_from(all / theirs).unwrap();
    let mut first = None;
    for _ in 0..entries / 1_000 {
        let events = (0..1_000).map(|n| match n % every {
            0 => person::event(n, person.name()).to_json(),
            _ => person::event(n, "ann").to_json(),
        });
        let events: Vec<String> = events.collect();
        let events: Value = serde_json::from_str(&format!("[{}]", events.join(","))).unwrap();
        let stored = send(client.post("/api/v1/logs/bulk", &events)).await;
        let stored = stored.expect(201).json();
        let receipt = |n: usize, part: &str| {
            let part = stored["results"][n]["receipt"][part].as_str();
            part.unwrap().to_owned()
        };
        first.get_or_insert_with(|| (receipt(0, "created_at"), receipt(1, "id")));
    }
    first.unwrap()
}

/// Waits until the index has followed the log so far, and shows so many entries with the person's name.
async fn is_indexed(client: &Client, person: &Person, size: u64, shown: usize) {
    let search = format!("/api/v1/logs?limit=1&q={}", person.name());
    until(
        || client.get(&search),
        "the index has followed",
        |answer| {
            let page = answer.json();
            let through = page["indexed_through"].as_u64();
            through >= Some(size) && page["data"].as_array().map(Vec::len) == Some(shown)
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erased_person_is_found_in_every_place_before_and_in_none_after_vacuum() {
    let (mut deployment, person) = (Deployment::make().await, Person::random());
    let server = deployment.serve("api,worker").await;
    let client = Client::of(&server);
    let tenant = own_tenant(&client).await;
    let (all, theirs) = sizes();
    let half = all / 2;
    record(&client, half, &person).await;
    let (cut, other) = record(&client, half, &person).await;
    // The first half goes into the archive.
    let prune = json!({"before": cut});
    // Each request comes as far as a few segments.
    let is_pruned = |answer: &Answer| answer.status == 201 && answer.json()["below"] == 1 + half;
    until(
        || client.post("/api/v1/prunes", &prune),
        "it is pruned",
        is_pruned,
    )
    .await;
    is_indexed(&client, &person, 2 * half, 1).await;
    server.stop();

    // Nobody works these off.
    let server = deployment.serve("api").await;
    let client = Client::of(&server);
    let mut late = Vec::new();
    for n in 1..11 {
        let event = person::event(n, person.name()).to_json();
        let event: Value = serde_json::from_str(&event).unwrap();
        let queued = client.post("/api/v1/logs", &event);
        let queued = send(queued.header("prefer", "respond-async")).await;
        let queued = queued.expect(202).json();
        late.push(queued["id"].as_str().unwrap().to_owned());
        if let Some(admin) = &mut deployment.admin {
            let captured: String = query_scalar("SELECT audit.record($1::uuid, $2)::text")
                .bind(&tenant)
                .bind(event.to_string())
                .fetch_one(admin)
                .await
                .unwrap();
            late.push(captured);
        }
    }
    let everywhere: &[&str] = match &mut deployment.admin {
        None => &[
            "archive",
            "audit.db",
            "audit.index.db",
            "audit.queue.db",
            "the index's words",
        ],
        Some(admin) => {
            admin.execute("ANALYZE; CHECKPOINT").await.unwrap();
            &[
                "archive",
                "audit.events",
                "audit.outbox",
                "pg_statistic",
                "segments",
                "terms of resource_id",
                "terms of text",
                "terms of user_id",
                "the dump",
                "the queue",
            ]
        }
    };
    let found = deployment.places_with(&person).await;
    for place in everywhere {
        assert!(found.contains(*place), "{place} is not among {found:?}");
    }

    let body = json!({"user_id": person.name(), "basis": "gdpr-17"});
    let begun = send(client.post("/api/v1/erasures", &body)).await;
    let erasure = begun.expect(202).header("location").to_owned();
    server.stop();
    let server = deployment.serve("api,worker").await;
    let client = Client::of(&server);
    let done = until(|| client.get(&erasure), "it is done", is_done).await;
    // Those that were archived, too.
    assert_eq!(done.json()["entries"], theirs);
    for id in &late {
        let path = format!("/api/v1/logs/{id}");
        let is_erased = |answer: &Answer| {
            answer.status == 200 && answer.json()["erased"].as_array().map(Vec::len) == Some(7)
        };
        until(|| client.get(&path), "it arrives, and is erased", is_erased).await;
    }
    let newest = send(client.get("/api/v1/logs?limit=1")).await.expect(200);
    let size = newest.json()["data"][0]["seq"].as_u64().unwrap() + 1;
    is_indexed(&client, &person, size, 0).await;
    server.stop();

    let output = deployment.vacuum();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{told}{:?}", output.stderr);
    let (first, left) = told.split_once('\n').unwrap();
    match &deployment.admin {
        None => assert_eq!(told, "the files hold nothing that was erased or pruned\n"),
        Some(_) => {
            assert!(first.ends_with("but where this doesn't reach:"), "{told}");
            assert!(
                left.starts_with("- PostgreSQL's write-ahead log (pg_wal)"),
                "{told}"
            );
            assert_eq!(left.lines().count(), 1, "{told}");
        }
    }
    assert_eq!(deployment.places_with(&person).await, BTreeSet::new());
    let server = deployment.serve("api,worker").await;
    let kept = Client::of(&server).get(&format!("/api/v1/logs/{other}"));
    assert_eq!(send(kept).await.expect(200).json()["user_id"], "ann");
    server.stop();
}

#[tokio::test]
async fn vacuum_names_the_tenants_that_nobody_can_read() {
    let stack = Stack::make().await;
    let settings = Settings::read(None, |name| stack.setting(name)).unwrap();
    let storage = Storage::open(&settings, None).await.unwrap();
    let open = storage.log.create_tenant(None, "open").await.unwrap().id;
    let closed = storage.log.create_tenant(None, "closed").await.unwrap().id;
    let update = TenantUpdate::default().status(TenantStatus::Suspended);
    let suspended = storage.log.update_tenant(closed, update, "admin", None);
    suspended.await.unwrap();
    drop(storage);
    let left = storage::vacuum(&settings).await.unwrap();
    assert!(left[0].contains(&closed.to_string()), "{left:?}");
    assert!(!left[0].contains(&open.to_string()), "{left:?}");
}
