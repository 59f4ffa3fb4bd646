//! Appending: group commit, and the rows that a sealed batch becomes.

use std::collections::{BTreeMap, HashMap};

use audit_core::prepare::Content;
use audit_core::tenant::{Tenant, TenantSecret, TenantStatus};
use audit_core::tlog::merkle::subtree_root;
use audit_core::tlog::{Hash, Timestamp};
use audit_core::{
    Batch, Error, ErrorKind, EventId, Head, Known, Opening, Permission, Receipt, Result, Row,
    Tally, TenantId, seal,
};
use rusqlite::{Connection, OptionalExtension, params};

use crate::fault::from_sqlite;
use crate::reader::{tenant_no, unknown_tenant};
use crate::schema::TILE;
use crate::writer::{Append, Ledger, Outcomes, Sealer, Writer};
use crate::{head, row, tenants};

impl Writer {
    /// Commits calls in one transaction and answers them. When that fails for a reason that a retry
    /// won't mend, each is tried by itself, so that it fails only whose fault it is.
    pub(crate) fn append(&mut self, group: Vec<Append>) {
        let batches: Vec<&Batch> = group.iter().flat_map(|append| &append.batches).collect();
        match self.append_together(&batches) {
            Ok(outcomes) => {
                let mut outcomes = outcomes.into_iter();
                for append in group {
                    let mine = outcomes.by_ref().take(append.batches.len()).collect();
                    answer(append, Ok(mine));
                }
            }
            Err(error) if !error.is_retryable() => {
                let is_only = batches.len() == 1;
                for append in group {
                    let outcomes = append.batches.iter().map(|batch| match is_only {
                        true => Err(error.clone()),
                        false => self.append_alone(batch),
                    });
                    let outcomes = outcomes.collect();
                    answer(append, Ok(outcomes));
                }
            }
            Err(error) => {
                for append in group {
                    answer(append, Err(error.clone()));
                }
            }
        }
    }

    fn append_alone(&mut self, batch: &Batch) -> Result<Vec<Receipt>> {
        let mut outcomes = self.append_together(&[batch])?;
        outcomes.pop().unwrap_or_else(|| Ok(Vec::new()))
    }

    fn append_together(&mut self, batches: &[&Batch]) -> Outcomes {
        let mut outcomes: Vec<Option<Result<Vec<Receipt>>>> = Vec::new();
        let mut by_tenant: BTreeMap<TenantId, Vec<usize>> = BTreeMap::new();
        for (i, batch) in batches.iter().enumerate() {
            let refusal = admit(batch).err();
            if refusal.is_none() {
                by_tenant.entry(batch.tenant()).or_default().push(i);
            }
            outcomes.push(refusal.map(Err));
        }
        if !by_tenant.is_empty() {
            self.transact(|conn, ledger| {
                let now = ledger.time.now();
                for (tenant, members) in by_tenant {
                    ledger.append_to(conn, tenant, now, batches, members, &mut outcomes)?;
                }
                Ok(())
            })?;
        }
        Ok(outcomes
            .into_iter()
            .map(|outcome| outcome.unwrap_or_else(|| Ok(Vec::new())))
            .collect())
    }
}

fn answer(append: Append, outcomes: Outcomes) {
    // A caller that went away is not told; what is committed stays.
    drop(append.reply.send(outcomes));
}

fn admit(batch: &Batch) -> Result<()> {
    batch.scope().require(Permission::Record)?;
    match batch
        .events()
        .iter()
        .find(|event| event.kind().is_control())
    {
        None => Ok(()),
        Some(event) => Err(Error::new(
            ErrorKind::Refused,
            "control entries are written by the log itself, with the act that they are about",
        )
        .with_event_id(event.id())),
    }
}

impl Ledger<'_> {
    fn append_to(
        &mut self,
        conn: &Connection,
        tenant: TenantId,
        now: Timestamp,
        batches: &[&Batch],
        members: Vec<usize>,
        outcomes: &mut [Option<Result<Vec<Receipt>>>],
    ) -> Result<()> {
        let mut admitted = Vec::with_capacity(members.len());
        for i in members {
            let sealer = match self.sealer(conn, tenant)? {
                Some(sealer) => Some(sealer),
                None if batches[i].creates_tenant() => {
                    self.create_tenant(conn, tenant, now)?;
                    self.sealer(conn, tenant)?
                }
                None => None,
            };
            let verdict = match sealer {
                Some(sealer) => sealer.status.admit_write(tenant),
                None => Err(unknown_tenant(tenant)),
            };
            match verdict {
                Ok(()) => admitted.push(i),
                Err(refusal) => outcomes[i] = Some(Err(refusal)),
            }
        }
        if admitted.is_empty() {
            return Ok(());
        }
        let chosen: Vec<&Batch> = admitted.iter().map(|&i| batches[i]).collect();
        let sealed = self.seal(conn, tenant, now, &chosen)?;
        for (i, outcome) in admitted.into_iter().zip(sealed) {
            outcomes[i] = Some(outcome);
        }
        Ok(())
    }

    /// The tenant's state, from memory or from the tables; none when it does not exist.
    pub(crate) fn sealer(
        &mut self,
        conn: &Connection,
        tenant: TenantId,
    ) -> Result<Option<&mut Sealer>> {
        use std::collections::hash_map::Entry;
        match self.remembered().entry(tenant) {
            Entry::Occupied(known) => Ok(Some(known.into_mut())),
            Entry::Vacant(vacant) => {
                let Some((no, status)) = tenant_no(conn, tenant)? else {
                    return Ok(None);
                };
                if status == TenantStatus::Deleted {
                    // It takes nothing more, and its rows are on their way out.
                    return Ok(Some(vacant.insert(Sealer {
                        no,
                        status,
                        head: Head::empty(tenant),
                        partial: Vec::new(),
                    })));
                }
                let head = head::head(conn, no, tenant)?;
                let size = head.size();
                let partial = head::hashes(conn, no, tenant, size, 0, size / TILE * TILE..size)?;
                Ok(Some(vacant.insert(Sealer {
                    no,
                    status,
                    head,
                    partial,
                })))
            }
        }
    }

    fn create_tenant(&self, conn: &Connection, tenant: TenantId, now: Timestamp) -> Result<()> {
        let secret = TenantSecret::new(self.time.clock().secret());
        tenants::insert(conn, &Tenant::new(tenant, tenant.to_string(), now, secret)?)
    }

    /// Seals batches of one tenant and writes the rows, whatever the tenant's status. The inner
    /// errors are those of single batches; after the outer one the transaction must not commit.
    pub(crate) fn seal(
        &mut self,
        conn: &Connection,
        tenant: TenantId,
        now: Timestamp,
        batches: &[&Batch],
    ) -> Result<Vec<Result<Vec<Receipt>>>> {
        let sealer = self
            .sealer(conn, tenant)?
            .ok_or_else(|| unknown_tenant(tenant))?;
        let known = known(conn, sealer, batches)?;
        let sealing = match seal(batches, &sealer.head, now, &known) {
            Ok(sealing) => sealing,
            Err(refusal) => return Ok(batches.iter().map(|_| Err(refusal.clone())).collect()),
        };
        if !sealing.rows.is_empty() {
            let last_n = write_rows(conn, sealer, &sealing.rows)?;
            sealer.head = sealing.head;
            write_head(conn, sealer, last_n)?;
        }
        Ok(sealing.outcomes)
    }
}

impl Ledger<'_> {
    /// Seals a batch of the log's own and writes it, whatever the tenant's status.
    pub(crate) fn seal_own(&mut self, conn: &Connection, batch: &Batch) -> Result<Vec<Receipt>> {
        let mut receipts = Vec::new();
        for outcome in self.seal(conn, batch.tenant(), self.time.now(), &[batch])? {
            receipts.extend(outcome?);
        }
        Ok(receipts)
    }
}

/// Which of the batches' ids are taken, and by what.
fn known(
    conn: &Connection,
    sealer: &Sealer,
    batches: &[&Batch],
) -> Result<HashMap<EventId, Known>> {
    let mut known = HashMap::new();
    if sealer.head.size() == 0 {
        return Ok(known);
    }
    let mut statement = conn
        .prepare_cached(
            "SELECT seq, created_at, leaf_hash, content_key, content_tag
             FROM ids WHERE tenant = ?1 AND id = ?2",
        )
        .map_err(from_sqlite)?;
    for event in batches.iter().flat_map(|batch| batch.events()) {
        let found = statement
            .query_row(params![sealer.no, event.id().as_uuid().as_bytes()], |r| {
                let seq = row::position(r, 0)?;
                let content = row::optional_bytes(r, 3)?.zip(row::optional_bytes(r, 4)?);
                Ok(Known {
                    seq,
                    created_at: row::time(r, 1)?,
                    leaf_hash: row::hash(r, 2)?,
                    // What is pruned has nothing to compare by, whether it is swept yet or not.
                    content: content
                        .filter(|_| seq >= sealer.head.pruned_below)
                        .map(|(key, tag)| Content { key, tag }),
                })
            })
            .optional()
            .map_err(from_sqlite)?;
        if let Some(found) = found {
            known.insert(event.id(), found);
        }
    }
    Ok(known)
}

/// Writes the rows and what is counted and hashed over them. Returns the place of the last one in the
/// order of all appends.
fn write_rows(conn: &Connection, sealer: &mut Sealer, rows: &[Row<'_>]) -> Result<i64> {
    let no = sealer.no;
    let mut last_n = 0;
    let mut entry = conn
        .prepare_cached(
            "INSERT INTO entries (tenant, seq, created_at, occurred_at, action_type, severity,
                outcome, kind, leaf_hash, id, opening, action, ctl, user_id, actor_type, actor_name,
                on_behalf_of, resource_type, resource_id, resource_name, related_resources,
                session_id, request_id, trace_id, user_agent, ip_address, reason, before_state,
                after_state, metadata)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17,
                ?18, ?19, ?20, ?21, ?22, ?23, ?24, ?25, ?26, ?27, ?28, ?29, ?30)",
        )
        .map_err(from_sqlite)?;
    let mut id = conn
        .prepare_cached(
            "INSERT INTO ids (tenant, id, seq, created_at, leaf_hash, content_key, content_tag)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )
        .map_err(from_sqlite)?;
    let mut tally = Tally::default();
    for row in rows {
        let (event, f) = (row.event, row.event.fields());
        let related = related(f);
        entry
            .execute(params![
                no,
                row.seq as i64,
                row.created_at.as_micros(),
                row.occurred_at.as_micros(),
                f.action_type.as_str(),
                f.severity.as_str(),
                f.outcome.as_str(),
                event.kind().as_str(),
                row.leaf_hash.as_bytes(),
                event.id().as_uuid().as_bytes(),
                Opening::Seed(event.seed().clone()).to_bytes(),
                f.action,
                event.ctl(),
                f.user_id,
                f.actor_type.map(|t| t.as_str()),
                f.actor_name,
                f.on_behalf_of,
                f.resource_type,
                f.resource_id,
                f.resource_name,
                related,
                f.session_id,
                f.request_id,
                f.trace_id,
                f.user_agent,
                row::octets(f.ip_address).as_deref(),
                f.reason,
                f.before_state.as_ref().map(|j| j.as_str()),
                f.after_state.as_ref().map(|j| j.as_str()),
                f.metadata.as_ref().map(|j| j.as_str()),
            ])
            .map_err(from_sqlite)?;
        // Asked at once: a tile has a row of its own.
        last_n = conn.last_insert_rowid();
        let content = event.content();
        id.execute(params![
            no,
            event.id().as_uuid().as_bytes(),
            row.seq as i64,
            row.created_at.as_micros(),
            row.leaf_hash.as_bytes(),
            content.key,
            content.tag,
        ])
        .map_err(from_sqlite)?;
        tally.add(
            row.created_at.utc_day(),
            f.action_type,
            f.severity,
            f.outcome,
        );
        sealer.partial.push(row.leaf_hash);
        if sealer.partial.len() as u64 == TILE {
            write_tile(conn, no, 0, row.seq / TILE, &sealer.partial)?;
            sealer.partial.clear();
        }
    }
    let mut count = conn
        .prepare_cached(
            "INSERT INTO counters (tenant, day, action_type, severity, outcome, count)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT DO UPDATE SET count = count + excluded.count",
        )
        .map_err(from_sqlite)?;
    for c in tally.counters() {
        count
            .execute(params![
                no,
                c.day,
                c.action_type.as_str(),
                c.severity.as_str(),
                c.outcome.as_str(),
                c.count as i64
            ])
            .map_err(from_sqlite)?;
    }
    Ok(last_n)
}

pub(crate) fn related(fields: &audit_core::Fields) -> Option<String> {
    (!fields.related_resources.is_empty()).then(|| {
        let mut text = String::new();
        fields.write_related(&mut text);
        text
    })
}

fn write_head(conn: &Connection, sealer: &Sealer, last_n: i64) -> Result<()> {
    let head = &sealer.head;
    conn.prepare_cached(
        "INSERT INTO heads (tenant, size, peaks, created_at, pruned_below, pruned_by, swept_below,
            last_n)
         VALUES (?1, ?2, ?3, ?4, 0, NULL, 0, ?5)
         ON CONFLICT DO UPDATE SET size = excluded.size, peaks = excluded.peaks,
            created_at = excluded.created_at, last_n = excluded.last_n",
    )
    .and_then(|mut statement| {
        statement.execute(params![
            sealer.no,
            head.size() as i64,
            head.tree.to_bytes(),
            head.created_at.as_micros(),
            last_n,
        ])
    })
    .map(drop)
    .map_err(from_sqlite)
}

/// Writes a tile that is complete, and the one above when it completes that too.
fn write_tile(conn: &Connection, no: i64, level: u8, idx: u64, hashes: &[Hash]) -> Result<()> {
    let blob = hashes.iter().flat_map(|hash| hash.0).collect::<Vec<u8>>();
    conn.prepare_cached(
        "INSERT INTO tiles (tenant, level, idx, root, hashes) VALUES (?1, ?2, ?3, ?4, ?5)",
    )
    .and_then(|mut statement| {
        let root = subtree_root(hashes);
        statement.execute(params![no, level, idx as i64, root.as_bytes(), blob])
    })
    .map_err(from_sqlite)?;
    if (idx + 1).is_multiple_of(TILE) {
        let above = head::tile_roots(conn, no, level, idx + 1 - TILE..idx + 1)?;
        write_tile(conn, no, level + 1, idx / TILE, &above)?;
    }
    Ok(())
}
