//! Full-text search of audit logs in OpenSearch.
//!
//! [`OpenSearchIndex`] is a [`SearchIndex`](audit_core::SearchIndex): it follows the logs, answers
//! with positions only, and can be lost and filled again at any time. Words are cut by
//! [`audit_core::text`] before they are sent, so that a query finds what it finds in every other
//! index; OpenSearch only splits at spaces.
//!
//! ```no_run
//! # async fn open(log: std::sync::Arc<dyn audit_core::LogStore>) -> audit_core::Result<()> {
//! use audit_search_opensearch::{OpenSearchIndex, OpenSearchOptions};
//!
//! let options = OpenSearchOptions::new("https://audit:secret@search.example.org:9200")?
//!     .ca_file("/etc/audit/search-ca.pem")?
//!     .replicas(1);
//! let index = OpenSearchIndex::open(options)?;
//! index.ping().await?;
//! index.reindex(&*log).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # In the cluster
//!
//! With the prefix `audit` and [`Layout::Shared`], the index is `audit-v1-000001`, reached by the
//! alias `audit-v1`; with [`Layout::PerTenant`] each tenant has `audit-v1-<tenant>-000001` under the
//! alias `audit-v1-<tenant>`. `v1` is the form of the documents: another form has other names, so
//! that versions of this program can run side by side. An index template of the name `audit-v1`
//! makes every index strict: no field that isn't named in the mapping is ever added to it, however
//! many keys `metadata` has.
//!
//! A document holds an entry's words, position, times, and the values that a filter compares. Its
//! source is not kept, so what it was made of can't be read back. Its version is 1 and the number of
//! groups that were erased from the entry: what was read before an erasure never replaces what was
//! read after it. One more document for each tenant says how far its log is indexed.

mod bulk;
mod client;
mod document;
mod fault;
mod generation;
mod index;
mod options;
mod progress;
mod query;
mod reindex;
mod schema;
mod vacuum;

pub use index::OpenSearchIndex;
pub use options::{Layout, OpenSearchOptions};
