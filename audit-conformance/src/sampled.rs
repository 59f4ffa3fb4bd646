//! Proofs of some entries of a log, kept while most of the log goes.

use std::sync::Arc;

use audit_core::tlog::checkpoint::Origin;
use audit_core::tlog::leaf::leaf_hash;
use audit_core::tlog::merkle;
use audit_core::tlog::note::SigningKey;
use audit_core::tlog::proof::InclusionProof;
use audit_core::{
    AuditLog, AuditLogBuilder, CheckpointStore, EventId, SignedCheckpoint, Signer, TenantId,
    TenantLog,
};
use tokio::time::Instant;

use crate::fixture::{DEADLINE, trusted};

/// The log of a builder, whose heads are signed there.
pub fn signed(builder: AuditLogBuilder, checkpoints: Arc<dyn CheckpointStore>) -> AuditLog {
    let origin = Origin::parse("audit.example/log").expect("an origin");
    let key = SigningKey::from_seed("audit", &[7; 32]).expect("a key");
    builder
        .signer(Signer::new(origin, key), checkpoints)
        .build()
}

/// A tenant's log, and the proofs of some of its entries.
#[derive(Debug)]
pub struct Sampled {
    reader: TenantLog,
    head: SignedCheckpoint,
    proofs: Vec<(EventId, InclusionProof)>,
}

/// The checkpoint of the log's newest head.
async fn newest(reader: &TenantLog) -> SignedCheckpoint {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let size = reader.head().await.expect("a head").size();
        match reader.checkpoint().await.expect("an answer") {
            Some(latest) if latest.size == size => return latest,
            _ => assert!(Instant::now() < deadline, "the head is signed in time"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

impl Sampled {
    /// Proves these entries under the newest head, once that is signed.
    pub async fn of(log: &AuditLog, tenant: TenantId, ids: Vec<EventId>) -> Self {
        let reader = log.tenant(trusted(tenant));
        let head = newest(&reader).await;
        let mut proofs = Vec::new();
        for id in ids {
            let proof = reader.proof(id).await.expect("a proof");
            proofs.push((id, proof));
        }
        Self {
            reader,
            head,
            proofs,
        }
    }

    /// Every proof still holds for the entry as it is shown now, and so does one that is made now, under a
    /// head that continues the earlier one.
    pub async fn still_hold(&self, log: &AuditLog) {
        let (reader, head) = (&self.reader, newest(&self.reader).await);
        let scope = reader.scope();
        let proof = reader.consistency(self.head.size, head.size).await;
        let (old, new) = ((self.head.size, &self.head.root), (head.size, &head.root));
        let proof = proof.expect("a proof");
        merkle::verify_consistency(old.0, old.1, new.0, new.1, &proof).expect("a continuation");
        let keys = [reader.verifying_key().await.expect("a key")];
        for (id, before) in &self.proofs {
            let seq = reader.get(*id).await.expect("the entry").seq;
            let data = log.log_store().leaves(scope, seq..seq + 1).await;
            let leaf = leaf_hash(data.expect("leaf data")[0].1.as_bytes());
            let now = reader.proof(*id).await.expect("a proof");
            for proof in [before, &now] {
                assert_eq!(proof.index(), seq);
                proof.verify(&leaf, &keys).expect("the entry is proved");
            }
        }
    }
}
