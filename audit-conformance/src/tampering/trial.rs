//! A log with all that a log can have, and who looks at it.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use audit_core::tlog::checkpoint::Origin;
use audit_core::tlog::evidence::Record;
use audit_core::tlog::folder::SegmentName;
use audit_core::tlog::leaf::leaf_hash;
use audit_core::tlog::merkle::subtree_root;
use audit_core::tlog::note::{Note, SigningKey};
use audit_core::tlog::tile::{Content, FULL_WIDTH, Tile, parse_entries};
use audit_core::tlog::verify::{Options, Report, verify_lines};
use audit_core::{
    Archive as _, AuditLog, CheckpointStore as _, Clock as _, Error, ErrorKind, Event, EventId,
    EvidenceRequest, Filter, Group, Hash, LogStore as _, Lookup, ManualClock, MemoryArchive,
    Recorder as _, Signer, TenantId, TenantLog, Timestamp, Workers,
};
use futures_util::TryStreamExt as _;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::change::Change;
use super::{Cell, Holds, Replacement, Row, SEED, Shown, Table, TamperingHarness, Verdict};
use crate::fixture::{DEADLINE, basis, epoch, trusted};
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
    options: Options,
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

pub(super) fn key(n: u8) -> SigningKey {
    SigningKey::from_seed(ORIGIN, &[n; 32]).expect("a key")
}

pub(super) fn origin() -> Origin {
    Origin::parse(ORIGIN).expect("an origin")
}

/// What an auditor has from elsewhere: the key that a log began with, and its largest checkpoint.
pub(super) fn known(tenant: TenantId, checkpoint: &str) -> Options {
    let name = origin().for_tenant(tenant.into_uuid(), 1);
    let first = key(0).renamed(&name).expect("a key");
    Options {
        keys: vec![first.verifying_key().clone()],
        known: vec![Note::parse(checkpoint).expect("a note")],
        ..Options::default()
    }
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

/// Records so many events, and erases some groups of some entries now and then. Their ids.
pub(super) async fn grow(
    log: &AuditLog,
    tenant: TenantId,
    random: &mut Random,
    clock: &ManualClock,
    n: usize,
) -> Vec<EventId> {
    let reader = log.tenant(trusted(tenant));
    let mut recorded = Vec::new();
    while recorded.len() < n {
        let done = recorded.len();
        let some = (1 + random.below(12) as usize).min(n - done);
        let events = (done..done + some)
            .map(|n| event(random, clock, n))
            .collect();
        let receipts = log.recorder(tenant).record_all(events).await;
        let mut ids: Vec<EventId> = receipts.expect("recorded").iter().map(|r| r.id).collect();
        recorded.extend_from_slice(&ids);
        clock.advance_micros(1_000);
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
    recorded
}

/// Prunes the entries that were accepted before the one at a position; with an archive they are archived
/// before. The position that the log then begins at.
pub(super) async fn prune_below(log: &AuditLog, tenant: TenantId, seq: u64) -> u64 {
    let scope = trusted(tenant);
    let store = log.log_store();
    let first = store.at(&scope, &[seq]).await.expect("an entry");
    let before = first[0].created_at;
    let pruned = log
        .tenant(scope)
        .prune(before, basis("retention"), None, false)
        .await;
    while store.sweep().await.expect("swept") {}
    pruned.expect("pruned").below
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
pub(super) async fn exported(
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

pub(super) async fn whole(reader: &TenantLog) -> String {
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
        // Of a database of its own: the same in every run, as seeds and ids are.
        let (tenant, clock) = (TenantId::new(Uuid::from_u128(SEED.into())), harness.clock());
        let mut random = Random::new(SEED);
        for n in 0..2 {
            let log = signed_with(&harness, &archive, n);
            let workers = log.start();
            let reader = log.tenant(trusted(tenant));
            grow(&log, tenant, &mut random, &clock, 150).await;
            whole(&reader).await;
            if n == 1 {
                // The first change of keys goes with it.
                assert!(prune_below(&log, tenant, 200).await > 0);
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
        assert!(prune_below(&log, tenant, 290).await > 256);
        let mut old = Vec::new();
        for n in [20, 60, 90] {
            let text = whole(&reader).await;
            old.push((tables(&harness).await, text));
            grow(&log, tenant, &mut random, &clock, n).await;
        }

        let text = whole(&reader).await;
        let latest = reader.checkpoint().await.expect("an answer");
        let latest = latest.expect("a checkpoint");
        let options = known(tenant, &latest.note);
        let untouched = tables(&harness).await;
        let entries = H::TABLES.iter().zip(&untouched);
        let ids = entries
            .filter(|(table, _)| table.holds == Holds::Ids)
            .flat_map(|(table, rows)| rows.iter().map(|row| row[table.place("id")].clone()))
            .map(|id| match id {
                Cell::Bytes(bytes) => Uuid::from_slice(&bytes).expect("an id"),
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
        let wrong = |why| Verdict::Wrong(format!("{}: {why}", change.what));
        let verdict = match self.shown(change).await {
            Ok(verdict) => verdict,
            Err(why) => return wrong(why),
        };
        match change.exactly {
            Some(seq) if matches!(verdict, Verdict::Found(_)) => match self.is_read(seq).await {
                Ok(_) => verdict,
                Err(why) => wrong(why),
            },
            _ => verdict,
        }
    }

    async fn shown(&self, change: &Change) -> Result<Verdict, String> {
        // Somebody signs all the time: only a change can make it wait.
        let within = Duration::from_millis(500);
        let text = match exported(&self.reader(), &EvidenceRequest::new(), within).await {
            Err(error) => return self.is_told(&error, change).map(Verdict::Found),
            Ok(text) => text,
        };
        let report = self.verify(&text, false);
        if !report.is_verified() {
            return match change.named(&report.findings) {
                Some(finding) => Ok(Verdict::Found(format!("finding {}", finding.code))),
                None => Err(format!("not where it is: {:#?}", report.findings)),
            };
        }
        if text != self.text {
            return Err("exported otherwise, and verified".into());
        }
        let found = match change.shown {
            Shown::Reading => match change.exactly {
                Some(seq) => self.is_read(seq).await.ok(),
                None => None,
            },
            Shown::Lookup => self.look_ids_up(change).await?,
            Shown::Tiles => self.read_tiles(change).await?,
            Shown::Export | Shown::Nobody => None,
        };
        match (found, change.spare) {
            (Some(how), _) => Ok(Verdict::Found(how)),
            (None, Some(why)) => Ok(Verdict::Apart(why)),
            (None, None) => Err("not found".into()),
        }
    }

    /// That whoever reads an entry is told that just this one is corrupt.
    async fn is_read(&self, seq: u64) -> Result<String, String> {
        let store = self.harness.store();
        match store.at(&trusted(self.tenant), &[seq]).await {
            Err(error)
                if (error.kind(), error.position()) == (ErrorKind::Corrupt, Some(seq))
                    && error.tenant() == Some(self.tenant) =>
            {
                Ok("reading its entry".into())
            }
            other => Err(format!("read as {other:?}")),
        }
    }

    /// Whether an id that a changed row is about says that its entry is corrupt, or isn't there; and no
    /// other id says anything else than before.
    async fn look_ids_up(&self, change: &Change) -> Result<Option<String>, String> {
        let scope = trusted(self.tenant);
        let store = self.harness.store();
        let all = store.get(&scope, &self.ids).await;
        let mut found = None;
        for (id, before) in self.ids.iter().zip(&self.lookups) {
            let now = match &all {
                Ok(_) => continue,
                // Whose it is, is asked for one by one.
                Err(_) => store.get(&scope, std::slice::from_ref(id)).await,
            };
            match now {
                Err(error) => found = Some(self.is_told(&error, change)?),
                Ok(now) => match self.is_same(before, &now[0], change) {
                    Ok(true) => {}
                    Ok(false) => found = Some("an id that isn't there".into()),
                    Err(why) => return Err(format!("{id}: {why}")),
                },
            }
        }
        for (before, now) in self.lookups.iter().zip(all.iter().flatten()) {
            if !self.is_same(before, now, change)? {
                found = Some("an id that isn't there".into());
            }
        }
        for id in &change.forged {
            match store.get(&scope, std::slice::from_ref(id)).await {
                Err(error) => found = Some(self.is_told(&error, change)?),
                Ok(now) => return Err(format!("an id that nobody gave out is {now:?}")),
            }
        }
        Ok(found)
    }

    /// Whether an id is what it was. Of a changed row it may be none, or a pruned one: the export has the
    /// entry.
    fn is_same(&self, before: &Lookup, now: &Lookup, change: &Change) -> Result<bool, String> {
        let was = match before {
            Lookup::Found(entry) => Some(entry.seq),
            _ => None,
        };
        match (before, now) {
            _ if before == now => Ok(true),
            (Lookup::Found(_), Lookup::Missing | Lookup::Pruned { .. })
            | (Lookup::Pruned { .. }, Lookup::Missing)
                if was.is_none_or(|seq| change.is_there(Some(seq))) =>
            {
                Ok(false)
            }
            _ => Err(format!("{now:?} instead of {before:?}")),
        }
    }

    /// Whether the tiles, or the bundles of entries, lead to another root than was signed, by what they
    /// hold at a place of the change.
    async fn read_tiles(&self, change: &Change) -> Result<Option<String>, String> {
        let width = u64::from(FULL_WIDTH);
        let (scope, size) = (trusted(self.tenant), self.size());
        let told = |error: Error| self.is_told(&error, change).map(Some);
        let at = |seq: u64, what: &str| match change.is_there(Some(seq)) {
            true => Ok(Some(what.to_owned())),
            false => Err(format!("{what}: another at {seq}")),
        };
        let store = self.harness.store();
        let hashes = match store.hashes(&scope, 0, 0..size).await {
            Err(error) => return told(error),
            Ok(hashes) => hashes,
        };
        let mut both = hashes.iter().zip(&self.hashes);
        if let Some(seq) = both.position(|(now, before)| now != before) {
            return at(seq as u64, "hash tile");
        }
        let above = match store.hashes(&scope, 1, 0..size / width).await {
            Err(error) => return told(error),
            Ok(hashes) => hashes,
        };
        let complete = hashes.chunks_exact(FULL_WIDTH as usize).map(subtree_root);
        if let Some(idx) = complete.zip(&above).position(|(own, above)| own != *above) {
            return at(idx as u64 * width, "hash tile of level 1");
        }
        for index in self.pruned_below() / width..=(size - 1) / width {
            let tile = Tile::at(Content::Entries, index, size).expect("a tile");
            let bundle = match self.reader().tile(&tile).await {
                // Of what of the bundle is missing no one position is told.
                Err(error) if error.kind() == ErrorKind::Corrupt && error.position().is_none() => {
                    return at_any(change, index * width..(index + 1) * width);
                }
                Err(error) => return told(error),
                Ok(bundle) => bundle,
            };
            let leaves = parse_entries(&bundle, tile.width()).expect("a bundle");
            let expected = &hashes[(index * width) as usize..];
            let mut both = leaves.into_iter().map(leaf_hash).zip(expected);
            if let Some(place) = both.position(|(leaf, expected)| leaf != *expected) {
                return at(index * width + place as u64, "bundle of entries");
            }
        }
        Ok(None)
    }

    /// The leaf data that a changed entry is exported with; none where it can't be.
    pub(super) async fn leaf_of(&self, seq: u64) -> Option<String> {
        let within = Duration::from_millis(500);
        let text = exported(&self.reader(), &EvidenceRequest::new(), within).await;
        let text = text.ok()?;
        text.lines().find_map(|line| match Record::parse(line) {
            Ok(Record::Entry(entry)) if entry.seq == seq => Some(entry.leaf.into_owned()),
            _ => None,
        })
    }

    /// Whether an error tells what is wrong, and where.
    fn is_told(&self, error: &Error, change: &Change) -> Result<String, String> {
        // What only a known checkpoint can tell, no error may tell in its place.
        let may_fail = change.code.is_none();
        let is_gone = change.hides_tenant && error.kind() == ErrorKind::UnknownTenant;
        let is_corrupt = error.kind() == ErrorKind::Corrupt && error.tenant() == Some(self.tenant);
        let said = error.to_string();
        let says = change.says.is_none_or(|says| said.contains(says));
        let position = error.position();
        let stands_there = position.is_some() && position == change.stands_at;
        let is_there = stands_there || change.is_there(position);
        match may_fail && says && (is_gone || (is_corrupt && is_there)) {
            true => Ok(format!(
                "error: {}",
                said.split(" (").next().unwrap_or_default()
            )),
            false => Err(format!("told as {error:?}")),
        }
    }

    /// Puts every row back, whatever workers made of the change meanwhile.
    pub(super) async fn undo(&self) {
        let restored = timeout(DEADLINE, async {
            let mut clean = 0;
            // Once more, for what a worker was about to write.
            while clean < 2 {
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
                    clean += 1;
                    tokio::task::yield_now().await;
                    continue;
                }
                clean = 0;
                // A worker may have written meanwhile: then the rows are looked at again.
                self.harness.replace(&replacements).await;
            }
        });
        restored.await.expect("put back in time");
    }

    /// Exports of the untouched log: one with groups or entries withheld, and the whole one.
    pub(super) async fn is_no_alarm(&self, random: &mut Random) {
        let request = part(random, self.harness.clock().now(), self.size());
        let partial = exported(&self.reader(), &request, DEADLINE).await;
        let partial = partial.expect("an export");
        assert_eq!(self.verify(&partial, true).findings, [], "{request:?}");
        let whole = whole(&self.reader()).await;
        assert_eq!(self.verify(&whole, false).findings, []);
        assert_eq!(whole, self.text);
    }
}

/// A part of a log: entries that match, without some groups that the filter says nothing of.
pub(super) fn part(random: &mut Random, now: Timestamp, size: u64) -> EvidenceRequest {
    let filter = match random.one_in(2) {
        true => random.filter(&[now], size),
        false => Filter::new(),
    };
    let told: Vec<Option<Group>> = filter
        .conditions()
        .iter()
        .map(|condition| condition.field.group())
        .collect();
    let mut groups = Group::ALL.to_vec();
    groups.retain(|group| random.one_in(3) && !told.contains(&Some(*group)));
    EvidenceRequest::new().filter(filter).withhold(&groups)
}

/// Whether a change is about a position of a bundle of which leaf data is missing.
fn at_any(change: &Change, bundle: Range<u64>) -> Result<Option<String>, String> {
    let mut seqs = bundle.clone();
    match seqs.any(|seq| change.is_there(Some(seq))) {
        true => Ok(Some("leaf data missing in a bundle of entries".into())),
        false => Err(format!("leaf data is missing within {bundle:?}")),
    }
}
