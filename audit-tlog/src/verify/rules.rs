//! What each entry has to keep to after those before it, as far as its leaf data tells.

use uuid::Uuid;

use super::Code;
use super::check::CheckedLeaf;
use crate::control::Control;
use crate::time::Timestamp;

/// What is remembered of the entries before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    last: Option<(u64, Timestamp)>,
    pruned: Option<(u64, u64)>,
}

impl Rules {
    /// After an entry that was accepted at this time, and a prune below a position by another.
    pub(super) const fn after(last: Option<(u64, Timestamp)>, pruned: Option<(u64, u64)>) -> Self {
        Self { last, pruned }
    }

    /// The last entry that was checked, and when it was accepted.
    pub(super) const fn last(&self) -> Option<(u64, Timestamp)> {
        self.last
    }

    /// Below which position the log was pruned, and by which entry.
    pub(super) const fn pruned(&self) -> Option<(u64, u64)> {
        self.pruned
    }

    /// Checks the next entry: whose it is, when it was accepted, and what it says of other positions.
    pub(super) fn check(
        &mut self,
        tenant: Option<Uuid>,
        seq: u64,
        leaf: &CheckedLeaf,
    ) -> Vec<(Code, (u64, u64), String)> {
        let here = (seq, seq);
        let mut faults = Vec::new();
        if tenant.is_some_and(|tenant| tenant != leaf.tenant_id) {
            let detail = format!("an entry of the tenant {}", leaf.tenant_id);
            faults.push((Code::Tenant, here, detail));
        }
        if let Some((before, at)) = self.last
            && leaf.created_at < at
        {
            let detail = format!(
                "position {seq} was accepted {}, before position {before}",
                leaf.created_at
            );
            faults.push((Code::Time, (before, seq), detail));
        }
        self.last = Some((seq, leaf.created_at));
        match leaf.control.as_deref() {
            Some(Control::Erase { entries, .. })
                if entries.last().is_some_and(|(_, to)| *to >= seq) =>
            {
                let detail = "erases positions that are not below its own".into();
                faults.push((Code::EraseEntry, here, detail));
            }
            Some(Control::Prune { below, .. }) => {
                let before = self.pruned.map_or(0, |(below, _)| below);
                if *below > seq || *below <= before {
                    let detail = format!("prunes below {below}, after a prune below {before}");
                    faults.push((Code::PruneEntry, here, detail));
                } else {
                    self.pruned = Some((*below, seq));
                }
            }
            Some(Control::Epoch { size, .. }) if *size != seq => {
                let detail = format!("continues from size {size}");
                faults.push((Code::EpochEntry, here, detail));
            }
            _ => {}
        }
        faults
    }
}
