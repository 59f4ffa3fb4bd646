//! Erasing: groups are cleared, and control entries say so, in one transaction.

use std::collections::BTreeMap;

use audit_core::{Batch, Erased, Erasure, Result, StoredEntry, TenantScope, plan_erasure};
use rusqlite::{Connection, OptionalExtension, params};

use crate::append::related;
use crate::erasures::{admit_step, take_step};
use crate::fault::from_sqlite;
use crate::reader::unknown_tenant;
use crate::retention::protection;
use crate::row;
use crate::writer::{Ledger, Writer};

impl Writer {
    pub(crate) fn erase(&mut self, scope: &TenantScope, erasure: &Erasure) -> Result<Erased> {
        let erased = self.transact(|conn, ledger| ledger.erase(conn, scope, erasure))?;
        let forgot = erasure.step.is_some_and(|step| step.done);
        if erased.entries > 0 || forgot {
            self.wal.purge(&self.conn);
        }
        Ok(erased)
    }
}

impl Ledger<'_> {
    fn erase(
        &mut self,
        conn: &Connection,
        scope: &TenantScope,
        erasure: &Erasure,
    ) -> Result<Erased> {
        let tenant = scope.tenant();
        let sealer = self
            .sealer(conn, tenant)?
            .ok_or_else(|| unknown_tenant(tenant))?;
        sealer.status.admit_read(tenant)?;
        let (no, pruned_below) = (sealer.no, sealer.head.pruned_below);
        protection(conn, no)?.admit_erasure(tenant, erasure)?;
        erasure.admit_pruned(pruned_below)?;
        let Some(below) = admit_step(conn, no, erasure)? else {
            return Ok(Erased::default());
        };
        let reach = pruned_below..below;

        let mut targets: BTreeMap<u64, StoredEntry> = BTreeMap::new();
        let mut place = conn
            .prepare_cached("SELECT seq FROM ids WHERE tenant = ?1 AND id = ?2")
            .map_err(from_sqlite)?;
        let mut entry = conn
            .prepare_cached(&format!(
                "SELECT {} FROM entries WHERE tenant = ?1 AND seq = ?2",
                row::COLUMNS
            ))
            .map_err(from_sqlite)?;
        for id in &erasure.ids {
            let seq = place
                .query_row(params![no, id.as_uuid().as_bytes()], |r| {
                    row::position(r, 0)
                })
                .optional()
                .map_err(from_sqlite)?;
            if let Some(seq) = seq.filter(|seq| reach.contains(seq) && !targets.contains_key(seq)) {
                let stored = entry
                    .query_row(params![no, seq as i64], |r| row::stored_entry(r, tenant))
                    .map_err(from_sqlite)?;
                targets.insert(seq, stored);
            }
        }

        let plan = plan_erasure(
            tenant,
            targets.into_values().collect(),
            erasure,
            pruned_below,
            self.time.now(),
        );
        let entries = plan.entries();
        take_step(conn, erasure, entries)?;
        if plan.controls.is_empty() {
            return Ok(Erased::default());
        }
        for changed in &plan.changed {
            rewrite(conn, no, changed)?;
        }
        let controls = Batch::new(scope.clone(), plan.controls);
        let receipts = self.seal_own(conn, &controls)?;
        Ok(Erased::new(entries, receipts))
    }
}

/// Writes an erased entry over its row, and forgets what repeats were compared by.
fn rewrite(conn: &Connection, no: i64, stored: &StoredEntry) -> Result<()> {
    let (entry, f) = (&stored.entry, &stored.entry.fields);
    conn.prepare_cached(
        "UPDATE entries SET opening = ?3, user_id = ?4, actor_type = ?5, actor_name = ?6,
            on_behalf_of = ?7, resource_type = ?8, resource_id = ?9, resource_name = ?10,
            related_resources = ?11, session_id = ?12, request_id = ?13, trace_id = ?14,
            user_agent = ?15, ip_address = ?16, reason = ?17, before_state = ?18,
            after_state = ?19, metadata = ?20
         WHERE tenant = ?1 AND seq = ?2",
    )
    .and_then(|mut statement| {
        statement.execute(params![
            no,
            entry.seq as i64,
            stored.opening.to_bytes(),
            f.user_id,
            f.actor_type.map(|t| t.as_str()),
            f.actor_name,
            f.on_behalf_of,
            f.resource_type,
            f.resource_id,
            f.resource_name,
            related(f),
            f.session_id,
            f.request_id,
            f.trace_id,
            f.user_agent,
            row::octets(f.ip_address),
            f.reason,
            f.before_state.as_ref().map(|j| j.as_str()),
            f.after_state.as_ref().map(|j| j.as_str()),
            f.metadata.as_ref().map(|j| j.as_str()),
        ])
    })
    .map_err(from_sqlite)?;
    forget_content(conn, no, entry.id)
}

/// Forgets what repeats of an id are compared by.
pub(crate) fn forget_content(conn: &Connection, no: i64, id: audit_core::EventId) -> Result<()> {
    conn.prepare_cached(
        "UPDATE ids SET content_key = NULL, content_tag = NULL WHERE tenant = ?1 AND id = ?2",
    )
    .and_then(|mut statement| statement.execute(params![no, id.as_uuid().as_bytes()]))
    .map(drop)
    .map_err(from_sqlite)
}
