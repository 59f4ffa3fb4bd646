//! A log with all that a log can have, and who looks at it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use audit_core::tlog::checkpoint::Origin;
use audit_core::tlog::folder::SegmentName;
use audit_core::tlog::leaf::leaf_hash;
use audit_core::tlog::merkle::{root, subtree_root};
use audit_core::tlog::note::{Note, SigningKey};
use audit_core::tlog::tile::{Content, FULL_WIDTH, Tile, parse_entries};
use audit_core::tlog::verify::{Code, Finding, Options, Report, verify_lines};
use audit_core::{
    Archive as _, AuditLog, CheckpointStore as _, Clock as _, Error, ErrorKind, Event, EventId,
    EvidenceRequest, Filter, Group, Hash, LogStore as _, Lookup, ManualClock, MemoryArchive,
    Recorder as _, Severity, Signer, TenantId, TenantLog, Workers,
};
use futures_util::TryStreamExt as _;
use tokio::time::{Instant, timeout};

use super::change::Change;
use super::{Cell, Holds, Replacement, Row, SEED, Shown, Table, TamperingHarness, Verdict};
use crate::fixture::{DEADLINE, basis, epoch, tenant_id, trusted};
use crate::random::Random;

const ORIGIN: &str = "audit.example/log";

/// All rows of all tables.
pub(super) type Tables = Vec<Vec<Row>>;

/// The files of a segment.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

pub(super) struct Trial<H> {
    pub(super) harness: H,
    log: AuditLog,
    tenant: TenantId,
    archive: Arc<MemoryArchive>,
    /// What an auditor has from elsewhere: the key that the log began with, and its largest checkpoint.
    options: Options,
    root: Hash,
    pub(super) hashes: Vec<Hash>,
    ids: Vec<EventId>,
    lookups: Vec<Lookup>,
    pub(super) untouched: Tables,
    /// Copies of the tables from some time before the last checkpoint was signed, each with what was
    /// exported then.
    pub(super) old: Vec<(Tables, String)>,
    /// The export of the whole log.
    pub(super) text: String,
}

fn key(n: u8) -> SigningKey {
    SigningKey::from_seed(ORIGIN, &[n; 32]).expect("a key")
}

fn origin() -> Origin {
    Origin::parse(ORIGIN).expect("an origin")
}

/// A log that is signed with the `n`th key, and knows the earlier ones.
fn signed_with<H: TamperingHarness>(harness: &H, archive: &Arc<MemoryArchive>, n: u8) -> AuditLog {
    let store = Arc::new(harness.store().clone());
    let signer = (0..n).fold(Signer::new(origin(), key(n)), |signer, earlier| {
        signer.succeeding(origin(), key(earlier))
    });
    AuditLog::builder(store.clone())
        .clock(harness.clock())
        .signer(signer, store)
        .archive(archive.clone())
        .build()
}

/// An event that may have any field.
fn event(random: &mut Random, clock: &ManualClock, n: usize) -> Event {
    let mut event = random.event(clock.now());
    if !random.one_in(3) {
        event = event
            .actor_name("Ann Ö. O'Neil")
            .on_behalf_of(format!("board {n}"))
            .resource_name("\"Größe\"")
            .trace_id(format!("trace {n}"))
            .user_agent("agent/1.0 (test)");
    }
    if !random.one_in(3) {
        event = event
            .before(&serde_json::json!({"n": n, "text": "vorher"}))
            .after(&serde_json::json!([n, null, {"k": 1.5}]));
    }
    event
}

/// Records so many events, and erases some groups of some entries now and then.
async fn grow(
    log: &AuditLog,
    tenant: TenantId,
    random: &mut Random,
    clock: &ManualClock,
    n: usize,
) {
    let reader = log.tenant(trusted(tenant));
    let mut done = 0;
    while done < n {
        let some = (1 + random.below(12) as usize).min(n - done);
        let events = (done..done + some)
            .map(|n| event(random, clock, n))
            .collect();
        let receipts = log.recorder(tenant).record_all(events).await;
        let mut ids: Vec<EventId> = receipts.expect("recorded").iter().map(|r| r.id).collect();
        clock.advance_micros(1_000);
        done += some;
        if random.one_in(6) {
            let mut groups = Group::ALL.to_vec();
            groups.retain(|_| random.one_in(2));
            ids.retain(|_| random.one_in(2));
            let groups = (!groups.is_empty()).then_some(groups);
            let erased = reader.erase(ids, groups, basis("gdpr-17"), None).await;
            erased.expect("erased");
            clock.advance_micros(1_000);
        }
    }
}

/// Prunes the entries below a position, which are archived before.
async fn prune_below(log: &AuditLog, tenant: TenantId, seq: u64) {
    let scope = trusted(tenant);
    let store = log.log_store();
    let first = store.at(&scope, &[seq]).await.expect("an entry");
    let before = first[0].created_at;
    let pruned = log
        .tenant(scope)
        .prune(before, basis("retention"), None, false)
        .await;
    assert!(pruned.expect("pruned").below > 0);
    while store.sweep().await.expect("swept") {}
}

/// Says that the log was restored, and is continued from its present head.
async fn begin_epoch<H: TamperingHarness>(harness: &H, tenant: TenantId) {
    let store = harness.store();
    let lease = |ttl| store.lease("restorer", ttl);
    let deadline = Instant::now() + DEADLINE;
    let fence = loop {
        match lease(Duration::from_secs(10)).await.expect("an answer") {
            Some(fence) => break fence,
            None => assert!(Instant::now() < deadline, "the lease is free in time"),
        }
        tokio::task::yield_now().await;
    };
    let declaration = epoch(store, tenant, fence, 2).await;
    let declared = store.declare(&trusted(tenant), &declaration).await;
    declared.expect("declared");
    harness.clock().advance_micros(1_000);
    lease(Duration::ZERO).await.expect("given back");
}

/// An export to its end, once somebody signs.
async fn exported(
    reader: &TenantLog,
    request: &EvidenceRequest,
    within: Duration,
) -> Result<String, Error> {
    let export = async || {
        let lines = reader.evidence(request.clone()).await?;
        lines.try_collect::<String>().await
    };
    let deadline = Instant::now() + within;
    loop {
        match export().await {
            Err(error) if error.is_retryable() && Instant::now() < deadline => {
                tokio::task::yield_now().await;
            }
            done => return done,
        }
    }
}

async fn whole(reader: &TenantLog) -> String {
    let text = exported(reader, &EvidenceRequest::new(), DEADLINE).await;
    text.expect("an export")
}

async fn tables<H: TamperingHarness>(harness: &H) -> Tables {
    let mut tables = Vec::new();
    for table in H::TABLES {
        tables.push(harness.rows(table).await);
    }
    tables
}

impl<H: TamperingHarness> Trial<H> {
    /// A log with changes of keys, an epoch, erasures, prunes and an archive, and its workers.
    pub(super) async fn begin() -> (Self, Workers) {
        let harness = H::open().await;
        let archive = Arc::new(MemoryArchive::new());
        let (tenant, clock) = (tenant_id(), harness.clock());
        let mut random = Random::new(SEED);
        for n in 0..2 {
            let log = signed_with(&harness, &archive, n);
            let workers = log.start();
            let reader = log.tenant(trusted(tenant));
            grow(&log, tenant, &mut random, &clock, 150).await;
            whole(&reader).await;
            if n == 1 {
                // The first change of keys goes with it.
                prune_below(&log, tenant, 200).await;
                whole(&reader).await;
            }
            workers.shutdown(DEADLINE).await;
        }
        begin_epoch(&harness, tenant).await;
        let log = signed_with(&harness, &archive, 2);
        let workers = log.start();
        let reader = log.tenant(trusted(tenant));
        grow(&log, tenant, &mut random, &clock, 120).await;
        whole(&reader).await;
        prune_below(&log, tenant, 290).await;
        let mut old = Vec::new();
        for n in [20, 60, 90] {
            let text = whole(&reader).await;
            old.push((tables(&harness).await, text));
            grow(&log, tenant, &mut random, &clock, n).await;
        }

        let text = whole(&reader).await;
        let latest = reader.checkpoint().await.expect("an answer");
        let latest = latest.expect("a checkpoint");
        let name = origin().for_tenant(tenant.into_uuid(), 1);
        let first = key(0).renamed(&name).expect("a key");
        let options = Options {
            keys: vec![first.verifying_key().clone()],
            known: vec![Note::parse(&latest.note).expect("a note")],
            ..Options::default()
        };
        let untouched = tables(&harness).await;
        let entries = H::TABLES.iter().zip(&untouched);
        let ids = entries
            .filter(|(table, _)| table.holds == Holds::Ids)
            .flat_map(|(table, rows)| rows.iter().map(|row| row[table.place("id")].clone()))
            .map(|id| match id {
                Cell::Bytes(bytes) => uuid::Uuid::from_slice(&bytes).expect("an id"),
                other => panic!("an id is {other:?}"),
            })
            .map(EventId::new)
            .collect::<Vec<_>>();
        let store = harness.store();
        let scope = trusted(tenant);
        let hashes = store.hashes(&scope, 0, 0..latest.size).await;
        let lookups = store.get(&scope, &ids).await.expect("entries");
        let trial = Self {
            log,
            tenant,
            archive,
            options,
            root: latest.root,
            hashes: hashes.expect("hashes"),
            ids,
            lookups,
            untouched,
            old,
            text,
            harness,
        };
        assert_eq!(trial.verify(&trial.text, false).findings, []);
        (trial, workers)
    }

    pub(super) fn size(&self) -> u64 {
        self.hashes.len() as u64
    }

    fn reader(&self) -> TenantLog {
        self.log.tenant(trusted(self.tenant))
    }

    pub(super) fn table_of(&self, holds: Holds) -> usize {
        let found = H::TABLES.iter().position(|table| table.holds == holds);
        found.expect("a table of each")
    }

    pub(super) fn rows_of(&self, holds: Holds) -> (&'static Table, &[Row]) {
        let table = self.table_of(holds);
        (&H::TABLES[table], &self.untouched[table])
    }

    pub(super) fn pruned_below(&self) -> u64 {
        let (heads, rows) = self.rows_of(Holds::Head);
        heads.number(&rows[0], "pruned_below")
    }

    /// What an auditor is told of an export, who demands the whole log or will do with a part.
    pub(super) fn verify(&self, text: &str, partial: bool) -> Report {
        let lines: Vec<&str> = text.lines().collect();
        self.judge(&lines, partial)
    }

    pub(super) fn judge(&self, lines: &[impl AsRef<[u8]>], partial: bool) -> Report {
        let options = Options {
            partial,
            ..self.options.clone()
        };
        verify_lines(lines, options)
    }

    /// The same of a segment, which may be of a smaller log than the known one.
    pub(super) fn judge_part(&self, lines: &[impl AsRef<[u8]>]) -> Report {
        let options = Options {
            partial: true,
            known: Vec::new(),
            // As many as a segment can have.
            max_holes: usize::MAX,
            ..self.options.clone()
        };
        verify_lines(lines, options)
    }

    /// The segments of the archive, with their files.
    pub(super) async fn segments(&self) -> BTreeMap<SegmentName, Files> {
        let mut segments: BTreeMap<SegmentName, Files> = BTreeMap::new();
        let folder = self.tenant.to_string();
        for path in self.archive.list(&folder, "").await.expect("a list") {
            let mut parts = path.splitn(3, '/').skip(1);
            let (name, file) = (parts.next(), parts.next());
            let name = name.and_then(SegmentName::parse).expect("a segment");
            let file = file.expect("a file").to_owned();
            let bytes = self.archive.get(&path).await.expect("an answer");
            let files = segments.entry(name).or_default();
            files.insert(file, bytes.expect("an object"));
        }
        segments
    }

    /// What somebody is shown who looks as the change says.
    pub(super) async fn look(&self, change: &Change) -> Verdict {
        let verdict = match self.shown(change).await {
            Ok(verdict) => verdict,
            Err(why) => return Verdict::Wrong(format!("{}: {why}", change.what)),
        };
        match change.exactly {
            Some(seq) if matches!(verdict, Verdict::Found) => match self.is_read(seq).await {
                Ok(()) => verdict,
                Err(why) => Verdict::Wrong(format!("{}: {why}", change.what)),
            },
            _ => verdict,
        }
    }

    async fn shown(&self, change: &Change) -> Result<Verdict, String> {
        // Somebody signs all the time: only a change can make it wait.
        let within = Duration::from_millis(500);
        let text = match exported(&self.reader(), &EvidenceRequest::new(), within).await {
            Err(error) => return is_told(&error, self.tenant, change).map(|()| Verdict::Found),
            Ok(text) => text,
        };
        let report = self.verify(&text, false);
        if !report.is_verified() {
            return match change.is_named(&report.findings) {
                true => Ok(Verdict::Found),
                false => Err(format!("not where it is: {:#?}", report.findings)),
            };
        }
        if text != self.text {
            return Err("exported otherwise, and verified".into());
        }
        let found = match change.shown {
            Shown::Reading => match change.exactly {
                Some(seq) => self.is_read(seq).await.is_ok(),
                None => false,
            },
            Shown::Lookup => self.look_ids_up(change).await?,
            Shown::Tiles => self.read_tiles(change).await?,
            Shown::Export | Shown::Nobody => false,
        };
        match (found, change.spare) {
            (true, _) => Ok(Verdict::Found),
            (false, Some(why)) => Ok(Verdict::Apart(why)),
            (false, None) => Err("not found".into()),
        }
    }

    /// That whoever reads an entry is told that just this one is corrupt.
    async fn is_read(&self, seq: u64) -> Result<(), String> {
        let store = self.harness.store();
        match store.at(&trusted(self.tenant), &[seq]).await {
            Err(error)
                if (error.kind(), error.position()) == (ErrorKind::Corrupt, Some(seq))
                    && error.tenant() == Some(self.tenant) =>
            {
                Ok(())
            }
            other => Err(format!("read as {other:?}")),
        }
    }

    /// Whether an id says that its entry is corrupt, or isn't there.
    async fn look_ids_up(&self, change: &Change) -> Result<bool, String> {
        let scope = trusted(self.tenant);
        match self.harness.store().get(&scope, &self.ids).await {
            Err(error) => is_told(&error, self.tenant, change).map(|()| true),
            Ok(found) => {
                let mut differ = self.lookups.iter().zip(&found).filter(|(a, b)| a != b);
                match differ.find(|(_, found)| matches!(found, Lookup::Found(_))) {
                    Some((_, wrong)) => Err(format!("another entry: {wrong:?}")),
                    None => Ok(found != self.lookups),
                }
            }
        }
    }

    /// Whether the tiles, or the bundles of entries, lead to another root than was signed.
    async fn read_tiles(&self, change: &Change) -> Result<bool, String> {
        let width = u64::from(FULL_WIDTH);
        let (scope, size) = (trusted(self.tenant), self.size());
        let told = |error: Error| is_told(&error, self.tenant, change).map(|()| true);
        let store = self.harness.store();
        let hashes = match store.hashes(&scope, 0, 0..size).await {
            Err(error) => return told(error),
            Ok(hashes) => hashes,
        };
        let above = match store.hashes(&scope, 1, 0..size / width).await {
            Err(error) => return told(error),
            Ok(hashes) => hashes,
        };
        let complete = hashes.chunks_exact(FULL_WIDTH as usize);
        if root(&hashes) != self.root || !complete.map(subtree_root).eq(above) {
            return Ok(true);
        }
        for index in self.pruned_below() / width..=(size - 1) / width {
            let tile = Tile::at(Content::Entries, index, size).expect("a tile");
            let bundle = match self.reader().tile(&tile).await {
                Err(error) => return told(error),
                Ok(bundle) => bundle,
            };
            let leaves = parse_entries(&bundle, tile.width()).expect("a bundle");
            let expected = hashes[(index * width) as usize..].iter().copied();
            let leaves = leaves.into_iter().map(leaf_hash);
            if !leaves
                .zip(expected)
                .all(|(leaf, expected)| leaf == expected)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Puts every row back, whatever workers made of the change meanwhile.
    pub(super) async fn undo(&self) {
        let restored = timeout(DEADLINE, async {
            loop {
                let now = tables(&self.harness).await;
                let mut replacements = Vec::new();
                for (table, (now, then)) in now.iter().zip(&self.untouched).enumerate() {
                    let (have, want): (HashSet<&Row>, HashSet<&Row>) =
                        (now.iter().collect(), then.iter().collect());
                    let gone: Vec<Row> = have.difference(&want).map(|r| (*r).clone()).collect();
                    let come: Vec<Row> = want.difference(&have).map(|r| (*r).clone()).collect();
                    if !gone.is_empty() || !come.is_empty() {
                        replacements.push(Replacement { table, gone, come });
                    }
                }
                if replacements.is_empty() {
                    return;
                }
                assert!(self.harness.replace(&replacements).await, "put back");
            }
        });
        restored.await.expect("put back in time");
    }

    /// Exports of the untouched log: one with groups or entries withheld, and the whole one.
    pub(super) async fn is_no_alarm(&self, random: &mut Random) {
        let mut groups = Group::ALL.to_vec();
        groups.retain(|_| random.one_in(3));
        let mut request = EvidenceRequest::new().withhold(&groups);
        if random.one_in(3) {
            request = request.filter(Filter::new().severity(Severity::ALL[0]));
        }
        let partial = exported(&self.reader(), &request, DEADLINE).await;
        let partial = partial.expect("an export");
        assert_eq!(self.verify(&partial, true).findings, [], "{request:?}");
        let whole = whole(&self.reader()).await;
        assert_eq!(self.verify(&whole, false).findings, []);
        assert_eq!(whole, self.text);
    }
}

/// Whether an error tells what is wrong, and where.
fn is_told(error: &Error, tenant: TenantId, change: &Change) -> Result<(), String> {
    let is_gone = change.hides_tenant && error.kind() == ErrorKind::UnknownTenant;
    let is_corrupt = error.kind() == ErrorKind::Corrupt && error.tenant() == Some(tenant);
    let positions = error.position().map(|seq| (seq, seq));
    let as_finding = Finding::at(Code::Leaf, positions, String::new());
    let is_there = change.near.is_empty() || change.is_near(&as_finding);
    match is_gone || (is_corrupt && is_there) {
        true => Ok(()),
        false => Err(format!("told as {error:?}")),
    }
}
