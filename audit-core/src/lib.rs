//! Multi-tenant audit logging: *who did what to which resource, when, from where, with what outcome,
//! and what changed*.
//!
//! Each tenant has one append-only log. Every entry has a gap-free position, `seq`, which is also its
//! leaf index in the tenant's Merkle tree. Everything else (search, live streams, statistics,
//! consumers) follows that log with a cursor.
//!
//! This crate holds the domain, the traits, the [`AuditLog`] facade and backends in memory. It names
//! no database, queue, HTTP or cloud crate. `audit-store-sqlite` is the embedded backend.

pub mod archive;
pub mod authorize;
pub mod checkpoint;
pub mod clock;
pub mod consumer;
pub mod credential;
mod decorate;
pub mod deployment;
pub mod entry;
pub mod erasure;
pub mod error;
pub mod event;
pub mod evidence;
pub mod filter;
mod finite;
pub mod group_commit;
pub mod guard;
pub mod id;
mod ingest;
pub mod json;
pub mod log;
pub mod memory;
pub mod observe;
pub mod offboarding;
pub mod outbox;
pub mod page;
mod parse;
pub mod prepare;
pub mod pursuit;
pub mod queue;
pub mod rebuild;
pub mod recorder;
pub mod retention;
pub mod retry;
pub mod scan;
pub mod scope;
pub mod seal;
pub mod search;
mod signing;
pub mod stats;
pub mod store;
pub mod subscribe;
pub mod tenant;
pub mod text;
pub mod vacuum;
pub mod worker;

pub use audit_tlog as tlog;
pub use audit_tlog::{Basis, Control, Group, Hash, Kind, Timestamp};

pub use archive::{Archive, ArchiveStatus};
pub use authorize::{AccessRequest, ByClaims, ByMembership, ByPolicy, Decision, TenantAuthorizer};
pub use checkpoint::{CheckpointStore, EpochStart, Fence, KeyChange, SignedCheckpoint, Signer};
pub use clock::{Clock, ManualClock, SystemClock};
pub use consumer::Consumer;
pub use credential::{ApiKey, CredentialStore, KeyPlace, SecretHash, Ticket};
pub use deployment::{DeploymentStore, TenantHead, Uncommitted, Witness, WitnessAnswer};
pub use entry::{Entry, Evidence, Opening, Receipt, StoredEntry};
pub use erasure::{
    ErasureCount, ErasureJob, ErasureMark, ErasureRequest, ErasureState, ErasureStep, ErasureStore,
    Selection,
};
pub use error::{Error, ErrorKind, FieldFault, Result};
pub use event::{ActionType, ActorType, Event, Fields, Outcome, RelatedResource, Severity, limits};
pub use evidence::{EvidenceRequest, TiledLog};
pub use filter::{Filter, TimeRange};
pub use group_commit::GroupCommit;
pub use guard::{
    DeploymentRecovery, FolderGuard, Guard, GuardAdvance, GuardedErasure, GuardedHead, Recovery,
    admit_advance,
};
pub use id::{ErasureId, EventId, NotAUuid, TenantId};
pub use json::{Json, JsonFault};
pub use log::{AuditLog, AuditLogBuilder, TenantLog, TenantRecorder};
pub use memory::{MemoryArchive, MemoryGuard, MemoryIndex, MemoryOutbox, MemoryQueue, MemoryStore};
pub use observe::{Observed, Observer};
pub use offboarding::{Ending, OffboardingStore, Tombstone};
pub use outbox::{Outbox, OutboxRow, ParkedRow};
pub use page::{Order, Page, PageRequest, Position, Sort};
pub use prepare::{Act, Batch, PreparedEvent, Redact};
pub use pursuit::EntryErased;
pub use queue::{
    DeadLetter, Delivery, EventQueue, Message, MessageKind, QueueDepth, Redrive, RowHandle, Sieve,
    Verdict,
};
pub use recorder::Recorder;
pub use retention::{ActionRetention, LegalHold, Retention, RetentionDue, RetentionStore};
pub use retry::Retry;
pub use scope::{Permission, Permissions, Principal, Role, TenantScope};
pub use seal::{Head, Known, Row, Sealing, only_receipt, seal};
pub use search::{Hits, MAX_HELD, SearchIndex, SearchRequest};
pub use stats::{Bucket, GroupBy, Interval, Stats, StatsRequest};
pub use store::{
    Counter, Declaration, Erased, Erasure, ErasurePlan, Grown, LogStore, Lookup, Mark, Prune,
    PruneBound, Pruned, Snapshot, Tally, plan_erasure,
};
pub use subscribe::{Delivered, SubscribeRequest, Subscription};
pub use tenant::{Tenant, TenantFilter, TenantSecret, TenantStatus, TenantStore, TenantUpdate};
pub use text::Query;
pub use vacuum::Vacuum;
pub use worker::{
    DeploymentStatus, OffboardingStatus, RetentionStatus, WitnessStatus, WorkerStatus, Workers,
};
