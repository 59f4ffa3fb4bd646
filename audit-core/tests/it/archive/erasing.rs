//! What is erased leaves the archive too, whatever fails on the way.

use audit_core::archive::ERASURES;
use audit_core::tlog::checkpoint::Checkpoint;
use audit_core::tlog::evidence::Record;
use audit_core::tlog::folder::CHECKPOINT;
use audit_core::tlog::leaf::open_disclosure;
use audit_core::{
    Act, Control, Erasure, ErasureJob, ErasureRequest, ErasureState, Filter, LegalHold,
    PageRequest, Query, Selection,
};

use tokio::task::JoinHandle;

use super::*;

/// What nothing but a person's own content holds.
const TOKEN: &str = "tq7XkV3mZp0cRw9sLd2YhB5n";

/// An event with the person in each of its groups.
fn of_person(n: usize) -> Event {
    Event::update(TOKEN, format!("{TOKEN}-{n}"))
        .user(TOKEN)
        .user_agent(TOKEN)
        .reason(format!("for {TOKEN}"))
        .before(&TOKEN)
        .after(&TOKEN)
        .metadata(&TOKEN)
}

impl Stage {
    /// Records 10 events, of which the third and the eighth are the person's.
    async fn record_ten(&self) -> Vec<EventId> {
        let event = |n| match n {
            2 | 7 => of_person(n),
            _ => Event::update("invoice", format!("inv-{n}")).user("bob"),
        };
        let events = (0..10).map(event).collect();
        let receipts = self.log.recorder(tenant()).record_all(events).await;
        self.clock.advance_micros(1_000_000);
        receipts.unwrap().iter().map(|receipt| receipt.id).collect()
    }

    /// A log whose first 31 positions are archived, in two segments, and pruned; the person is in both, and
    /// in what is left. Nothing runs any more.
    async fn pruned() -> (Self, Vec<EventId>) {
        let (mut stage, _) = Stage::signed(10).await;
        let mut ids = stage.record_ten().await;
        assert_eq!(stage.prune().await, 20);
        ids.extend(stage.record_ten().await);
        assert_eq!(stage.prune().await, 31);
        ids.extend(stage.record_ten().await);
        stage._workers = None;
        (stage, ids)
    }

    /// Names what the person has in the archive, as an erasure does.
    async fn name(&self) {
        let scope = TenantScope::trusted(tenant(), "test");
        let act = Act::new(&scope, None, self.clock.clone()).unwrap();
        let archived = [12, 17, 23, 28].map(|seq| (seq, Group::ALL.to_vec()));
        let erasure = Erasure::new(Vec::new(), basis(), act).archived(archived.to_vec());
        let erased = self.store.erase(&scope, &erasure).await.unwrap();
        assert_eq!(erased.entries, 4);
    }

    /// In how many objects of the archive a text is, also within what is packed and encoded there.
    async fn holding(&self, text: &str) -> usize {
        let has = |bytes: &[u8]| bytes.windows(text.len()).any(|w| w == text.as_bytes());
        let mut count = 0;
        let folder = tenant().to_string();
        for path in self.archive.inner.list(&folder, "").await.unwrap() {
            let bytes = self.archive.inner.get(&path).await.unwrap().unwrap();
            let mut found = has(path.as_bytes()) || has(&bytes);
            if path.ends_with(LOG_ZST) {
                let log = String::from_utf8(zstd::decode_all(bytes.as_slice()).unwrap()).unwrap();
                found |= has(log.as_bytes());
                for line in log.lines() {
                    let Ok(Record::Entry(line)) = Record::parse(line) else {
                        continue;
                    };
                    let shown = line.disclosures.iter().flatten();
                    let shown = shown.map(|one| open_disclosure(one).unwrap().value);
                    found |= shown.into_iter().any(|value| has(value.as_bytes()));
                }
            }
            count += usize::from(found);
        }
        count
    }

    /// That all positions below this one are in segments that verify, more than once perhaps, and that
    /// each is of the log with the newest head.
    async fn assert_covered(&self, below: u64) {
        let files = self.files().await;
        let note = |files: &BTreeMap<String, Vec<u8>>| {
            Note::parse(std::str::from_utf8(&files[CHECKPOINT]).unwrap()).unwrap()
        };
        let size = |note: &Note| Checkpoint::parse(note.text()).unwrap().size();
        let notes: Vec<Note> = files.iter().map(|(_, files)| note(files)).collect();
        let newest = notes.iter().map(size).max().unwrap();
        let (mut next, mut continued) = (0, Vec::new());
        for (name, files) in &files {
            let own = size(&note(files));
            let known = notes.iter().filter(|note| size(note) <= own).cloned();
            let report = judged(tenant(), files, known.collect());
            assert!(report.is_verified(), "{name}: {:#?}", report.findings);
            assert_eq!(report.withheld_within(&name.positions()), None);
            assert!(name.from <= next, "{name} behind {next}");
            next = next.max(name.to);
            continued.extend(report.known.into_iter().filter(|at| *at < own));
        }
        assert_eq!(next, below);
        for size in notes.iter().map(size).filter(|size| *size < newest) {
            assert!(continued.contains(&size), "{size}: {continued:?}");
        }
    }

    /// That each position is in the archive once, and nothing of the person is.
    async fn assert_forgotten(&self) {
        self.assert_archived(31).await;
        self.assert_covered(31).await;
        assert_eq!(self.holding(TOKEN).await, 0);
        assert_eq!(self.files().await.len(), 2);
        let folder = tenant().to_string();
        let paths = self.archive.inner.list(&folder, "").await.unwrap();
        let folders: std::collections::BTreeSet<_> =
            paths.iter().map(|path| path.split('/').nth(1)).collect();
        assert_eq!(folders.len(), 2, "{paths:?}");
    }

    async fn request(&self, selection: Selection) -> ErasureJob {
        let request = ErasureRequest::new(selection, Basis::parse("gdpr-17").unwrap());
        let asked = self.reader().request_erasure(request).await;
        asked.unwrap()
    }

    async fn done(&self, job: &ErasureJob) -> ErasureJob {
        let reader = self.reader();
        eventually(async || {
            let job = reader.erasure(job.id).await.unwrap();
            (job.state == ErasureState::Done).then_some(job)
        })
        .await
    }
}

#[tokio::test]
async fn a_person_is_in_the_archive_before_an_erasure_and_not_behind_it() {
    let by_user = Selection::user(TOKEN);
    let words = Filter::new().text(Query::parse(TOKEN).unwrap());
    for selection in [by_user, Selection::matching(words)] {
        let (mut stage, _) = Stage::pruned().await;
        assert_eq!(stage.holding(TOKEN).await, 2);
        let reader = stage.reader();
        let asked = ErasureRequest::new(selection.clone(), basis());
        let count = reader.count_erasure(&asked).await.unwrap();
        assert_eq!((count.matching, count.erasable), (6, 6));
        stage._workers = Some(stage.log.start());
        let job = stage.request(selection.clone()).await;
        let job = stage.done(&job).await;
        assert_eq!(job.entries, 6);
        stage.assert_forgotten().await;
        assert_eq!(stage.log.archived().unwrap().renewed, 2);
        // Nor is it anywhere else.
        let all = reader.list(&Filter::new(), &PageRequest::first()).await;
        assert!(
            all.unwrap()
                .items
                .iter()
                .all(|entry| !entry.to_json().contains(TOKEN))
        );
        let count = reader.count_erasure(&asked).await.unwrap();
        assert_eq!((count.matching, count.erasable), (0, 0));
        // An auditor is told which entry says so.
        let all = reader
            .list(&Filter::new().action("log.erase"), &PageRequest::first())
            .await;
        let named = all.unwrap().items.into_iter().filter(|entry| {
            let Some(Control::Erase { entries, .. }) = entry.control() else {
                return false;
            };
            entries.iter().any(|(from, _)| *from < 31)
        });
        let named: Vec<u64> = named.map(|entry| entry.seq).collect();
        for (_, report) in stage.segments().await {
            assert_eq!(report.groups.erased, 14);
            assert!(report.erased_by.iter().all(|(seq, _)| named.contains(seq)));
        }
        // The archive goes on.
        stage.record_ten().await;
        let below = stage.prune().await;
        stage.assert_archived(below).await;
        stage.assert_covered(below).await;
    }
}

#[tokio::test]
async fn an_erasure_by_ids_finds_the_pruned_ones_in_the_archive() {
    let (mut stage, ids) = Stage::pruned().await;
    // One of each segment, one that is left, and one that never was.
    let mut some: Vec<EventId> = [2, 17, 22].map(|n| ids[n]).to_vec();
    some.push(EventId::new(Uuid::from_u128(7)));
    let asked = ErasureRequest::new(Selection::ids(some.clone()), basis());
    let count = stage.reader().count_erasure(&asked).await.unwrap();
    assert_eq!((count.matching, count.erasable), (3, 3));
    stage._workers = Some(stage.log.start());
    let job = stage.request(Selection::ids(some)).await;
    assert_eq!(stage.done(&job).await.entries, 3);
    stage.assert_archived(31).await;
    let erased = stage.segments().await;
    let erased = erased.iter().map(|(_, report)| report.groups.erased);
    assert_eq!(erased.collect::<Vec<_>>(), [7, 7]);
}

#[tokio::test]
async fn whatever_call_fails_no_position_is_lost_and_the_next_try_forgets_the_person() {
    let modes = [Mode::Fails, Mode::LosesItsAnswer, Mode::Cuts, Mode::Alters];
    for mode in modes {
        let mut failed = 0;
        for call in 0.. {
            let (stage, _) = Stage::pruned().await;
            stage.name().await;
            stage.archive.next_fault(call, mode);
            let reader = stage.reader();
            let outcome = reader.erase_in_archive().await;
            let happened = stage.archive.take_fault();
            if !happened && stage.archive.calls.load(Ordering::SeqCst) <= call {
                outcome.unwrap();
                break;
            }
            stage.assert_covered(31).await;
            if let Err(error) = outcome {
                failed += 1;
                assert!(error.is_retryable() || error.kind() == ErrorKind::Corrupt);
                let cursor = stage.store.cursor(tenant(), ERASURES).await.unwrap();
                assert!(cursor < 41, "{mode:?} {call}: {cursor}");
                reader.erase_in_archive().await.unwrap();
            }
            stage.assert_forgotten().await;
        }
        assert!(failed > 10, "{mode:?}: {failed}");
    }
}

#[tokio::test]
async fn a_kill_leaves_each_position_in_a_segment_that_verifies() {
    for mode in [Mode::DiesBefore, Mode::DiesAfter] {
        let mut died = 0;
        for call in 0.. {
            let (stage, _) = Stage::pruned().await;
            stage.name().await;
            stage.archive.next_fault(call, mode);
            let reader = stage.reader();
            let killed = tokio::select! {
                outcome = reader.erase_in_archive() => { outcome.unwrap(); false }
                () = stage.archive.died.notified() => true,
            };
            if !killed {
                break;
            }
            died += 1;
            stage.assert_covered(31).await;
            reader.erase_in_archive().await.unwrap();
            stage.assert_forgotten().await;
        }
        assert!(died > 20, "{mode:?}: {died}");
    }
}

impl Stage {
    /// A log of which a try archived the first 20 positions, and pruned none; the person was in them, and
    /// was erased. Nothing runs any more. Returns when all of them had been recorded, too.
    async fn archived_and_erased() -> (Self, Timestamp) {
        let (mut stage, _) = Self::signed(10).await;
        let ids = stage.record_ten().await;
        stage._workers = None;
        let recorded = stage.clock.now();
        // The segment is whole, and its answer was lost.
        stage.archive.next_fault(4, Mode::LosesItsAnswer);
        stage.try_prune().await.unwrap_err();
        let erased = vec![ids[2], ids[7]];
        let erased = stage.reader().erase(erased, None, basis(), None).await;
        assert_eq!(erased.unwrap().entries, 2);
        stage.clock.advance_micros(1_000_000);
        (stage, recorded)
    }

    fn follows(&self) -> JoinHandle<Result<u64>> {
        let reader = self.reader();
        tokio::spawn(async move { reader.erase_in_archive().await })
    }

    fn prunes(&self, before: Timestamp) -> JoinHandle<Result<u64>> {
        let reader = self.reader();
        tokio::spawn(async move {
            let pruned = reader.prune(before, basis(), None, false).await?;
            Ok(pruned.below)
        })
    }

    /// That what is pruned is in the archive, and the person isn't, now and behind the next prune.
    async fn assert_kept_and_forgotten(&self) {
        self.assert_kept(self.pruned_below().await).await;
        self.reader().erase_in_archive().await.unwrap();
        assert_eq!(self.holding(TOKEN).await, 0);
        self.assert_kept(self.pruned_below().await).await;
        let below = self.prune().await;
        self.assert_kept(below).await;
        assert_eq!(self.holding(TOKEN).await, 0);
    }
}

/// It would be `done` while a segment shows the person that the archive has a moment later.
#[tokio::test]
async fn no_erasure_is_followed_past_what_is_being_archived() {
    let faults = [Mode::Fails, Mode::LosesItsAnswer];
    for mode in faults
        .into_iter()
        .chain([Mode::DiesBefore, Mode::DiesAfter])
    {
        // The three files that come behind the first one, and four that are read back.
        for call in 0..7 {
            let (mut stage, _) = Stage::signed(10).await;
            let ids = stage.record_ten().await;
            stage._workers = None;
            stage.archive.next_fault(1, Mode::Waits);
            let mut prunes = stage.prunes(stage.clock.now());
            stage.archive.died.notified().await;
            let erased = vec![ids[2], ids[7]];
            let erased = stage.reader().erase(erased, None, basis(), None).await;
            assert_eq!(erased.unwrap().entries, 2);
            let follows = stage.follows();
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert!(!follows.is_finished(), "{mode:?} {call}");
            stage.archive.next_fault(call, mode);
            stage.archive.go.notify_one();
            tokio::select! {
                pruned = &mut prunes => { pruned.unwrap().unwrap_err(); }
                () = stage.archive.died.notified() => prunes.abort(),
            }
            follows.await.unwrap().unwrap();
            assert!(stage.archive.take_fault(), "{mode:?} {call}");
            assert_eq!(stage.holding(TOKEN).await, 0, "{mode:?} {call}");
            assert_eq!(stage.pruned_below().await, 0);
            stage.clock.advance_micros(1_000_000);
            assert_eq!(stage.prune().await, 21);
            stage.assert_archived(21).await;
        }
    }
}

/// Nor does a part of one.
#[tokio::test]
async fn what_a_killed_try_left_without_a_manifest_shows_nothing_that_is_erased_later() {
    for call in [3, 4] {
        let (mut stage, _) = Stage::signed(10).await;
        let ids = stage.record_ten().await;
        stage._workers = None;
        // The log is there, and its manifest not.
        let mode = [Mode::DiesAfter, Mode::DiesBefore][call - 3];
        stage.archive.next_fault(call as u64, mode);
        let prunes = stage.prunes(stage.clock.now());
        stage.archive.died.notified().await;
        prunes.abort();
        assert_eq!(stage.holding(TOKEN).await, 1);
        let erased = vec![ids[2], ids[7]];
        let erased = stage.reader().erase(erased, None, basis(), None).await;
        assert_eq!(erased.unwrap().entries, 2);
        stage.reader().erase_in_archive().await.unwrap();
        assert_eq!(stage.holding(TOKEN).await, 0);
    }
}

/// One takes from the archive what was erased, and has found a segment that the other writes just then, at
/// the same positions, to prune them.
#[tokio::test]
async fn of_two_processes_neither_removes_what_the_other_relies_on() {
    for call in 0.. {
        let (stage, recorded) = Stage::archived_and_erased().await;
        let other = stage.other().await;
        stage.archive.next_fault(0, Mode::Waits);
        let follows = stage.follows();
        stage.archive.died.notified().await;
        // That of the segment behind the one that it writes without what was erased.
        *other.archive.manifest.lock().unwrap() = Some(1);
        let prunes = other.prunes(recorded);
        other.archive.died.notified().await;
        stage.archive.next_fault(call, Mode::Waits);
        stage.archive.go.notify_one();
        let mut follows = follows;
        let is_through = tokio::select! {
            followed = &mut follows => { followed.unwrap().unwrap(); true }
            () = stage.archive.died.notified() => false,
        };
        stage.archive.take_fault();
        other.archive.go.notify_one();
        match prunes.await.unwrap() {
            Ok(below) => assert_eq!(below, 20, "{call}"),
            Err(error) => assert!(error.is_retryable(), "{call}: {error}"),
        }
        if !is_through {
            stage.archive.go.notify_one();
            if let Err(error) = follows.await.unwrap() {
                assert!(error.is_retryable(), "{call}: {error}");
            }
        }
        stage.assert_kept_and_forgotten().await;
        if is_through {
            assert!(call > 10, "{call}");
            break;
        }
    }
}

#[tokio::test]
async fn a_process_that_archives_and_one_that_follows_erasures_meet_at_any_call() {
    for call in 0.. {
        let (stage, recorded) = Stage::archived_and_erased().await;
        let other = stage.other().await;
        other.archive.next_fault(call, Mode::Waits);
        let mut prunes = other.prunes(recorded);
        let is_through = tokio::select! {
            pruned = &mut prunes => { assert_eq!(pruned.unwrap().unwrap(), 20); true }
            () = other.archive.died.notified() => false,
        };
        stage.reader().erase_in_archive().await.unwrap();
        if !is_through {
            other.archive.go.notify_one();
            if let Err(error) = prunes.await.unwrap() {
                assert!(error.is_retryable(), "{call}: {error}");
            }
        }
        stage.assert_kept_and_forgotten().await;
        if is_through {
            assert!(call > 20, "{call}");
            break;
        }
    }
}

#[tokio::test]
async fn what_is_not_intact_is_not_removed_and_holds_up_no_other() {
    let (stage, _) = Stage::pruned().await;
    stage.name().await;
    let folder = tenant().to_string();
    let paths = stage.archive.inner.list(&folder, "").await.unwrap();
    let damaged = paths.iter().find(|path| path.ends_with(LOG_ZST)).unwrap();
    let bytes = stage.archive.inner.get(damaged).await.unwrap().unwrap();
    let cut = bytes[..bytes.len() / 2].to_vec();
    stage.archive.inner.put(damaged, cut).await.unwrap();
    let refused = stage.reader().erase_in_archive().await.unwrap_err();
    let name = damaged.split('/').nth(1).unwrap();
    assert!(refused.to_string().contains(name), "{refused}");
    let left = stage.archive.inner.list(&folder, "").await.unwrap();
    let mut damaged_ones = paths.iter().filter(|path| path.contains(name));
    assert!(damaged_ones.all(|path| left.contains(path)));
    assert_eq!(stage.log.archived().unwrap().renewed, 1);
    stage
        .archive
        .inner
        .put(damaged, bytes.clone())
        .await
        .unwrap();
    assert_eq!(stage.holding(TOKEN).await, 1);
    let cursor = stage.store.cursor(tenant(), ERASURES).await.unwrap();
    assert!(cursor < 41, "{cursor}");
    // Once it is there again, the archive follows.
    stage.archive.inner.put(damaged, bytes).await.unwrap();
    stage.reader().erase_in_archive().await.unwrap();
    stage.assert_forgotten().await;
}

#[tokio::test]
async fn an_erasure_is_done_when_the_archive_has_followed_and_not_before() {
    let (mut stage, _) = Stage::pruned().await;
    // A process that doesn't sign finds the person, and can't write what would have to be signed.
    let other = AuditLog::builder(stage.store.clone())
        .clock(stage.clock.clone())
        .archive(stage.archive.clone())
        .build();
    let workers = other.start();
    let job = stage.request(Selection::user(TOKEN)).await;
    let reader = stage.reader();
    let waiting = eventually(async || {
        let job = reader.erasure(job.id).await.unwrap();
        job.last_error.is_some().then_some(job)
    })
    .await;
    assert_eq!(waiting.state, ErasureState::Running);
    assert_eq!((waiting.next, waiting.entries), (waiting.end, 6));
    assert!(waiting.last_error.unwrap().contains("signs"));
    assert_eq!(stage.holding(TOKEN).await, 2);
    stage._workers = Some(stage.log.start());
    stage.done(&job).await;
    stage.assert_forgotten().await;
    assert!(workers.shutdown(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn an_erasure_waits_for_a_damaged_segment_and_names_it() {
    let (mut stage, _) = Stage::pruned().await;
    let folder = tenant().to_string();
    let paths = stage.archive.inner.list(&folder, "").await.unwrap();
    let damaged = paths.iter().rfind(|path| path.ends_with(LOG_ZST)).unwrap();
    let bytes = stage.archive.inner.get(damaged).await.unwrap().unwrap();
    let cut = bytes[..bytes.len() / 2].to_vec();
    stage.archive.inner.put(damaged, cut).await.unwrap();
    stage._workers = Some(stage.log.start());
    let job = stage.request(Selection::user(TOKEN)).await;
    let reader = stage.reader();
    let named = eventually(async || reader.erasure(job.id).await.unwrap().last_error).await;
    assert!(
        named.contains(damaged.split('/').nth(1).unwrap()),
        "{named}"
    );
    assert!(stage.archive.inner.get(damaged).await.unwrap().is_some());
    stage.archive.inner.put(damaged, bytes).await.unwrap();
    assert_eq!(stage.done(&job).await.entries, 6);
    stage.assert_forgotten().await;
}

#[tokio::test]
async fn a_process_that_does_not_know_the_archive_ends_no_erasure() {
    let (mut stage, _) = Stage::pruned().await;
    let other = AuditLog::builder(stage.store.clone())
        .clock(stage.clock.clone())
        .build();
    let workers = other.start();
    let job = stage.request(Selection::user(TOKEN)).await;
    let reader = stage.reader();
    let told = eventually(async || reader.erasure(job.id).await.unwrap().last_error).await;
    assert!(told.contains("archive"), "{told}");
    let waiting = reader.erasure(job.id).await.unwrap();
    assert_eq!(waiting.state, ErasureState::Running);
    assert!(workers.shutdown(Duration::from_secs(5)).await);
    stage._workers = Some(stage.log.start());
    assert_eq!(stage.done(&job).await.entries, 6);
    stage.assert_forgotten().await;
}

#[tokio::test]
async fn a_dry_run_of_a_prune_leaves_the_archive_as_it_is() {
    let (stage, _) = Stage::archived_and_erased().await;
    let folder = tenant().to_string();
    let before = stage.archive.inner.list(&folder, "").await.unwrap();
    let now = stage.clock.now();
    let dry = stage.reader().prune(now, basis(), None, true).await;
    assert_eq!(dry.unwrap().below, 20);
    let behind = stage.archive.inner.list(&folder, "").await.unwrap();
    assert_eq!(before, behind);
    assert_eq!(stage.log.archived().unwrap().renewed, 0);
    let cursor = stage.store.cursor(tenant(), ERASURES).await.unwrap();
    assert!(cursor <= 20, "{cursor}");
    // When nothing is to be taken out first, it tells what would go.
    stage.reader().erase_in_archive().await.unwrap();
    let dry = stage.reader().prune(now, basis(), None, true).await;
    assert_eq!(dry.unwrap().entries, 21);
}

#[tokio::test]
async fn a_prune_waits_until_the_archive_has_followed() {
    let (stage, _) = Stage::pruned().await;
    stage.name().await;
    let refused = stage.try_prune().await.unwrap_err();
    assert!(refused.is_retryable(), "{refused}");
    assert_eq!(stage.pruned_below().await, 31);
    stage.reader().erase_in_archive().await.unwrap();
    assert_eq!(stage.prune().await, 42);
    stage.assert_archived(42).await;
    stage.assert_covered(42).await;
}

#[tokio::test]
async fn while_a_hold_is_open_nothing_leaves_the_archive() {
    let (stage, _) = Stage::pruned().await;
    stage.name().await;
    let name = "Smith v. Jones";
    let placed = stage.log.place_hold(tenant(), None, name, "admin", None);
    let hold: LegalHold = placed.await.unwrap();
    let reader = stage.reader();
    let refused = reader.erase_in_archive().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused);
    assert!(refused.to_string().contains(name), "{refused}");
    assert_eq!(stage.holding(TOKEN).await, 2);
    let released = stage.log.release_hold(tenant(), hold.id, "admin", None);
    released.await.unwrap();
    reader.erase_in_archive().await.unwrap();
    stage.assert_forgotten().await;
}

#[tokio::test]
async fn what_an_earlier_try_left_of_what_is_not_pruned_is_forgotten_too() {
    let (mut stage, _) = Stage::signed(10).await;
    let ids = stage.record_ten().await;
    stage._workers = None;
    // The segment is whole, and its answer was lost.
    stage.archive.next_fault(4, Mode::LosesItsAnswer);
    stage.try_prune().await.unwrap_err();
    assert_eq!(stage.holding(TOKEN).await, 1);
    let reader = stage.reader();
    let erased = reader.erase(vec![ids[2], ids[7]], None, basis(), None);
    assert_eq!(erased.await.unwrap().entries, 2);
    reader.erase_in_archive().await.unwrap();
    assert_eq!(stage.holding(TOKEN).await, 0);
    stage.clock.advance_micros(1_000_000);
    assert_eq!(stage.prune().await, 21);
    stage.assert_archived(21).await;
}

#[tokio::test]
async fn who_erased_is_forgotten_where_the_entry_is_and_nowhere_else() {
    let (mut stage, _) = Stage::pruned().await;
    // The person erases what somebody else did, and is archived with that.
    let person = stage.log.tenant(TenantScope::trusted(tenant(), TOKEN));
    let scope = person.scope().clone();
    let act = Act::new(&scope, None, stage.clock.clone()).unwrap();
    let archived = vec![(10, vec![Group::Actor]), (21, vec![Group::Actor])];
    let erasure = Erasure::new(Vec::new(), basis(), act).archived(archived);
    stage.store.erase(&scope, &erasure).await.unwrap();
    stage.name().await;
    stage.reader().erase_in_archive().await.unwrap();
    stage.assert_forgotten().await;
    stage.clock.advance_micros(1_000_000);
    let below = stage.prune().await;
    assert_eq!(stage.holding(TOKEN).await, 1);
    stage._workers = Some(stage.log.start());
    let job = stage.request(Selection::user(TOKEN)).await;
    // Two of the last ten, and the entry that says what the person erased.
    assert_eq!(stage.done(&job).await.entries, 3);
    assert_eq!(stage.holding(TOKEN).await, 0);
    stage.assert_archived(below).await;
    stage.assert_covered(below).await;
}
