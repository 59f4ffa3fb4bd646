//! The contract of the trait, in both layouts.

use audit_conformance::SearchIndexHarness;
use audit_search_opensearch::{Layout, OpenSearchIndex};

use crate::cluster::Cluster;

struct Shared {
    _cluster: Cluster,
    index: OpenSearchIndex,
}

impl SearchIndexHarness for Shared {
    type Index = OpenSearchIndex;

    async fn open() -> Self {
        let cluster = Cluster::new(Layout::Shared);
        Self {
            index: cluster.index(),
            _cluster: cluster,
        }
    }

    fn index(&self) -> &OpenSearchIndex {
        &self.index
    }
}

struct PerTenant {
    _cluster: Cluster,
    index: OpenSearchIndex,
}

impl SearchIndexHarness for PerTenant {
    type Index = OpenSearchIndex;

    async fn open() -> Self {
        let cluster = Cluster::new(Layout::PerTenant);
        Self {
            index: cluster.index(),
            _cluster: cluster,
        }
    }

    fn index(&self) -> &OpenSearchIndex {
        &self.index
    }
}

mod shared {
    audit_conformance::search_index!(super::Shared);
}

mod per_tenant {
    audit_conformance::search_index!(super::PerTenant);
}
