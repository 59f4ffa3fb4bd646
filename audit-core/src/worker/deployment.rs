//! Keeps the deployment log: commits to the heads of tenants' logs that grew, signs its own head once in
//! each period, and has it cosigned.

use std::sync::Arc;
use std::time::Duration;

use audit_tlog::leaf::Salt;
use audit_tlog::merkle;
use audit_tlog::note::{Note, NoteFault, Signature, VerifyingKey};
use audit_tlog::witness::{AddCheckpoint, accept_cosignatures};
use audit_tlog::{HeadOpening, Timestamp};
use futures_util::future::join_all;
use tokio::time::Instant;

use super::{Worker, pause_after};
use crate::checkpoint::{Fence, SignedCheckpoint};
use crate::deployment::{
    Deployment, TenantHead, Witness, WitnessAnswer, epoch_of, note_of, with_cosignatures,
};
use crate::error::{Error, ErrorKind, Result};
use crate::guard::{GuardedHead, Sentry};
use crate::signing::Signing;

/// How often the worker looks whether it is the signer, and whether something is due.
const LOOK: Duration = Duration::from_millis(250);
/// Tenants that are asked for at a time.
const TENANTS: usize = 1_000;
/// Heads that are collected before any is committed to: 72 bytes each.
const HEADS: usize = 100_000;
/// Leaves that are appended in one transaction.
const LEAVES: usize = 1_000;
/// While the log is empty it is looked at after this part of a period: the first head need not wait for
/// the whole.
const SOONER: u32 = 60;
/// How long a witness may take for one answer.
const ANSWER: Duration = Duration::from_secs(10);
/// The first pause after a witness failed; it doubles with each failure in a row.
const AGAIN: Duration = Duration::from_secs(1);
/// The longest pause, as a part of a period.
const AGAIN_WITHIN: u32 = 4;

/// What the worker that keeps the deployment log has done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct DeploymentStatus {
    /// How many leaves the newest checkpoint covers; 0 while another process signs.
    pub size: u64,
    /// When that was signed; none before the first, and while another process signs.
    pub signed_at: Option<Timestamp>,
    /// The witnesses, in the order in which they are configured.
    pub witnesses: Vec<WitnessStatus>,
}

/// How a witness is doing, as the process that signs sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WitnessStatus {
    /// The name of its key.
    pub name: String,
    /// The time that its cosignature of the newest checkpoint states, in seconds since the epoch.
    pub cosigned_at: Option<u64>,
    /// Whether it answers that it won't: the log was put back, or the witness doesn't know its key.
    pub refuses: bool,
    /// Why it has not cosigned since the newest checkpoint was signed.
    pub last_error: Option<String>,
}

/// The same crash rules as for the tenants' heads hold because leaves are durable before a head over them
/// is signed, and the guard learns of it before anybody else: whoever goes on after a failed or half-done
/// write signs the same tree, which continues what the guard knows.
pub(super) async fn run(worker: Worker, signing: Arc<Signing>, deployment: Arc<Deployment>) {
    let asked = deployment.witnesses.iter().map(Asked::new).collect();
    let mut keeper = Keeper {
        worker,
        signing,
        deployment,
        asked,
        turn: None,
    };
    let mut failures = 0;
    loop {
        let every = keeper.deployment.every;
        let pause = match keeper.round().await {
            Ok(()) => {
                if failures > 0 {
                    keeper.worker.worked();
                }
                failures = 0;
                LOOK.min(every)
            }
            Err(error) => {
                // Whoever signs now may be another process, or this one again.
                keeper.turn = None;
                keeper.worker.failed(&error);
                failures += 1;
                pause_after(failures).min(every)
            }
        };
        if !keeper.worker.pause(pause).await {
            return;
        }
    }
}

struct Keeper {
    worker: Worker,
    signing: Arc<Signing>,
    deployment: Arc<Deployment>,
    asked: Vec<Asked>,
    /// While this process is the signer.
    turn: Option<Turn>,
}

/// A time as the signer.
struct Turn {
    fence: Fence,
    /// The newest checkpoint.
    newest: Option<SignedCheckpoint>,
    /// When the next one is due.
    due: Instant,
}

/// A witness, and how far it is.
struct Asked {
    witness: Arc<dyn Witness>,
    /// The size of the last checkpoint that it cosigned, where that is known.
    size: Option<u64>,
    failures: u32,
    /// When it is asked again for the newest checkpoint; none once it cosigned that.
    again: Option<Instant>,
    status: WitnessStatus,
}

impl Keeper {
    async fn round(&mut self) -> Result<()> {
        let Some(fence) = self.signing.fence() else {
            if self.turn.take().is_some() {
                // What fails now is the other process's to tell.
                for asked in &mut self.asked {
                    (asked.status.refuses, asked.status.last_error) = (false, None);
                }
                self.tell();
            }
            if let Some(sentry) = self.sentry() {
                sentry.leave_deployment();
            }
            return Ok(());
        };
        if self.turn.as_ref().is_none_or(|turn| turn.fence != fence) {
            self.turn = Some(self.begin(fence).await?);
            self.tell();
        }
        let Some(turn) = &self.turn else {
            return Ok(());
        };
        let newest = turn.newest.clone();
        if Instant::now() >= turn.due {
            self.sign(fence, newest).await
        } else if let Some(newest) = newest {
            self.cosign(fence, newest).await
        } else {
            Ok(())
        }
    }

    fn sentry(&self) -> Option<&Sentry> {
        self.worker.log.sentry.as_deref()
    }

    /// Looks whether the guard lets the log be signed. Returns what it knows.
    async fn pass(&self, newest: Option<&SignedCheckpoint>) -> Result<Option<GuardedHead>> {
        match self.sentry() {
            Some(sentry) => sentry.pass_deployment(&self.deployment, newest).await,
            None => Ok(None),
        }
    }

    /// Takes up where the signer before came to.
    async fn begin(&mut self, fence: Fence) -> Result<Turn> {
        let newest = self.deployment.store.latest_deployment().await?;
        // Not only when the next head is due, which may be in an hour.
        self.pass(newest.as_ref()).await?;
        let mut due = Instant::now();
        // An epoch may have begun with an empty log, whose first leaf need not wait.
        if let Some(newest) = newest.as_ref().filter(|newest| newest.size > 0) {
            let note = note_of(newest)?;
            for asked in &mut self.asked {
                asked.resume(&note, newest.size);
            }
            let now = self.worker.log.clock.now();
            let age = now.as_micros().saturating_sub(newest.signed_at.as_micros());
            let age = Duration::from_micros(age.max(0).unsigned_abs());
            due += self.deployment.every.saturating_sub(age);
        }
        Ok(Turn { fence, newest, due })
    }

    /// Commits to what has grown, and signs the log's head, grown or not. It is published once the
    /// witnesses have answered or were given up, so that it hardly ever stands there without them. The
    /// guard is told before they are asked: what one of them has seen is out.
    async fn sign(&mut self, fence: Fence, newest: Option<SignedCheckpoint>) -> Result<()> {
        let began = Instant::now();
        let known = self.pass(newest.as_ref()).await?;
        let size = self.commit(fence).await?;
        let every = self.deployment.every;
        if size == 0 {
            self.set_turn(fence, newest, began + every / SOONER);
            return Ok(());
        }
        let root = self.deployment.root_of(0..size).await?;
        if let Some(newest) = &newest {
            self.deployment.continues(newest, size, &root).await?;
        }
        let epoch = epoch_of(newest.as_ref())?;
        let head = GuardedHead { epoch, size, root };
        if let Some(sentry) = self.sentry() {
            sentry.advance_deployment(known, head).await?;
        }
        let now = self.worker.log.clock.now();
        let signed = self.signing.signer().sign_deployment(&head, now)?;
        let signed = signed.guarded(self.sentry().is_some());
        let before = newest.as_ref().map(note_of).transpose()?;
        let keys: Vec<_> = self.asked.iter().map(|asked| asked.witness.key()).collect();
        let mut note = with_cosignatures(&note_of(&signed)?, before.as_ref(), &keys)?;
        for asked in &mut self.asked {
            asked.again = Some(began);
        }
        self.ask(&mut note, size).await?;
        let signed = SignedCheckpoint {
            note: note.encode(),
            ..signed
        };
        self.publish(fence, signed, began + every).await
    }

    /// Asks those again that have not cosigned the newest checkpoint yet; for an empty log's, none.
    async fn cosign(&mut self, fence: Fence, newest: SignedCheckpoint) -> Result<()> {
        if newest.size == 0 {
            return Ok(());
        }
        let mut note = note_of(&newest)?;
        let due = self
            .turn
            .as_ref()
            .map_or_else(Instant::now, |turn| turn.due);
        if !self.ask(&mut note, newest.size).await? {
            return Ok(());
        }
        let cosigned = SignedCheckpoint {
            note: note.encode(),
            ..newest
        };
        self.publish(fence, cosigned, due).await
    }

    async fn publish(
        &mut self,
        fence: Fence,
        checkpoint: SignedCheckpoint,
        due: Instant,
    ) -> Result<()> {
        let store = &self.deployment.store;
        store.publish_deployment(fence, &checkpoint).await?;
        self.set_turn(fence, Some(checkpoint), due);
        self.tell();
        Ok(())
    }

    fn set_turn(&mut self, fence: Fence, newest: Option<SignedCheckpoint>, due: Instant) {
        self.turn = Some(Turn { fence, newest, due });
    }

    /// Appends a leaf for each head that is not committed to. Returns the log's size.
    async fn commit(&self, fence: Fence) -> Result<u64> {
        let store = &self.deployment.store;
        let mut size = store.deployment_size().await?;
        let mut after = None;
        loop {
            let mut heads: Vec<TenantHead> = Vec::new();
            while heads.len() < HEADS {
                let found = store.uncommitted_heads(after, TENANTS).await?;
                heads.extend(found.heads);
                after = found.next;
                if after.is_none() || self.worker.stop.is_cancelled() {
                    break;
                }
            }
            let clock = &self.worker.log.clock;
            let salted = heads.iter().map(|head| {
                let secret = clock.secret();
                head.salted(Salt(std::array::from_fn(|n| secret[n])))
            });
            let mut openings: Vec<HeadOpening> = salted.collect();
            // An order that tells nothing: by the tenants' ids, a leaf's place would say whose it is.
            openings.sort_unstable_by_key(HeadOpening::commitment);
            for some in openings.chunks(LEAVES) {
                store.commit_heads(fence, size, some).await?;
                size += some.len() as u64;
            }
            if after.is_none() || self.worker.stop.is_cancelled() {
                return Ok(size);
            }
        }
    }

    /// Asks the witnesses whose turn it is, all at once, and puts their cosignatures under the note.
    /// Whether there was one. None holds up another for long, nor the end of this process.
    async fn ask(&mut self, note: &mut Note, size: u64) -> Result<bool> {
        let now = Instant::now();
        let is_due = |asked: &&mut Asked| asked.again.is_some_and(|again| again <= now);
        let due: Vec<&mut Asked> = self.asked.iter_mut().filter(is_due).collect();
        if due.is_empty() {
            return Ok(false);
        }
        let (deployment, signed) = (&*self.deployment, note.clone());
        let asking = due
            .into_iter()
            .map(|asked| asked.ask(deployment, &signed, size));
        let answers = tokio::select! {
            answers = join_all(asking) => answers,
            () = self.worker.stop.cancelled() => return Ok(false),
        };
        let mut added = false;
        for line in answers.into_iter().flatten() {
            note.replace(line).map_err(too_many)?;
            added = true;
        }
        for asked in &mut self.asked {
            asked.status.cosigned_at = cosigned_at(note, asked.witness.key());
        }
        self.tell();
        Ok(added)
    }

    /// Shows how it stands.
    fn tell(&self) {
        let newest = self.turn.as_ref().and_then(|turn| turn.newest.as_ref());
        let statuses = self.asked.iter().map(|asked| asked.status.clone());
        let status = DeploymentStatus {
            size: newest.map_or(0, |newest| newest.size),
            signed_at: newest.map(|newest| newest.signed_at),
            witnesses: statuses.collect(),
        };
        let name = &self.worker.name;
        self.worker.desk.edit(name, |s| s.deployment = Some(status));
    }
}

fn too_many(fault: NoteFault) -> Error {
    let message = "the checkpoint can't take another cosignature";
    Error::new(ErrorKind::Internal, message).with_source(fault)
}

impl Asked {
    fn new(witness: &Arc<dyn Witness>) -> Self {
        Self {
            witness: Arc::clone(witness),
            size: None,
            failures: 0,
            again: Some(Instant::now()),
            status: WitnessStatus {
                name: witness.key().name().to_owned(),
                cosigned_at: None,
                refuses: false,
                last_error: None,
            },
        }
    }

    /// Takes from the newest checkpoint whether this witness has cosigned it.
    fn resume(&mut self, newest: &Note, size: u64) {
        match cosigned_at(newest, self.witness.key()) {
            Some(time) => {
                self.status.cosigned_at = Some(time);
                (self.size, self.again) = (Some(size), None);
            }
            None => self.again = self.again.or_else(|| Some(Instant::now())),
        }
    }

    /// Its cosignature of the checkpoint, or none. What it fails with is told once, until it cosigns or
    /// fails with something else.
    async fn ask(&mut self, deployment: &Deployment, note: &Note, size: u64) -> Vec<Signature> {
        let error = match self.request(deployment, note, size).await {
            Ok(lines) => {
                if self.status.last_error.take().is_some() {
                    tracing::info!(witness = self.status.name, "the witness cosigns again");
                }
                self.status.refuses = false;
                self.size = Some(size);
                (self.failures, self.again) = (0, None);
                return lines;
            }
            Err(error) => error,
        };
        let told = error.to_string();
        if self.status.last_error.as_ref() != Some(&told) {
            let witness = &self.status.name;
            tracing::warn!(
                witness,
                error = told,
                "the witness doesn't cosign and will be asked again"
            );
        }
        self.status.refuses = error.kind() == ErrorKind::Refused;
        self.status.last_error = Some(told);
        let pause = AGAIN.saturating_mul(1 << self.failures.min(12));
        self.failures += 1;
        self.again = Some(Instant::now() + pause.min(deployment.every / AGAIN_WITHIN));
        Vec::new()
    }

    /// Sends the checkpoint with the proof that it continues the last one that the witness cosigned: the
    /// one that is known here, or, once, the one that it says.
    async fn request(
        &self,
        deployment: &Deployment,
        note: &Note,
        size: u64,
    ) -> Result<Vec<Signature>> {
        let refused = |message: String| Error::new(ErrorKind::Refused, message);
        let mut old = self.size.unwrap_or(0).min(size);
        let mut was_told = false;
        loop {
            let nodes = merkle::consistency_nodes(old, size);
            let proof = deployment.roots_of(nodes).await?;
            let request = AddCheckpoint::new(old, proof, note.clone()).map_err(|fault| {
                Error::new(ErrorKind::Internal, "the witness can't be asked").with_source(fault)
            })?;
            let answer = tokio::time::timeout(ANSWER, self.witness.add_checkpoint(&request));
            let Ok(answer) = answer.await else {
                let message = format!("it did not answer within {} seconds", ANSWER.as_secs());
                return Err(Error::new(ErrorKind::Unavailable, message));
            };
            match answer? {
                WitnessAnswer::Cosigned(answer) => return self.accept(note, &answer),
                WitnessAnswer::Conflict(at) if at > size => {
                    return Err(refused(format!(
                        "it has cosigned {at} leaves and this log has {size}: the log was put back to an \
                         earlier state, or somebody else signs in its name"
                    )));
                }
                WitnessAnswer::Conflict(at) if !was_told => {
                    was_told = true;
                    old = at;
                }
                WitnessAnswer::Conflict(at) => {
                    return Err(refused(format!(
                        "it names {at} leaves as its last, and no other works"
                    )));
                }
                WitnessAnswer::Refused { status, detail } => {
                    return Err(refused(match status {
                        422 => {
                            format!("this log doesn't continue what it cosigned (422): {detail}")
                        }
                        _ => format!("it answers {status}: {detail}"),
                    }));
                }
            }
        }
    }

    fn accept(&self, note: &Note, answer: &str) -> Result<Vec<Signature>> {
        let key = std::slice::from_ref(self.witness.key());
        let unreadable = |fault| {
            let message = "its answer is no cosignature of its key";
            Error::new(ErrorKind::Refused, message).with_source(fault)
        };
        let lines = accept_cosignatures(note, answer, key).map_err(unreadable)?;
        Ok(lines)
    }
}

/// The time that a witness states under a note.
fn cosigned_at(note: &Note, key: &VerifyingKey) -> Option<u64> {
    let signers = note.verify(std::slice::from_ref(key)).ok()?;
    signers.iter().filter_map(|signer| signer.time).max()
}
