//! The deployment log and the guard: comparing the two, and going on after a restore.

use std::cmp::Ordering;
use std::sync::atomic;
use std::time::Duration;

use audit_tlog::Hash;
use audit_tlog::note::VerifyingKey;

use crate::checkpoint::SignedCheckpoint;
use crate::deployment::{Deployment, epoch_of};
use crate::error::{Error, ErrorKind, Result};
use crate::guard::recovery::{give_back, take_over};
use crate::guard::sentry::Breach;
use crate::guard::{GuardedHead, Sentry};
use crate::log::AuditLog;
use crate::signing::{Signing, not_signed};

/// What a [recovery](AuditLog::recover_deployment) of the deployment log did, or would do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeploymentRecovery {
    /// The head that the guard knows; none when it knew nothing.
    pub guarded: Option<GuardedHead>,
    /// How many leaves the log has.
    pub size: u64,
    /// The epoch that begins.
    pub epoch: u64,
    /// The key that verifies the log from then on, under the epoch's name: whoever witnesses the log needs
    /// it.
    pub key: VerifyingKey,
}

impl DeploymentRecovery {
    /// How many leaves under a signed head the log doesn't have, at least: those between its size and the
    /// one that the guard knows. 0 when that is smaller, or not known.
    pub fn lost(&self) -> u64 {
        let known = self.guarded.map_or(0, |guarded| guarded.size);
        known.saturating_sub(self.size)
    }
}

/// The log as it is, and what the guard knows of it.
struct Compared {
    newest: Option<SignedCheckpoint>,
    size: u64,
    guarded: Option<GuardedHead>,
    breach: Option<Breach>,
}

impl Sentry {
    /// Looks whether the deployment log may be signed: `newest` is its newest checkpoint, and was read
    /// before. Returns what the guard knows.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`], naming the guard, when it may not, and when that can't be told; what
    /// the store answers.
    pub(crate) async fn pass_deployment(
        &self,
        log: &Deployment,
        newest: Option<&SignedCheckpoint>,
    ) -> Result<Option<GuardedHead>> {
        let compared = self.compare_deployment(log, newest.cloned()).await?;
        let stopped = compared.breach.is_some();
        self.deployment_stopped
            .store(stopped, atomic::Ordering::Relaxed);
        match compared.breach {
            Some(breach) => Err(self.stop_deployment(breach)),
            None => Ok(compared.guarded),
        }
    }

    /// Whoever keeps the log now is another process, which tells of it.
    pub(crate) fn leave_deployment(&self) {
        self.deployment_stopped
            .store(false, atomic::Ordering::Relaxed);
    }

    async fn compare_deployment(
        &self,
        log: &Deployment,
        newest: Option<SignedCheckpoint>,
    ) -> Result<Compared> {
        // Behind the checkpoint, and before the log: as with the tenants' logs.
        let guarded = self.guard().deployment_head().await?;
        let size = log.store.deployment_size().await?;
        let breach = match guarded {
            None => self.is_forgotten(newest.as_ref()).await?,
            Some(known) => {
                let is_continued = match known.epoch.cmp(&epoch_of(newest.as_ref())?) {
                    Ordering::Less => true,
                    Ordering::Greater => false,
                    Ordering::Equal => {
                        known.size <= size && log.root_of(0..known.size).await? == known.root
                    }
                };
                (!is_continued).then_some(Breach::Ahead(known))
            }
        };
        Ok(Compared {
            newest,
            size,
            guarded,
            breach,
        })
    }

    /// Whether a guard that knows no head of the log has lost one. Each checkpoint says whether a guard
    /// knew of it before: none that was kept before guards knew of this log. One that knows no tenant
    /// either has lost, or never had, everything.
    async fn is_forgotten(&self, newest: Option<&SignedCheckpoint>) -> Result<Option<Breach>> {
        let Some(newest) = newest else {
            return Ok(None);
        };
        let forgotten = newest.is_guarded || self.guard().tenants(None, 1).await?.is_empty();
        Ok(forgotten.then_some(Breach::Missing))
    }

    fn stop_deployment(&self, breach: Breach) -> Error {
        let place = self.guard().place();
        let knows = match breach {
            Breach::Missing => {
                "knows nothing of the deployment log, whose heads were signed".to_owned()
            }
            Breach::Ahead(head) => format!(
                "knows a signed head of {} leaves that the deployment log doesn't continue",
                head.size
            ),
        };
        let message = format!(
            "the guard ({place}) {knows}: an old copy was restored, or the guard lost; that log is not \
             signed until `audit-server tlog recover` was run"
        );
        Error::new(ErrorKind::Unavailable, message).with_retry_after(Duration::from_secs(60))
    }

    /// Tells the guard of a head of the deployment log that is about to be shown to anybody. Nothing, when
    /// it [knows](Self::pass_deployment) it or a larger one.
    pub(crate) async fn advance_deployment(
        &self,
        known: Option<GuardedHead>,
        head: GuardedHead,
    ) -> Result<()> {
        if known.is_some_and(|known| known.place() >= head.place()) {
            return Ok(());
        }
        self.guard().advance_deployment(known, head).await
    }
}

impl AuditLog {
    /// Lets the deployment log go on that the [guard](crate::AuditLogBuilder::guard) stops: signs the tree
    /// that is there under the name of a new epoch, in which the signer goes on. None when nothing stops
    /// it. A dry run says what it would do, and changes nothing.
    ///
    /// Lost are leaves that committed to tenants' heads; each tenant's newest head is committed to anew. A
    /// head proof under a lost head holds as it did, under the name of before. A call that was cut short
    /// is repeated as it is. Nothing else may sign meanwhile.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] without a signer, a deployment log or a guard;
    /// [`ErrorKind::Unavailable`] when another process signs; [`ErrorKind::Corrupt`] when the log doesn't
    /// continue its own newest checkpoint; what the guard and the store answer.
    pub async fn recover_deployment(&self, dry_run: bool) -> Result<Option<DeploymentRecovery>> {
        let signing = self.inner.signing.as_deref().ok_or_else(not_signed)?;
        let both = (self.inner.deployment.as_deref()).zip(self.inner.sentry.as_deref());
        let (log, sentry) = both.ok_or_else(|| {
            let message = "there is no deployment log, or no guard to recover it from";
            Error::new(ErrorKind::NotFound, message)
        })?;
        let newest = log.store.latest_deployment().await?;
        let compared = sentry.compare_deployment(log, newest).await?;
        if compared.breach.is_none() {
            return Ok(None);
        }
        let known = compared.guarded.map_or(0, |guarded| guarded.epoch);
        // Of a name that nothing was signed under.
        let epoch = epoch_of(compared.newest.as_ref())?.max(known) + 1;
        let recovery = DeploymentRecovery {
            guarded: compared.guarded,
            size: compared.size,
            epoch,
            key: signing.signer().deployment_key(epoch)?,
        };
        let root = log.root_of(0..compared.size).await?;
        if let Some(newest) = &compared.newest {
            log.continues(newest, compared.size, &root).await?;
        }
        if !dry_run {
            let begun = self
                .begin_deployment(signing, log, sentry, &recovery, root)
                .await;
            give_back(signing).await;
            begun?;
            sentry.leave_deployment();
        }
        Ok(Some(recovery))
    }

    /// Signs the first head of an epoch. The guard learns of it first: cut off between the two, the log is
    /// stopped still, and the next try leaves this epoch out.
    async fn begin_deployment(
        &self,
        signing: &Signing,
        log: &Deployment,
        sentry: &Sentry,
        recovery: &DeploymentRecovery,
        root: Hash,
    ) -> Result<()> {
        let fence = take_over(signing).await?;
        let head = GuardedHead {
            epoch: recovery.epoch,
            size: recovery.size,
            root,
        };
        sentry.advance_deployment(recovery.guarded, head).await?;
        let now = self.inner.clock.now();
        let checkpoint = signing.signer().sign_deployment(&head, now)?.guarded(true);
        log.store.publish_deployment(fence, &checkpoint).await
    }
}
