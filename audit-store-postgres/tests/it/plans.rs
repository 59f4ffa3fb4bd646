//! How the server runs what a reader asks: by an index in its order, in as few partitions as may be.
//!
//! The server explains each statement after it ran, in notices. With `AUDIT_TEST_FULL=1` there are
//! 1,000,000 entries of 1,000 tenants, otherwise 18,000 of 20; in 12 months, half of them one tenant's.

use std::fmt;
use std::sync::{Arc, Mutex};

use audit_conformance::is_full;
use audit_core::{
    EventId, Filter, LogStore, PageRequest, Position, Sort, TenantScope, TimeRange, Timestamp,
};
use sqlx_core::executor::Executor as _;
use sqlx_core::query_scalar::query_scalar;
use tracing::field::{Field, Visit};
use tracing::span;
use uuid::Uuid;

use crate::fixture::{Database, scope, tenant};

const BIG: u128 = 1;

/// Keeps the driver's notices.
#[derive(Default, Clone)]
struct Notices(Arc<Mutex<Vec<String>>>);

struct Text<'a>(&'a mut String);

impl Visit for Text<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            *self.0 = format!("{value:?}");
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(self.0);
        }
    }
}

impl tracing::Subscriber for Notices {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "sqlx::postgres::notice"
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = String::new();
        event.record(&mut Text(&mut text));
        self.0.lock().unwrap().push(text);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

impl Notices {
    /// The plans, since the last call, of statements that read events.
    fn plans(&self) -> Vec<Plan> {
        let notices = std::mem::take(&mut *self.0.lock().unwrap());
        notices
            .into_iter()
            .filter(|text| text.contains("Query Text") && text.contains("Scan"))
            .filter(|text| text.contains("on events_"))
            .map(Plan)
            .collect()
    }
}

struct Plan(String);

impl Plan {
    /// Partitions that were looked into.
    fn partitions(&self) -> usize {
        let scans = self.0.lines().filter(|line| line.contains("on events_"));
        scans.filter(|line| line.contains("actual time")).count()
    }

    /// Entries that were read to answer, as far as scans of indexes tell.
    fn read(&self) -> f64 {
        let mut read = 0.0;
        let mut loops = 0.0;
        for line in self.0.lines() {
            let number = |name: &str| -> Option<f64> {
                let rest = line.split(name).nth(1)?;
                let end = rest
                    .find(|c: char| !c.is_ascii_digit())
                    .unwrap_or(rest.len());
                rest[..end].parse().ok()
            };
            if line.contains("->") || line.contains("Scan") {
                loops = 0.0;
            }
            if line.contains("on events_") && line.contains("actual time") {
                let actual = line.split("actual time").nth(1).unwrap();
                let rows = actual.split("rows=").nth(1).unwrap();
                let rows: f64 = rows.split(' ').next().unwrap().parse().unwrap();
                loops = number("loops=").unwrap();
                read += rows * loops;
            }
            if loops > 0.0
                && let Some(removed) = number("Rows Removed by Filter: ")
            {
                read += removed * loops;
            }
        }
        read
    }

    fn goes_by_indexes(&self) {
        for node in ["Seq Scan on events", "Sort", "Bitmap", "Hash"] {
            for form in ["  (", " on"] {
                assert!(
                    !self.0.contains(&format!("{node}{form}")),
                    "{node} in {}",
                    self.0
                );
            }
        }
    }
}

/// Entries of the big tenant and of the others; powers of two, whose trees have one peak.
fn sizes() -> (i64, i64, i64) {
    match is_full() {
        true => (524_288, 1_000, 512),
        false => (8_192, 20, 512),
    }
}

async fn load(database: &Database) {
    let (big, tenants, small) = sizes();
    let mut owner = database.connect().await;
    let sql = format!(
        "SELECT audit.make_partition('2025-12-01 00:00:00Z'::timestamptz + n * interval '1 month')
         FROM generate_series(0, 11) AS n;
         CREATE TEMP TABLE made AS
         SELECT ('00000000-0000-0000-0000-' || lpad(to_hex(t), 12, '0'))::uuid AS tenant_id, seq,
             '2025-12-01 00:00:00Z'::timestamptz + seq * (interval '360 days' / size) AS created_at,
             md5(t || '/' || seq)::uuid AS id, size
         FROM generate_series(1, {tenants}) AS t,
             LATERAL (SELECT CASE t WHEN {BIG} THEN {big} ELSE {small} END AS size) s,
             LATERAL generate_series(0, size - 1) AS seq;
         INSERT INTO audit.heads (tenant_id, size, peaks, created_at)
         SELECT tenant_id, max(size), decode(repeat('00', 32), 'hex'), max(created_at)
         FROM made GROUP BY tenant_id;
         INSERT INTO audit.ids (tenant_id, id, seq, created_at, leaf_hash)
         SELECT tenant_id, id, seq, created_at, decode(repeat('00', 32), 'hex') FROM made;
         INSERT INTO audit.events (tenant_id, seq, created_at, occurred_at, id, action_type, severity,
             outcome, kind, leaf_hash, opening, action, user_id, resource_type, resource_id, metadata)
         SELECT tenant_id, seq, created_at, created_at - interval '1 second', id, 'UPDATE', 'INFO',
             'success', 'event', decode(repeat('00', 32), 'hex'), decode('01' || repeat('00', 32), 'hex'),
             'invoice.approve', CASE WHEN seq = size / 2 THEN 'rare' ELSE 'user-' || seq % 50 END,
             'invoice', 'inv-' || seq % 1000, repeat(' ', 100) || '1'
         FROM made ORDER BY created_at;"
    );
    owner.execute(&*sql).await.unwrap();
}

async fn explained() -> (Database, Notices, tracing::subscriber::DefaultGuard) {
    let database = Database::open().await;
    load(&database).await;
    let mut admin = database.connect().await;
    for setting in [
        "session_preload_libraries = 'auto_explain'",
        "auto_explain.log_min_duration = 0",
        "auto_explain.log_analyze = on",
        "auto_explain.log_level = 'notice'",
    ] {
        let sql = format!("ALTER DATABASE {} SET {setting}", database.name());
        admin.execute(&*sql).await.unwrap();
    }
    let notices = Notices::default();
    let guard = tracing::subscriber::set_default(notices.clone());
    (database, notices, guard)
}

fn position(seq: u64, created_at: Timestamp) -> Position {
    Position {
        seq,
        created_at,
        occurred_at: Timestamp::from_micros(created_at.as_micros() - 1_000_000).unwrap(),
    }
}

#[tokio::test]
async fn pages_filters_and_look_ups_go_by_an_index_and_prune_partitions() {
    let (database, notices, _guard) = explained().await;
    let (big, _, small) = sizes();
    let mut admin = database.connect().await;
    for analyzed in [false, true] {
        if analyzed {
            admin.execute("ANALYZE").await.unwrap();
        }
        let store = database.again().await;
        for (own, size) in [(BIG, big as u64), (2, small as u64)] {
            // More often than a plan is made for the values at hand.
            for _ in 0..7 {
                pages(&store, &notices, &scope(own), size).await;
            }
            let id: Uuid =
                query_scalar("SELECT id FROM audit.ids WHERE tenant_id = $1 AND seq = 77")
                    .bind(tenant(own).into_uuid())
                    .fetch_one(&mut admin)
                    .await
                    .unwrap();
            drop(store.get(&scope(own), &[EventId::new(id)]).await);
            drop(store.at(&scope(own), &[77]).await);
            drop(store.read(&scope(own), size - 20, 50).await.unwrap());
            let plans = notices.plans();
            assert_eq!(plans.len(), 3);
            for plan in plans {
                plan.goes_by_indexes();
                assert!(plan.partitions() <= 2, "{}", plan.0);
                assert!(plan.read() <= 21.0, "{}", plan.0);
            }
        }
    }
}

/// The entries' hashes are not those of their content, as every page says. It is the plans that are
/// looked at.
async fn pages(store: &dyn LogStore, notices: &Notices, scope: &TenantScope, size: u64) {
    let half = Timestamp::parse("2026-05-30T00:00:00Z").unwrap();
    let later = Timestamp::parse("2026-05-30T12:00:00Z").unwrap();
    let first = PageRequest::first();
    let behind = first.after(position(size / 2, half));
    let day = TimeRange {
        from: Some(half),
        to: Some(later),
    };
    let cases = [
        ("the first page", Filter::new(), first, 51.0, 3),
        ("a later page", Filter::new(), behind, 52.0, 4),
        ("upwards", Filter::new(), first.ascending(), 51.0, 3),
        ("a user", Filter::new().user("user-7"), first, 51.0, 12),
        ("a rare user", Filter::new().user("rare"), first, 1.0, 12),
        (
            "a resource",
            Filter::new().resource_id("inv-7"),
            first,
            51.0,
            12,
        ),
        ("a day", Filter::new().created(day), first, 52.0, 1),
        (
            "by time",
            Filter::new(),
            first.sort(Sort::OccurredAt),
            70.0,
            12,
        ),
        (
            "a time",
            Filter::new().occurred(day),
            first.sort(Sort::OccurredAt),
            70.0,
            12,
        ),
        (
            "changes of keys and of the epoch",
            Filter::new().action("log.key").action("log.epoch"),
            first.ascending(),
            0.0,
            12,
        ),
    ];
    for (name, filter, page, most, partitions) in cases {
        drop(store.list(scope, &filter, &page).await);
        let plans = notices.plans();
        assert_eq!(plans.len(), 1, "{name}");
        plans[0].goes_by_indexes();
        assert!(
            plans[0].read() <= most,
            "{name}: {} {}",
            plans[0].read(),
            plans[0].0
        );
        assert!(
            plans[0].partitions() <= partitions,
            "{name}: {}",
            plans[0].0
        );
    }
}
