//! Times the index and the lists that go through it: `cargo run --release -p audit-store-sqlite
//! --example index_bench -- [entries] [folder]`, 1,000,000 entries of about 1 KB in a folder of its
//! own when nothing is said. A folder that holds a log already is used as it is.

#![allow(clippy::print_stdout, clippy::unwrap_used)] // a program that is read, not shipped

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use audit_core::text::Query;
use audit_core::{ActionType, Clock, EventId};
use audit_core::{
    Batch, Entry, Event, EventQueue, Filter, LogStore, Message, MessageKind, PageRequest,
    PreparedEvent, SearchIndex, SearchRequest, Severity, Sort, SystemClock, TenantId, TenantScope,
    TimeRange, Timestamp,
};
use audit_store_sqlite::{SqliteOptions, SqliteQueue, SqliteStore};

const BATCH: u64 = 20_000;

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let entries: u64 = args.next().map_or(1_000_000, |n| n.parse().unwrap());
    let own = tempfile::tempdir().unwrap();
    let folder = args.next().map_or(own.path().to_owned(), PathBuf::from);
    let store = SqliteStore::open(folder.join("audit.db"), SqliteOptions::new()).unwrap();
    let tenant: TenantId = "0190a000-0000-7000-8000-000000000001".parse().unwrap();
    let scope = TenantScope::trusted(tenant, "bench");

    fill(&store, &scope, entries).await;
    let size = store.head(&scope).await.unwrap().size();
    index(&store, &scope, size).await;
    let file = |name: &str| std::fs::metadata(folder.join(name)).map_or(0, |m| m.len() >> 20);
    println!(
        "the index's thread took {:.1} us of CPU for each entry",
        cpu_of("audit-index") * 1e6 / size as f64
    );
    println!(
        "log {} MiB, index {} MiB",
        file("audit.db"),
        file("audit.index.db")
    );
    lists(&store, &scope, size).await;
    searches(&store, &scope).await;
    queue(&folder).await;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    println!(
        "{}",
        status
            .lines()
            .find(|line| line.starts_with("VmHWM"))
            .unwrap_or_default()
    );
}

fn event(i: u64, start: Timestamp) -> Event {
    let spread = |n: u64, of: u64| {
        let mut x = i
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .wrapping_add(n.wrapping_mul(0xD1B5_4A32));
        x ^= x >> 29;
        x = x.wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (x ^ (x >> 32)) % of
    };
    let words: Vec<String> = (0..30)
        .map(|n| format!("w{}", spread(n, 1 + spread(n + 50, 20_000))))
        .collect();
    let user = if i % 100_000 == 7 {
        "rare".into()
    } else {
        format!("user-{}", spread(1, 10_000))
    };
    let rare = if i % 200_000 == 11 { "needle" } else { "straw" };
    let half = if i.is_multiple_of(2) { "even" } else { "odd" };
    Event::new(ActionType::ALL[spread(2, 11) as usize], "invoice", format!("inv-{}", spread(3, 20_000)))
        .action(["invoice.approve", "invoice.view", "user.login"][spread(4, 3) as usize])
        .severity(if spread(5, 20) == 0 { Severity::Warning } else { Severity::Info })
        .user(user)
        .session_id(format!("session-{}", i / 20))
        .request_id(format!("request-{:016x}", spread(6, u64::MAX)))
        .trace_id(format!("{:016x}{:016x}", spread(7, u64::MAX), spread(8, u64::MAX)))
        .ip_address([10, 8, spread(9, 100) as u8, spread(10, 250) as u8].into())
        .user_agent("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)")
        .reason(format!("{rare} {half}"))
        .occurred_at(Timestamp::saturating_from_micros(
            start.as_micros() + i as i64 * 1_000 - spread(11, 60_000_000) as i64,
        ))
        .before(&serde_json::json!({"state": "draft", "lines": spread(12, 50), "note": words[..10].join(" ")}))
        .after(&serde_json::json!({"state": "approved", "lines": spread(13, 50), "note": words[10..20].join(" ")}))
        .metadata(&serde_json::json!({"service": "billing", "region": "eu-central-1", "tags": words[20..].to_vec()}))
}

async fn fill(store: &SqliteStore, scope: &TenantScope, entries: u64) {
    let from = store.head(scope).await.map_or(0, |head| head.size());
    let start = Timestamp::parse("2026-11-01T00:00:00Z").unwrap();
    let began = Instant::now();
    let mut i = from;
    while i < entries {
        let until = (i + 500).min(entries);
        let events = (i..until)
            .map(|i| {
                PreparedEvent::new(scope.tenant(), event(i, start), &SystemClock, &[]).unwrap()
            })
            .collect();
        let batch = Batch::new(scope.clone(), events).creating_tenant();
        store
            .append(&[batch])
            .await
            .unwrap()
            .pop()
            .unwrap()
            .unwrap();
        i = until;
    }
    println!(
        "appended {} in {:.1?}",
        entries.saturating_sub(from),
        began.elapsed()
    );
}

async fn index(store: &SqliteStore, scope: &TenantScope, size: u64) {
    let index = store.search_index();
    let mut through = index.indexed_through(scope).await.unwrap();
    let mut writing = Duration::ZERO;
    while through < size {
        let mut batch: Vec<Entry> = Vec::new();
        while (batch.len() as u64) < BATCH && through < size {
            batch.extend(store.read(scope, through, 1_000).await.unwrap());
            through = batch.last().unwrap().seq + 1;
        }
        let began = Instant::now();
        index.index(&batch).await.unwrap();
        let took = began.elapsed();
        writing += took;
        if through.is_multiple_of(200_000) || through == size {
            println!(
                "indexed {through}: {:.0}/s now, {:.0}/s in all",
                batch.len() as f64 / took.as_secs_f64(),
                through as f64 / writing.as_secs_f64()
            );
        }
    }
}

/// Seconds of CPU that the threads of this name have taken: what they need on a busy machine too.
fn cpu_of(thread: &str) -> f64 {
    std::fs::read_dir("/proc/self/task")
        .map(|tasks| {
            tasks
                .filter_map(|task| {
                    let task = task.ok()?.path();
                    let name = std::fs::read_to_string(task.join("comm")).ok()?;
                    let taken = std::fs::read_to_string(task.join("schedstat")).ok()?;
                    let nanos: f64 = taken.split(' ').next()?.parse().ok()?;
                    (name.trim() == thread).then_some(nanos / 1e9)
                })
                .sum()
        })
        .unwrap_or_default()
}

async fn time<F: Future<Output = usize>>(name: &str, mut run: impl FnMut(u64) -> F) {
    let mut times = Vec::new();
    let mut hits = 0;
    for i in 0..200 {
        let began = Instant::now();
        hits = run(i).await;
        times.push(began.elapsed());
    }
    let first = times[0];
    times.sort_unstable();
    println!(
        "{name:34} {hits:5} hits  first {first:>10.1?}  p50 {:>10.1?}  p99 {:>10.1?}",
        times[100], times[197]
    );
}

async fn lists(store: &SqliteStore, scope: &TenantScope, size: u64) {
    let page = PageRequest::first();
    let by_time = page.sort(Sort::OccurredAt);
    let some = |i: u64, of: u64| i.wrapping_mul(7_919) % of;
    let start = Timestamp::parse("2026-11-01T00:00:00Z")
        .unwrap()
        .as_micros();
    let range = |i: u64, micros: i64| TimeRange {
        from: Timestamp::from_micros(start + some(i, size) as i64 * 1_000),
        to: Timestamp::from_micros(start + some(i, size) as i64 * 1_000 + micros),
    };
    let deep = {
        let at = store
            .at(scope, &[size.saturating_sub(100_000)])
            .await
            .unwrap();
        at[0].position()
    };
    let list = async |filter: Filter, page: PageRequest| {
        store.list(scope, &filter, &page).await.unwrap().items.len()
    };
    let new = Filter::new;
    time("first page", |_| list(new(), page)).await;
    time("first page by occurred_at", |_| list(new(), by_time)).await;
    time("page at depth 100,000", |_| list(new(), page.after(deep))).await;
    time("... by occurred_at", |_| list(new(), by_time.after(deep))).await;
    time("... of INFO", |_| {
        list(new().severity(Severity::Info), page.after(deep))
    })
    .await;
    time("user_id with 10 hits", |_| list(new().user("rare"), page)).await;
    time("user_id with 100 hits", |i| {
        list(new().user(format!("user-{}", some(i, 10_000))), page)
    })
    .await;
    time("... by occurred_at", |i| {
        list(new().user(format!("user-{}", some(i, 10_000))), by_time)
    })
    .await;
    time("no hit", |_| list(new().user("nobody"), page)).await;
    time("two dense, no hit", |_| {
        list(new().severity(Severity::Info).action("invoice.none"), page)
    })
    .await;
    time("WARNING", |_| list(new().severity(Severity::Warning), page)).await;
    time("WARNING by occurred_at", |_| {
        list(new().severity(Severity::Warning), by_time)
    })
    .await;
    time("resource_id and a range of time", |i| {
        list(
            new()
                .resource_id(format!("inv-{}", some(i, 20_000)))
                .occurred(range(i, 100_000_000)),
            page,
        )
    })
    .await;
    time("... by occurred_at", |i| {
        list(
            new()
                .resource_id(format!("inv-{}", some(i, 20_000)))
                .occurred(range(i, 100_000_000)),
            by_time,
        )
    })
    .await;
    time("a short range of time", |i| {
        list(new().occurred(range(i, 1_000_000)), page)
    })
    .await;
    time("a long range of time", |i| {
        list(new().occurred(range(i, 300_000_000)), page)
    })
    .await;
    time("user, type and severity", |i| {
        list(
            new()
                .user(format!("user-{}", some(i, 10_000)))
                .severity(Severity::Info)
                .action_type(ActionType::View),
            page,
        )
    })
    .await;
    time("a created range", |i| {
        let _ = i;
        list(
            new()
                .created(TimeRange {
                    from: Some(deep.created_at),
                    to: None,
                })
                .severity(Severity::Warning),
            page,
        )
    })
    .await;
    time("q in a list", |_| {
        list(new().text(Query::parse("needle").unwrap()), page)
    })
    .await;
}

async fn searches(store: &SqliteStore, scope: &TenantScope) {
    let index = store.search_index();
    let search = async |q: &str, filter: Filter| {
        let filter = filter.text(Query::parse(q).unwrap());
        let hits = index
            .search(scope, &SearchRequest::new(filter, 50))
            .await
            .unwrap();
        store.at(scope, &hits.seqs).await.unwrap().len()
    };
    time("search: 5 hits", |_| search("needle", Filter::new())).await;
    time("search: half of all", |_| search("even", Filter::new())).await;
    time("search: all, and 10 hits of a user", |_| {
        search("billing", Filter::new().user("rare"))
    })
    .await;
    time("search: both halves, no hit", |_| {
        search("even odd", Filter::new())
    })
    .await;
    time("search: a phrase of everybody's", |_| {
        search("\"eu central 1\"", Filter::new())
    })
    .await;
    time("search: no hit", |_| search("nothing", Filter::new())).await;
}

async fn queue(folder: &std::path::Path) {
    let queue = Arc::new(SqliteQueue::open(folder.join("audit.queue.db")).unwrap());
    let began = Instant::now();
    let senders: Vec<_> = (0..64)
        .map(|_| {
            let queue = Arc::clone(&queue);
            tokio::spawn(async move {
                for _ in 0..100 {
                    let id: EventId = SystemClock.event_id();
                    let tenant = TenantId::new(id.into_uuid());
                    let message = Message::new(tenant, MessageKind::Ingest, id, "x".repeat(1_500));
                    queue
                        .send(&[message])
                        .await
                        .unwrap()
                        .pop()
                        .unwrap()
                        .unwrap();
                }
            })
        })
        .collect();
    for sender in senders {
        sender.await.unwrap();
    }
    println!(
        "queue: {:.0} sends/s from 64 senders",
        6_400.0 / began.elapsed().as_secs_f64()
    );
}
