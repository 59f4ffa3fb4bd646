//! What all wrappers of a log store share: every method, delegated once.
//!
//! A wrapper says in [`Wraps`] what it does around a call, and the macro writes its implementation. A
//! method that the trait gains fails to compile here, so none is forgotten.

use std::future::Future;

use crate::entry::Receipt;
use crate::error::Result;
use crate::id::TenantId;
use crate::prepare::Batch;
use crate::store::LogStore;

/// What a wrapper does around the calls of the store that it wraps.
pub(crate) trait Wraps: Send + Sync {
    type Store: LogStore + ?Sized;

    fn wrapped(&self) -> &Self::Store;

    fn append_around(
        &self,
        batches: &[Batch],
    ) -> impl Future<Output = Result<Vec<Result<Vec<Receipt>>>>> + Send {
        async move {
            self.around("append", || self.wrapped().append(batches))
                .await
        }
    }

    fn writing_around<T: Send, F: Future<Output = Result<T>> + Send>(
        &self,
        tenant: TenantId,
        method: &'static str,
        call: impl Fn() -> F + Send + Sync,
    ) -> impl Future<Output = Result<T>> + Send {
        let _ = tenant;
        async move { self.around(method, call).await }
    }

    fn around<T: Send, F: Future<Output = Result<T>> + Send>(
        &self,
        method: &'static str,
        call: impl Fn() -> F + Send + Sync,
    ) -> impl Future<Output = Result<T>> + Send {
        let _ = method;
        async move { call().await }
    }
}

/// [`Wraps::around`] of what adds entries to a tenant's log otherwise than by an append.
macro_rules! writing {
    ($self:ident, $scope:ident, $method:ident($argument:ident)) => {
        crate::decorate::Wraps::writing_around($self, $scope.tenant(), stringify!($method), || {
            crate::decorate::Wraps::wrapped($self).$method($scope, $argument)
        })
        .await
    };
}

macro_rules! decorate_log_store {
    ([$($generics:tt)*] $wrapper:ty) => {
        #[async_trait::async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl<$($generics)*> crate::store::LogStore for $wrapper {
            async fn append(
                &self,
                batches: &[crate::Batch],
            ) -> crate::Result<Vec<crate::Result<Vec<crate::Receipt>>>> {
                crate::decorate::Wraps::append_around(self, batches).await
            }

            async fn get(
                &self,
                scope: &crate::TenantScope,
                ids: &[crate::EventId],
            ) -> crate::Result<Vec<crate::Lookup>> {
                crate::decorate::Wraps::around(self, "get", || crate::decorate::Wraps::wrapped(self).get(scope, ids)).await
            }

            async fn at(
                &self,
                scope: &crate::TenantScope,
                seqs: &[u64],
            ) -> crate::Result<Vec<crate::Entry>> {
                crate::decorate::Wraps::around(self, "at", || crate::decorate::Wraps::wrapped(self).at(scope, seqs)).await
            }

            async fn list(
                &self,
                scope: &crate::TenantScope,
                filter: &crate::Filter,
                page: &crate::PageRequest,
            ) -> crate::Result<crate::Page<crate::Entry>> {
                crate::decorate::Wraps::around(self, "list", || crate::decorate::Wraps::wrapped(self).list(scope, filter, page)).await
            }

            async fn read(
                &self,
                scope: &crate::TenantScope,
                from: u64,
                limit: usize,
            ) -> crate::Result<Vec<crate::Entry>> {
                crate::decorate::Wraps::around(self, "read", || crate::decorate::Wraps::wrapped(self).read(scope, from, limit)).await
            }

            async fn snapshot(
                &self,
                scope: &crate::TenantScope,
            ) -> crate::Result<Box<dyn crate::Snapshot>> {
                crate::decorate::Wraps::around(self, "snapshot", || crate::decorate::Wraps::wrapped(self).snapshot(scope)).await
            }

            async fn counters(
                &self,
                scope: &crate::TenantScope,
                days: std::ops::Range<i32>,
            ) -> crate::Result<Vec<crate::Counter>> {
                crate::decorate::Wraps::around(self, "counters", || crate::decorate::Wraps::wrapped(self).counters(scope, days.clone())).await
            }

            async fn head(&self, scope: &crate::TenantScope) -> crate::Result<crate::Head> {
                crate::decorate::Wraps::around(self, "head", || crate::decorate::Wraps::wrapped(self).head(scope)).await
            }

            async fn hashes(
                &self,
                scope: &crate::TenantScope,
                level: u8,
                range: std::ops::Range<u64>,
            ) -> crate::Result<Vec<crate::Hash>> {
                crate::decorate::Wraps::around(self, "hashes", || crate::decorate::Wraps::wrapped(self).hashes(scope, level, range.clone())).await
            }

            async fn leaves(
                &self,
                scope: &crate::TenantScope,
                range: std::ops::Range<u64>,
            ) -> crate::Result<Vec<(u64, String)>> {
                crate::decorate::Wraps::around(self, "leaves", || crate::decorate::Wraps::wrapped(self).leaves(scope, range.clone())).await
            }

            async fn erase(
                &self,
                scope: &crate::TenantScope,
                erasure: &crate::Erasure,
            ) -> crate::Result<crate::Erased> {
                crate::decorate::writing!(self, scope, erase(erasure))
            }

            async fn declare(
                &self,
                scope: &crate::TenantScope,
                declaration: &crate::Declaration,
            ) -> crate::Result<crate::Receipt> {
                crate::decorate::writing!(self, scope, declare(declaration))
            }

            async fn prune(
                &self,
                scope: &crate::TenantScope,
                prune: &crate::Prune,
            ) -> crate::Result<crate::Pruned> {
                crate::decorate::writing!(self, scope, prune(prune))
            }

            async fn sweep(&self) -> crate::Result<bool> {
                crate::decorate::Wraps::around(self, "sweep", || crate::decorate::Wraps::wrapped(self).sweep()).await
            }

            async fn grown_since(&self, since: crate::Mark) -> crate::Result<crate::Grown> {
                crate::decorate::Wraps::around(self, "grown_since", || crate::decorate::Wraps::wrapped(self).grown_since(since)).await
            }

            async fn cursor(&self, tenant: crate::TenantId, consumer: &str) -> crate::Result<u64> {
                crate::decorate::Wraps::around(self, "cursor", || crate::decorate::Wraps::wrapped(self).cursor(tenant, consumer)).await
            }

            async fn advance(
                &self,
                tenant: crate::TenantId,
                consumer: &str,
                required: bool,
                position: u64,
            ) -> crate::Result<()> {
                crate::decorate::Wraps::around(self, "advance", || crate::decorate::Wraps::wrapped(self).advance(tenant, consumer, required, position)).await
            }

            async fn ping(&self) -> crate::Result<()> {
                crate::decorate::Wraps::around(self, "ping", || crate::decorate::Wraps::wrapped(self).ping()).await
            }
        }
    };
}

pub(crate) use {decorate_log_store, writing};
