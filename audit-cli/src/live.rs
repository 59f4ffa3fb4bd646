//! `audit verify --live`: follows a server's log as a monitor does.

mod state;

use std::path::PathBuf;
use std::time::Duration;

use audit_client::{Client, LogTree};
use audit_core::{Clock as _, Error, ErrorKind, SystemClock, TenantId};
use audit_tlog::tile::{Content, FULL_WIDTH, Tile, parse_entries};
use audit_tlog::verify::{Candidate, Code, Finding, Handover, Monitor};
use audit_tlog::{Checkpoint, Origin, VerifyingKey};
use serde_json::{Value, json};

use crate::args::{Connection, VerifyArgs};
use crate::failure::{Failure, Outcome, one_line};
use crate::present::{Out, second};
use state::StateFolder;

/// What stands between a server's address and a tenant in the address of its log.
const LOGS: &str = "/api/v1/tlog/";

/// Points the connection at the log that `--live` names: by its address, by `--tenant`, or by the name
/// of a key.
pub(crate) fn aim(
    connection: &mut Connection,
    url: &str,
    keys: &[VerifyingKey],
) -> Result<(), Failure> {
    let mut named: Vec<TenantId> = connection.tenant.into_iter().collect();
    let of_keys = keys.iter().filter_map(|key| Origin::of_tenant(key.name()));
    named.extend(of_keys.map(|(_, tenant, _)| TenantId::new(tenant)));
    connection.url = match url.split_once(LOGS) {
        None => url.to_owned(),
        Some((server, log)) => {
            let tenant = log.trim_end_matches('/').parse();
            named.push(tenant.map_err(|_| {
                Failure::Usage(format!("{url}: a log's address ends in {LOGS}TENANT"))
            })?);
            server.to_owned()
        }
    };
    let Some(tenant) = named.first().copied() else {
        return Err(Failure::Usage(format!(
            "whose log is to be followed: give --tenant, or the log's own address, {url}{LOGS}TENANT"
        )));
    };
    if let Some(other) = named.iter().find(|other| **other != tenant) {
        return Err(Failure::Usage(format!(
            "two tenants are named: {tenant} and {other}"
        )));
    }
    connection.tenant = Some(tenant);
    Ok(())
}

/// Why a round ended before its end.
enum Stop {
    /// Something doesn't hold.
    Found(Vec<Finding>),
    /// The server, or a file, can't be read.
    Failed(Failure),
}

impl From<Finding> for Stop {
    fn from(finding: Finding) -> Self {
        Self::Found(vec![finding])
    }
}

impl From<Vec<Finding>> for Stop {
    fn from(findings: Vec<Finding>) -> Self {
        Self::Found(findings)
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error.into())
    }
}

/// What a round verified.
struct Verified {
    size: u64,
    /// How many entries are new.
    new: u64,
    root: String,
    /// Whether nothing was known before.
    first: bool,
    /// Whether the log has another key than before.
    rekeyed: bool,
    /// The present key.
    key: String,
    unexplained: Option<(u64, u64)>,
}

/// Follows one tenant's log.
struct Follower<'a> {
    client: &'a Client,
    tenant: TenantId,
    folder: StateFolder,
    /// What a look may begin with, whatever the one before came to. None before the first round.
    monitor: Option<Monitor>,
    /// What the caller trusts.
    given: &'a [VerifyingKey],
}

/// Looks at the log once, or again and again until something is found.
pub(crate) async fn run(
    client: &Client,
    mut out: Out,
    args: &VerifyArgs,
) -> Result<Outcome, Failure> {
    let Some(tenant) = client.tenant() else {
        return Err(Failure::Usage("whose log is to be followed?".into()));
    };
    let at = match &args.state {
        Some(at) => at.clone(),
        None => PathBuf::from("audit-live").join(tenant.to_string()),
    };
    let folder = StateFolder::open(&at)?;
    let monitor = folder.load()?;
    if let Some(other) = monitor
        .as_ref()
        .map(|monitor| TenantId::new(monitor.tenant()))
        .filter(|other| *other != tenant)
    {
        return Err(Failure::Usage(format!(
            "{} is of the log of tenant {other}",
            at.display()
        )));
    }
    let mut follower = Follower {
        client,
        tenant,
        folder,
        monitor,
        given: &args.key,
    };
    loop {
        let shown = match follower.round().await {
            Ok(verified) => {
                if verified.first && args.key.is_empty() {
                    out.hint(&format!(
                        "this key is trusted from now on, on the server's word: compare it with one from \
                         elsewhere, or give that with --key: {}",
                        verified.key
                    ));
                }
                if args.once {
                    return finish(tell(&mut out, &verified), Outcome::Complete);
                }
                tell(&mut out, &verified)
            }
            Err(Stop::Found(findings)) => {
                return finish(tell_findings(&mut out, &findings), Outcome::Partial);
            }
            Err(Stop::Failed(Failure::Log(error))) if !args.once && may_pass(&error) => {
                tell_failure(&mut out, &error)
            }
            Err(Stop::Failed(failure)) => return Err(failure),
        };
        shown?;
        tokio::time::sleep(Duration::from_secs(args.every)).await;
    }
}

/// A reader that has seen enough doesn't change the verdict.
fn finish(shown: Result<(), Failure>, outcome: Outcome) -> Result<Outcome, Failure> {
    match shown {
        Err(failure) if !failure.is_closed_pipe() => Err(failure),
        _ => Ok(outcome),
    }
}

/// Whether a later round may succeed without anybody's doing here: an outage, or a log that nobody has
/// signed yet.
fn may_pass(error: &Error) -> bool {
    error.is_retryable() || error.kind() == ErrorKind::NotFound
}

impl Follower<'_> {
    async fn round(&mut self) -> Result<Verified, Stop> {
        let note = match self.client.checkpoint(self.tenant).await {
            Ok(note) => note,
            Err(error) => return Err(self.without_checkpoint(error).await),
        };
        let mut monitor = match self.monitor.take() {
            Some(monitor) => monitor,
            None => self.begin().await?,
        };
        self.monitor = Some(monitor.clone());
        self.look(&mut monitor, note).await
    }

    /// What it means that there is no checkpoint: nothing when there never was one.
    async fn without_checkpoint(&self, error: Error) -> Stop {
        let known = self.monitor.as_ref().map_or(0, Monitor::size);
        if error.kind() != ErrorKind::NotFound || known == 0 {
            return error.into();
        }
        // A log that is there has a key. One that may not be read has none either.
        match self.client.verifying_key(self.tenant).await {
            Ok(_) => finding(
                Code::Rollback,
                (0, known - 1),
                format!("the log had {known} entries, and has no checkpoint now"),
            )
            .into(),
            Err(_) => error.into(),
        }
    }

    /// Begins with the keys that the caller trusts, or with the one that the server names.
    async fn begin(&self) -> Result<Monitor, Stop> {
        let keys = match self.given {
            [] => vec![self.client.verifying_key(self.tenant).await?],
            given => given.to_vec(),
        };
        let monitor = Monitor::new(keys).filter(|m| TenantId::new(m.tenant()) == self.tenant);
        monitor.ok_or_else(|| {
            let message = format!("the key is not one of the log of tenant {}", self.tenant);
            Failure::Usage(message).into()
        })
    }

    async fn look(
        &mut self,
        monitor: &mut Monitor,
        note: audit_tlog::Note,
    ) -> Result<Verified, Stop> {
        let trusted = |monitor: &Monitor| {
            self.given.is_empty() || self.given.iter().any(|key| monitor.keys().contains(key))
        };
        if !trusted(monitor) {
            let detail = "the given keys are none that the log was found to have".into();
            return Err(global(Code::ForeignKey, detail).into());
        }
        let (first, key) = (monitor.note().is_none(), monitor.keys().last().cloned());
        let candidate = monitor.meet(note)?;
        let size = candidate.checkpoint().size();
        let mut tree = self.client.tree(self.tenant, size);
        let root = shown(size, tree.root().await)?;
        let proof = shown(size, tree.consistency_proof(monitor.size()).await)?;
        monitor.accept(&candidate, root, &proof)?;
        let before = monitor.position();
        while monitor.position() < size {
            // Under a head of nobody's nothing counts until all of it does.
            if candidate.is_signed() {
                self.folder.save(monitor)?;
                self.monitor = Some(monitor.clone());
            }
            self.take(monitor, &candidate, &mut tree).await?;
        }
        let mut handovers = Vec::new();
        for covered in monitor.handovers(&candidate) {
            let note = self.client.checkpoint_covering(self.tenant, covered);
            let note = shown(size, note.await)?;
            // What is no checkpoint, or a larger one, proves nothing: the monitor says so.
            let at = Checkpoint::parse(note.text()).map_or(size, |at| at.size().min(size));
            let proof = shown(size, tree.consistency_proof(at).await)?;
            handovers.push(Handover { note, proof });
        }
        monitor.settle(&candidate, &handovers)?;
        self.folder.save(monitor)?;
        self.monitor = Some(monitor.clone());
        self.folder.save_verified(candidate.note())?;
        let now = monitor.keys().last();
        Ok(Verified {
            size,
            new: size - before,
            root: root.to_base64(),
            first,
            rekeyed: !first && now != key.as_ref(),
            key: now.map(VerifyingKey::encode).unwrap_or_default(),
            unexplained: monitor.unexplained(),
        })
    }

    /// Takes the positions up to the end of the bundle that the next one is in.
    async fn take(
        &self,
        monitor: &mut Monitor,
        candidate: &Candidate,
        tree: &mut LogTree,
    ) -> Result<(), Stop> {
        let (from, size) = (monitor.position(), tree.size());
        let width = u64::from(FULL_WIDTH);
        let (index, known) = (from / width, (from % width) as usize);
        let hashes = shown(size, tree.leaf_hashes(index).await)?;
        let to = index * width + hashes.len() as u64;
        let proof = shown(size, tree.consistency_proof(to).await)?;
        let bundle = Tile::at(Content::Entries, index, size)
            .ok_or_else(|| global(Code::Missing, format!("there is no bundle {index}")))?;
        let bytes = match self.client.tile(self.tenant, &bundle).await {
            Err(error) if error.kind() == ErrorKind::Pruned => None,
            read => Some(shown(size, read)?),
        };
        let leaves = match &bytes {
            None => None,
            Some(bytes) => Some(
                parse_entries(bytes, bundle.width())
                    .map_err(|fault| finding(Code::Leaf, (from, to - 1), fault.to_string()))?,
            ),
        };
        let leaves = leaves.as_ref().and_then(|leaves| leaves.get(known..));
        let hashes = hashes.get(known..).unwrap_or_default();
        Ok(monitor.take(candidate, hashes, leaves, &proof)?)
    }
}

/// What the server shows of what it has signed. That it can't is a finding, unless it can't be reached.
fn shown<T>(size: u64, read: Result<T, Error>) -> Result<T, Stop> {
    read.map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::Corrupt | ErrorKind::Malformed => global(
            Code::Missing,
            format!(
                "the server doesn't show what it signed at size {size}: {}",
                one_line(&error)
            ),
        )
        .into(),
        _ => error.into(),
    })
}

fn global(code: Code, detail: String) -> Finding {
    Finding {
        code,
        positions: None,
        line: None,
        file: None,
        detail,
    }
}

fn finding(code: Code, positions: (u64, u64), detail: String) -> Finding {
    Finding {
        positions: Some(positions),
        ..global(code, detail)
    }
}

fn now() -> String {
    second(SystemClock.now())
}

fn tell(out: &mut Out, verified: &Verified) -> Result<(), Failure> {
    if out.json {
        let line = json!({
            "at": now(),
            "verified": true,
            "size": verified.size,
            "root": verified.root,
            "new": verified.new,
            "key": verified.key,
            "key_changed": verified.rekeyed,
            "unexplained": verified.unexplained.map(|(from, to)| json!({"from": from, "to": to})),
            "findings": [],
        });
        out.line(&line.to_string())?;
        return out.flush();
    }
    if out.quiet {
        return Ok(());
    }
    let mut line = format!(
        "{} verified up to size {}, {} new, root {}",
        now(),
        verified.size,
        verified.new,
        verified.root
    );
    if verified.rekeyed {
        line.push_str(&format!("; the key is now {}", verified.key));
    }
    if let Some((from, to)) = verified.unexplained {
        line.push_str(&format!(
            "; leaf data between {from} and {to} is gone, and no prune explains it yet"
        ));
    }
    out.text(&line)?;
    out.flush()
}

fn tell_findings(out: &mut Out, findings: &[Finding]) -> Result<(), Failure> {
    if out.json {
        let listed = findings
            .iter()
            .map(|finding| serde_json::from_str::<Value>(&finding.to_json()).unwrap_or_default());
        let line = json!({
            "at": now(),
            "verified": false,
            "findings": listed.collect::<Vec<_>>(),
        });
        out.line(&line.to_string())?;
    } else {
        for finding in findings {
            out.text(&format!("{} NOT VERIFIED: {finding}", now()))?;
        }
    }
    out.flush()
}

fn tell_failure(out: &mut Out, error: &Error) -> Result<(), Failure> {
    if out.json {
        let line = json!({"at": now(), "verified": null, "error": one_line(error)});
        out.line(&line.to_string())?;
    } else {
        out.text(&format!("{} not looked at: {}", now(), one_line(error)))?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Options;

    #[test]
    fn a_log_is_named_by_its_address_or_a_tenant_and_only_once() {
        let id = "0190a000-0000-7000-8000-000000000001";
        let other = "0190a000-0000-7000-8000-000000000002";
        let aimed = |url: &str, tenant: Option<&str>| {
            let mut arguments = vec!["audit", "verify", "--live", url];
            arguments.extend(tenant.into_iter().flat_map(|id| ["--tenant", id]));
            let mut connection = Options::parse_from(arguments).connection;
            aim(&mut connection, url, &[]).ok()?;
            Some((connection.url, connection.tenant?.to_string()))
        };
        let server = Some(("http://x/y".to_owned(), id.to_owned()));
        let log = format!("http://x/y/api/v1/tlog/{id}");
        assert_eq!(aimed("http://x/y", Some(id)), server);
        assert_eq!(aimed(&log, None), server);
        assert_eq!(aimed(&format!("{log}/"), Some(id)), server);
        assert_eq!(aimed("http://x/y", None), None);
        assert_eq!(aimed(&log, Some(other)), None);
        assert_eq!(aimed("http://x/y/api/v1/tlog/ann", None), None);
    }
}
