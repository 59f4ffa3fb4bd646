//! Loads a running server over HTTP and prints what it measured, a line each.
//!
//! `benches/http-load.sh` builds everything, starts a server and runs the whole series.
#![allow(clippy::print_stdout)] // its output is what it is for

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use audit_client::{Client, ListRequest};
use audit_core::tlog::checkpoint::Checkpoint;
use audit_core::tlog::merkle::verify_consistency;
use audit_core::tlog::note::VerifyingKey;
use audit_core::tlog::proof::InclusionProof;
use audit_core::{Entry, ErrorKind, Filter, TenantId, Timestamp};
use benches::{
    COMMON_WORD, FREQUENT_USER, HOT_RESOURCE, RARE_USER, RARE_WORD, START_MICROS, event,
};
use clap::{Parser, Subcommand};
use hdrhistogram::Histogram;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, Parser)]
struct Args {
    /// Host and port of the server.
    #[arg(long, default_value = "127.0.0.1:8000")]
    address: String,
    /// A token that may record, read and export.
    #[arg(long, env = "AUDIT_TOKEN", hide_env_values = true)]
    token: String,
    /// Where the server keeps its data: the fsync there is timed.
    #[arg(long)]
    folder: Option<PathBuf>,
    #[command(subcommand)]
    load: Load,
}

#[derive(Debug, Subcommand)]
enum Load {
    /// Single events.
    Post {
        #[arg(long, default_value_t = 64)]
        connections: u64,
        #[arg(long, default_value_t = 8)]
        seconds: u64,
        #[arg(long, default_value_t = 3)]
        runs: usize,
        /// The server has no log: it is the `bare-echo`.
        #[arg(long)]
        bare: bool,
    },
    /// Bulks.
    Bulk {
        #[arg(long, default_value_t = 4)]
        connections: u64,
        #[arg(long, default_value_t = 500)]
        size: u64,
        #[arg(long, default_value_t = 8)]
        seconds: u64,
        #[arg(long, default_value_t = 3)]
        runs: usize,
    },
    /// Single events with `Prefer: respond-async`, until the workers have appended all of them. The
    /// token has to be an operator's: tenants of its own are made.
    Queue {
        #[arg(long, default_value_t = 64)]
        connections: u64,
        /// How many tenants the connections record for, in turn.
        #[arg(long, default_value_t = 64)]
        tenants: u64,
        #[arg(long, default_value_t = 8)]
        seconds: u64,
        #[arg(long, default_value_t = 3)]
        runs: usize,
    },
    /// Single events at a steady rate, with the index's lag.
    Sustain {
        #[arg(long, default_value_t = 20_000)]
        rate: u64,
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        #[arg(long, default_value_t = 64)]
        connections: u64,
    },
    /// Fills the log up to this many entries.
    Fill {
        #[arg(long, default_value_t = 1_000_000)]
        entries: u64,
    },
    /// Reads of a filled log.
    Reads {
        #[arg(long, default_value_t = 500)]
        requests: usize,
    },
    /// A whole CSV export.
    Export,
    /// Proofs of entries of a filled log.
    Proofs {
        #[arg(long, default_value_t = 500)]
        requests: usize,
    },
    /// Erases a person, of one entry in 100, from a filled log, while others record and read. Proofs from
    /// before have to hold afterwards.
    Erase,
    /// Prunes the entries accepted before a time from a filled log, while others record and read. Proofs
    /// from before have to hold afterwards.
    Prune {
        #[arg(long)]
        before: Timestamp,
        /// For how long others are watched after the answer: the rows go afterwards.
        #[arg(long, default_value_t = 15)]
        settle: u64,
    },
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let args = Args::parse();
    if let Some(folder) = &args.folder {
        println!(
            "fsync of 4 KiB in the data folder: {:?} (median of 200)",
            benches::fsync_time(folder)?
        );
    }
    let target = Arc::new(Target {
        address: args.address,
        token: args.token,
    });
    match args.load {
        Load::Post {
            connections,
            seconds,
            runs,
            bare,
        } => {
            let mut rates = Vec::new();
            for run in 1..=runs {
                let seconds = Duration::from_secs(seconds);
                let outcome = hammer(&target, connections, seconds, 1, None).await?;
                outcome.print(&format!("POST /logs, {connections} connections, run {run}"));
                rates.push(outcome.rate());
            }
            print_median("POST /logs", rates);
            if !bare {
                drain(&target).await?;
            }
        }
        Load::Bulk {
            connections,
            size,
            seconds,
            runs,
        } => {
            let mut rates = Vec::new();
            for run in 1..=runs {
                let seconds = Duration::from_secs(seconds);
                let outcome = hammer(&target, connections, seconds, size, None).await?;
                outcome.print(&format!(
                    "bulk of {size}, {connections} connections, run {run}"
                ));
                rates.push(outcome.rate());
            }
            print_median("POST /logs/bulk", rates);
            drain(&target).await?;
        }
        Load::Queue {
            connections,
            tenants,
            seconds,
            runs,
        } => {
            let tenants = make_tenants(&target, tenants).await?;
            let (mut accepted, mut drained) = (Vec::new(), Vec::new());
            for run in 1..=runs {
                let seconds = Duration::from_secs(seconds);
                let (outcome, appended) = enqueue(&target, connections, &tenants, seconds).await?;
                outcome.print(&format!(
                    "POST /logs, respond-async, {connections} connections, {} tenants, run {run}",
                    tenants.len()
                ));
                let rate = outcome.events as f64 / appended.as_secs_f64();
                println!(
                    "all appended {:.2} s after the last 202, {rate:.0} events/s in all",
                    (appended - outcome.took).as_secs_f64()
                );
                accepted.push(outcome.rate());
                drained.push(rate);
            }
            print_median("accepted", accepted);
            print_median("accepted and appended", drained);
        }
        Load::Sustain {
            rate,
            seconds,
            connections,
        } => {
            let watched = Arc::clone(&target);
            let over = Arc::new(AtomicBool::new(false));
            let stop = Arc::clone(&over);
            let lag = tokio::spawn(async move {
                let (mut worst, mut last) = (0, 0);
                while !stop.load(Ordering::Relaxed) {
                    let lag = index_lag(&watched)
                        .await
                        .map_err(|error| error.to_string())?;
                    last = lag.ok_or("there is no index in this process")?;
                    worst = worst.max(last);
                    tokio::time::sleep(Duration::from_millis(250)).await;
                }
                Ok::<_, String>((worst, last))
            });
            let seconds = Duration::from_secs(seconds);
            let outcome = hammer(&target, connections, seconds, 1, Some(rate)).await?;
            over.store(true, Ordering::Relaxed);
            let (worst, last) = lag.await??;
            outcome.print(&format!("sustained at {rate}/s"));
            let behind = |entries: u64| entries as f64 / outcome.rate();
            println!(
                "index lag: at most {worst} entries ({:.2} s), {last} at the end ({:.2} s)",
                behind(worst),
                behind(last)
            );
            drain(&target).await?;
        }
        Load::Fill { entries } => fill(&target, entries).await?,
        Load::Reads { requests } => reads(&target, requests).await?,
        Load::Export => export(&target).await?,
        Load::Proofs { requests } => proofs(&target, requests).await?,
        Load::Erase => {
            let kept = Kept::fetch(&target).await?;
            erase(&target).await?;
            kept.verify().await?;
        }
        Load::Prune { before, settle } => {
            let kept = Kept::fetch(&target).await?;
            prune(&target, before, Duration::from_secs(settle)).await?;
            kept.verify().await?;
        }
    }
    Ok(())
}

#[derive(Debug)]
struct Target {
    address: String,
    token: String,
}

struct Connection {
    stream: BufReader<TcpStream>,
    head: String,
    body: Vec<u8>,
}

impl Connection {
    async fn open(target: &Target) -> Result<Self, Failure> {
        let stream = TcpStream::connect(&target.address).await?;
        stream.set_nodelay(true)?;
        let head = format!(
            "host: {}\r\nauthorization: Bearer {}\r\n",
            target.address, target.token
        );
        Ok(Self {
            stream: BufReader::with_capacity(64 * 1024, stream),
            head,
            body: Vec::new(),
        })
    }

    /// Sends a request and reads the whole answer, whose body stays in `self.body`.
    async fn call(&mut self, method: &str, path: &str, body: &str) -> Result<u16, Failure> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\n{}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.head,
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes()).await?;
        let (status, length) = self.answer_head().await?;
        match length {
            Some(length) => {
                self.body.resize(length, 0);
                self.stream.read_exact(&mut self.body).await?;
            }
            None => {
                self.body.clear();
                while let Some(chunk) = self.chunk().await? {
                    self.body.extend(chunk);
                }
            }
        }
        Ok(status)
    }

    async fn answer_head(&mut self) -> Result<(u16, Option<usize>), Failure> {
        let mut line = String::new();
        self.stream.read_line(&mut line).await?;
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .ok_or("no status line")?;
        let mut length = None;
        loop {
            line.clear();
            self.stream.read_line(&mut line).await?;
            let field = line.trim_end();
            if field.is_empty() {
                return Ok((status, length));
            }
            if let Some((name, value)) = field.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = Some(value.trim().parse()?);
            }
        }
    }

    /// One chunk of a chunked body (RFC 9112 §7.1); none at its end.
    async fn chunk(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let mut line = String::new();
        self.stream.read_line(&mut line).await?;
        let size = usize::from_str_radix(line.trim_end(), 16)?;
        let mut chunk = vec![0; size + 2];
        self.stream.read_exact(&mut chunk).await?;
        chunk.truncate(size);
        Ok((size > 0).then_some(chunk))
    }
}

struct Outcome {
    events: u64,
    took: Duration,
    refused: u64,
    latency: Histogram<u64>,
}

impl Outcome {
    fn rate(&self) -> f64 {
        self.events as f64 / self.took.as_secs_f64()
    }

    fn print(&self, what: &str) {
        let (rate, waits) = (self.rate(), waits(&self.latency));
        println!(
            "{what}: {rate:.0} events/s, {waits}, {} refused",
            self.refused
        );
    }
}

/// How long the answers took.
fn waits(latency: &Histogram<u64>) -> String {
    let millis = |q| latency.value_at_quantile(q) as f64 / 1_000.0;
    format!(
        "p50 {:.2} ms, p99 {:.2} ms, max {:.1} ms",
        millis(0.5),
        millis(0.99),
        latency.max() as f64 / 1_000.0
    )
}

fn print_median(what: &str, mut rates: Vec<f64>) {
    rates.sort_by(f64::total_cmp);
    println!(
        "{what}: median {:.0} events/s of {} runs",
        rates[rates.len() / 2],
        rates.len()
    );
}

fn bulk(first: u64, size: u64) -> String {
    let mut body = String::from("[");
    for n in first..first + size {
        if n > first {
            body.push(',');
        }
        body.push_str(&event(n));
    }
    body.push(']');
    body
}

/// Sends for `length`, each connection its next request when the last is answered, or by the clock
/// when a rate is given.
async fn hammer(
    target: &Arc<Target>,
    connections: u64,
    length: Duration,
    size: u64,
    rate: Option<u64>,
) -> Result<Outcome, Failure> {
    let next = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let mut tasks = Vec::new();
    for worker in 0..connections {
        let (target, next) = (Arc::clone(target), Arc::clone(&next));
        tasks.push(tokio::spawn(async move {
            let mut connection = Connection::open(&target).await?;
            let mut latency = Histogram::<u64>::new(3)?;
            let (mut events, mut refused, mut turn) = (0, 0, 0);
            while began.elapsed() < length {
                if let Some(rate) = rate {
                    let due = (turn * connections + worker) * size * 1_000_000 / rate;
                    let due = began + Duration::from_micros(due);
                    tokio::time::sleep_until(due.into()).await;
                    turn += 1;
                }
                let n = next.fetch_add(size, Ordering::Relaxed);
                let (path, body) = if size == 1 {
                    ("/api/v1/logs", event(n))
                } else {
                    ("/api/v1/logs/bulk", bulk(n, size))
                };
                let sent = Instant::now();
                let status = connection.call("POST", path, &body).await?;
                latency.record(sent.elapsed().as_micros() as u64)?;
                if status == 201 {
                    events += size
                } else {
                    refused += size
                }
            }
            Ok::<_, Failure>((events, refused, latency))
        }));
    }
    collect(tasks, began).await
}

/// One worker's events, refusals and latencies.
type Share = Result<(u64, u64, Histogram<u64>), Failure>;

/// Waits for the workers, and adds up what they did.
async fn collect(tasks: Vec<JoinHandle<Share>>, began: Instant) -> Result<Outcome, Failure> {
    let mut outcome = Outcome {
        events: 0,
        took: Duration::ZERO,
        refused: 0,
        latency: Histogram::new(3)?,
    };
    for task in tasks {
        let (events, refused, latency) = task.await??;
        outcome.events += events;
        outcome.refused += refused;
        outcome.latency.add(latency)?;
    }
    outcome.took = began.elapsed();
    Ok(outcome)
}

/// Makes tenants, and returns their ids.
async fn make_tenants(target: &Target, tenants: u64) -> Result<Vec<String>, Failure> {
    let mut connection = Connection::open(target).await?;
    let mut ids = Vec::new();
    for n in 0..tenants {
        let body = format!("{{\"name\":\"load {n}\"}}");
        let status = connection.call("POST", "/api/v1/tenants", &body).await?;
        let tenant = answer(&connection, status, 201)?;
        ids.push(
            tenant["id"]
                .as_str()
                .ok_or("a tenant has no id")?
                .to_owned(),
        );
    }
    Ok(ids)
}

/// Sends events to be appended later, for `length`, then waits until they are appended. Returns what
/// was accepted, and how long all took together.
async fn enqueue(
    target: &Arc<Target>,
    connections: u64,
    tenants: &[String],
    length: Duration,
) -> Result<(Outcome, Duration), Failure> {
    let before = total(target, tenants).await?;
    let next = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let mut tasks = Vec::new();
    for worker in 0..connections {
        let (target, next) = (Arc::clone(target), Arc::clone(&next));
        let tenant = tenants[worker as usize % tenants.len()].clone();
        tasks.push(tokio::spawn(async move {
            let mut connection = Connection::open(&target).await?;
            let more = format!("x-tenant-id: {tenant}\r\nprefer: respond-async\r\n");
            connection.head.push_str(&more);
            let mut latency = Histogram::<u64>::new(3)?;
            let (mut events, mut refused) = (0, 0);
            while began.elapsed() < length {
                let body = event(next.fetch_add(1, Ordering::Relaxed));
                let sent = Instant::now();
                let status = connection.call("POST", "/api/v1/logs", &body).await?;
                latency.record(sent.elapsed().as_micros() as u64)?;
                match status {
                    202 => events += 1,
                    _ => refused += 1,
                }
            }
            Ok::<_, Failure>((events, refused, latency))
        }));
    }
    let outcome = collect(tasks, began).await?;
    while total(target, tenants).await? < before + outcome.events {
        if began.elapsed() > length + Duration::from_secs(600) {
            return Err("the queue was not drained within 10 minutes".into());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok((outcome, began.elapsed()))
}

/// The entries of these tenants.
async fn total(target: &Target, tenants: &[String]) -> Result<u64, Failure> {
    let mut connection = Connection::open(target).await?;
    let head = connection.head.clone();
    let mut total = 0;
    for tenant in tenants {
        connection.head = format!("{head}x-tenant-id: {tenant}\r\n");
        connection.call("GET", "/api/v1/logs/stats", "").await?;
        let stats: serde_json::Value = serde_json::from_slice(&connection.body)?;
        total += stats["total_logs"]
            .as_u64()
            .ok_or("the statistics have no total_logs")?;
    }
    Ok(total)
}

/// The indexer's lag in entries, from the server's metrics; none where this process has no indexer.
async fn index_lag(target: &Target) -> Result<Option<u64>, Failure> {
    let mut connection = Connection::open(target).await?;
    connection.call("GET", "/metrics", "").await?;
    let text = String::from_utf8_lossy(&connection.body).into_owned();
    let value = text
        .lines()
        .find(|line| line.starts_with("audit_worker_lag") && line.contains("indexer"))
        .and_then(|line| line.rsplit(' ').next());
    Ok(value
        .map(str::parse::<f64>)
        .transpose()?
        .map(|lag| lag as u64))
}

/// Waits until the index has caught up, and says how long that took.
async fn drain(target: &Target) -> Result<(), Failure> {
    let began = Instant::now();
    let Some(lag) = index_lag(target).await? else {
        println!("index: none in this process");
        return Ok(());
    };
    while index_lag(target).await?.is_some_and(|lag| lag > 0) {
        if began.elapsed() > Duration::from_secs(600) {
            return Err("the index did not catch up within 10 minutes".into());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!(
        "index: {lag} entries behind at the end, drained in {:.1} s",
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

async fn fill(target: &Arc<Target>, entries: u64) -> Result<(), Failure> {
    let began = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let (target, next) = (Arc::clone(target), Arc::clone(&next));
        tasks.push(tokio::spawn(async move {
            let mut connection = Connection::open(&target).await?;
            loop {
                let n = next.fetch_add(500, Ordering::Relaxed);
                if n >= entries {
                    return Ok::<_, Failure>(());
                }
                let body = bulk(n, 500.min(entries - n));
                let status = connection.call("POST", "/api/v1/logs/bulk", &body).await?;
                if status != 201 {
                    return Err(format!("the server answered {status}").into());
                }
            }
        }));
    }
    for task in tasks {
        task.await??;
    }
    let took = began.elapsed().as_secs_f64();
    println!(
        "filled with {entries} entries in {took:.1} s, {:.0} events/s",
        entries as f64 / took
    );
    drain(target).await
}

async fn reads(target: &Target, requests: usize) -> Result<(), Failure> {
    let mut connection = Connection::open(target).await?;
    let day = |n: i64| {
        Timestamp::from_micros(START_MICROS + n * 86_400_000_000)
            .map_or_else(String::new, |t| t.to_string())
    };
    let mut path = "/api/v1/logs?limit=1000".to_owned();
    let mut deep = String::new();
    for _ in 0..100 {
        connection.call("GET", &path, "").await?;
        let page: serde_json::Value = serde_json::from_slice(&connection.body)?;
        let Some(cursor) = page["next_cursor"].as_str() else {
            break;
        };
        deep = format!("/api/v1/logs?limit=50&cursor={cursor}");
        path = format!("/api/v1/logs?limit=1000&cursor={cursor}");
    }
    let series = [
        ("first page of 50", "/api/v1/logs?limit=50".to_owned()),
        (
            "user_id with few hits",
            format!("/api/v1/logs?user_id={RARE_USER}"),
        ),
        (
            "a filter without a hit",
            "/api/v1/logs?user_id=nobody-at-all".to_owned(),
        ),
        (
            "resource_id with an occurred_at range",
            format!(
                "/api/v1/logs?resource_id={HOT_RESOURCE}&from={}&to={}",
                day(3),
                day(4)
            ),
        ),
        ("page at depth 100,000", deep),
        (
            "a word with few hits",
            format!("/api/v1/logs?q={RARE_WORD}"),
        ),
        (
            "a word in half of all entries",
            format!("/api/v1/logs?q={COMMON_WORD}"),
        ),
        ("stats", "/api/v1/logs/stats".to_owned()),
    ]
    .map(|(what, path)| (what, vec![path]));
    for (what, paths) in series {
        time(&mut connection, what, &paths, requests).await?;
    }
    Ok(())
}

/// Asks for these in turn, so often, and prints how long the answers took.
async fn time(
    connection: &mut Connection,
    what: &str,
    paths: &[String],
    requests: usize,
) -> Result<(), Failure> {
    let mut latency = Histogram::<u64>::new(3)?;
    for path in paths.iter().cycle().take(requests) {
        let sent = Instant::now();
        let status = connection.call("GET", path, "").await?;
        latency.record(sent.elapsed().as_micros() as u64)?;
        if status != 200 {
            let body = String::from_utf8_lossy(&connection.body).into_owned();
            return Err(format!("GET {path} answered {status}: {body}").into());
        }
    }
    println!(
        "{what}: p50 {:.2} ms, p99 {:.2} ms ({requests} requests)",
        latency.value_at_quantile(0.5) as f64 / 1_000.0,
        latency.value_at_quantile(0.99) as f64 / 1_000.0
    );
    Ok(())
}

async fn proofs(target: &Target, requests: usize) -> Result<(), Failure> {
    let sample = sample(&client(target)?).await?;
    let path = |entry: &Entry| format!("/api/v1/logs/{}/proof", entry.id);
    let paths: Vec<_> = sample.iter().map(path).collect();
    let what = format!("a proof, of {} entries in turn", paths.len());
    let mut connection = Connection::open(target).await?;
    time(&mut connection, &what, &paths, requests).await
}

fn client(target: &Target) -> Result<Client, Failure> {
    let client = Client::builder(format!("http://{}", target.address)).token(&target.token);
    Ok(client.build()?)
}

/// Positions that a sample has entries of.
const SAMPLE: u64 = 100;

/// Entries of the whole log, evenly: at each of so many positions, and the next one there of the person who
/// is to be erased.
async fn sample(client: &Client) -> Result<Vec<Entry>, Failure> {
    let newest = ListRequest::new(Filter::new()).limit(1);
    let newest = client.list(&newest).await?.items;
    let size = newest.first().ok_or("the log is empty")?.seq + 1;
    let mut sample = BTreeMap::new();
    for n in 0..SAMPLE {
        let there = Filter::new().from_seq(n * size / SAMPLE);
        for filter in [there.clone(), there.user(FREQUENT_USER)] {
            let request = ListRequest::new(filter).ascending().limit(1);
            let found = client.list(&request).await?.items;
            sample.extend(found.into_iter().map(|entry| (entry.seq, entry)));
        }
    }
    Ok(sample.into_values().collect())
}

/// Proofs from before something was taken out of the log.
struct Kept {
    client: Client,
    tenant: TenantId,
    keys: [VerifyingKey; 1],
    proofs: Vec<(Entry, InclusionProof)>,
}

impl Kept {
    async fn fetch(target: &Target) -> Result<Self, Failure> {
        let client = client(target)?;
        let mut proofs = Vec::new();
        for entry in sample(&client).await? {
            let proof = client.proof(entry.id).await?;
            proofs.push((entry, proof));
        }
        let tenant = proofs.first().ok_or("the log is empty")?.0.tenant_id;
        let keys = [client.verifying_key(tenant).await?];
        Ok(Self {
            client,
            tenant,
            keys,
            proofs,
        })
    }

    /// Verifies each of them, that the log as it is now continues the heads that they have, and the present
    /// proofs of the entries that are left, which have to have the same leaf hashes.
    ///
    /// # Errors
    /// The first one that doesn't hold.
    async fn verify(self) -> Result<(), Failure> {
        let note = self.client.checkpoint(self.tenant).await?;
        let now = Checkpoint::open(&note, &self.keys)?.checkpoint;
        let mut heads = BTreeSet::new();
        let (mut erased, mut pruned) = (0, 0);
        for (entry, proof) in &self.proofs {
            let then = proof.verify(&entry.leaf_hash, &self.keys)?.checkpoint;
            if heads.insert(then.size()) {
                let (old, new) = (then.size(), now.size());
                let hashes = self.client.consistency(self.tenant, old, new).await?;
                verify_consistency(old, &then.root(), new, &now.root(), &hashes)?;
            }
            let left = match self.client.get(entry.id).await {
                Err(error) if error.kind() == ErrorKind::Pruned => {
                    pruned += 1;
                    continue;
                }
                left => left?,
            };
            if (left.seq, left.leaf_hash) != (entry.seq, entry.leaf_hash) {
                return Err(format!("entry {} has another leaf than before", entry.seq).into());
            }
            erased += u64::from(!left.erased.is_empty());
            let proof = self.client.proof(entry.id).await?;
            proof.verify(&entry.leaf_hash, &self.keys)?;
        }
        println!(
            "{} proofs from before verify, {} of entries that are erased and {pruned} that are pruned; the \
             log continues each of their {} heads",
            self.proofs.len(),
            erased,
            heads.len()
        );
        Ok(())
    }
}

async fn export(target: &Target) -> Result<(), Failure> {
    let mut connection = Connection::open(target).await?;
    let began = Instant::now();
    let request = format!(
        "GET /api/v1/logs/export?format=csv HTTP/1.1\r\n{}\r\n",
        connection.head
    );
    connection
        .stream
        .get_mut()
        .write_all(request.as_bytes())
        .await?;
    let (status, _) = connection.answer_head().await?;
    let (mut bytes, mut lines) = (0, 0);
    while let Some(chunk) = connection.chunk().await? {
        bytes += chunk.len();
        lines += chunk.iter().filter(|b| **b == b'\n').count();
    }
    let took = began.elapsed().as_secs_f64();
    // The event has no line break in any value, so that each line is a row; the first has the names.
    let rows = lines.saturating_sub(1);
    println!(
        "CSV export: status {status}, {rows} rows, {:.1} MB in {took:.2} s, {:.0} rows/s",
        bytes as f64 / 1e6,
        rows as f64 / took
    );
    Ok(())
}

/// How long others are looked at by themselves.
const ALONE: Duration = Duration::from_secs(5);

/// Others, who record and read, a request after the other, as long as this lives.
struct Others {
    over: Arc<AtomicBool>,
    tasks: Vec<(&'static str, JoinHandle<Share>)>,
}

impl Others {
    fn begin(target: &Arc<Target>) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let tasks = ["POST /logs", "GET /logs"].map(|what| {
            let (target, over) = (Arc::clone(target), Arc::clone(&over));
            let task = async move {
                let mut connection = Connection::open(&target).await?;
                let mut latency = Histogram::<u64>::new(3)?;
                let (mut done, mut refused) = (0, 0);
                while !over.load(Ordering::Relaxed) {
                    let sent = Instant::now();
                    let status = match what {
                        "GET /logs" => connection.call("GET", "/api/v1/logs?limit=50", "").await?,
                        _ => {
                            connection
                                .call("POST", "/api/v1/logs", &event(done))
                                .await?
                        }
                    };
                    latency.record(sent.elapsed().as_micros() as u64)?;
                    match status {
                        200 | 201 => done += 1,
                        _ => refused += 1,
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Ok::<_, Failure>((done, refused, latency))
            };
            (what, tokio::spawn(task))
        });
        Self {
            over,
            tasks: tasks.into(),
        }
    }

    /// Prints how long they wait while nothing else is asked for.
    async fn alone(target: &Arc<Target>) -> Result<(), Failure> {
        let others = Self::begin(target);
        tokio::time::sleep(ALONE).await;
        others.end("before").await
    }

    /// Prints how long they waited.
    async fn end(self, when: &str) -> Result<(), Failure> {
        self.over.store(true, Ordering::Relaxed);
        for (what, task) in self.tasks {
            let (done, refused, latency) = task.await??;
            let waits = waits(&latency);
            println!("{what} {when}: {done}, {waits}, {refused} refused");
        }
        Ok(())
    }
}

/// The answer's body, when its status is `expected`.
fn answer(
    connection: &Connection,
    status: u16,
    expected: u16,
) -> Result<serde_json::Value, Failure> {
    if status != expected {
        let body = String::from_utf8_lossy(&connection.body);
        return Err(format!("the server answered {status}: {body}").into());
    }
    Ok(serde_json::from_slice(&connection.body)?)
}

async fn erase(target: &Arc<Target>) -> Result<(), Failure> {
    Others::alone(target).await?;
    let mut connection = Connection::open(target).await?;
    let others = Others::begin(target);
    let began = Instant::now();
    let request = format!("{{\"user_id\":\"{FREQUENT_USER}\",\"basis\":\"gdpr-17\"}}");
    let status = connection
        .call("POST", "/api/v1/erasures", &request)
        .await?;
    let mut job = answer(&connection, status, 202)?;
    let place = format!(
        "/api/v1/erasures/{}",
        job["id"].as_str().unwrap_or_default()
    );
    while job["state"] != "done" {
        if began.elapsed() > Duration::from_secs(600) {
            return Err(format!("not erased within 10 minutes: {job}").into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let status = connection.call("GET", &place, "").await?;
        job = answer(&connection, status, 200)?;
    }
    println!(
        "erased {} of {} entries in {:.1} s",
        job["entries"],
        job["below"],
        began.elapsed().as_secs_f64()
    );
    others.end("meanwhile").await?;
    drain(target).await
}

async fn prune(target: &Arc<Target>, before: Timestamp, settle: Duration) -> Result<(), Failure> {
    Others::alone(target).await?;
    let mut connection = Connection::open(target).await?;
    let others = Others::begin(target);
    let began = Instant::now();
    let mut taken = 0;
    // With an archive each request comes as far as a few segments.
    loop {
        let request = format!("{{\"before\":\"{before}\",\"basis\":\"retention\"}}");
        let status = connection.call("POST", "/api/v1/prunes", &request).await?;
        if status == 200 {
            break;
        }
        let pruned = answer(&connection, status, 201)?;
        taken += pruned["entries"].as_u64().unwrap_or_default();
    }
    println!(
        "pruned {taken} entries in {:.1} s",
        began.elapsed().as_secs_f64()
    );
    tokio::time::sleep(settle).await;
    others.end("meanwhile").await
}
