//! A guard in a bucket: for each tenant an object with its head, and a chain of objects with its
//! erasures; and one object with the deployment log's head.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use audit_core::tlog::leaf::leaf_hash;
use audit_core::{
    Error, ErrorKind, Guard, GuardAdvance, GuardedErasure, GuardedHead, Hash, Result, TenantId,
    Timestamp, admit_advance,
};
use futures_util::TryStreamExt as _;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, UpdateVersion};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{ObjectOptions, is_absent};

/// The version of all objects.
const VERSION: u32 = 1;
/// What is named after a tenant lies in these, and ends so.
const HEADS: &str = "heads";
const ERASURES: &str = "erasures";
const ENDING: &str = ".json";
/// The deployment log's head.
const DEPLOYMENT: &str = "deployment.json";

/// A [`Guard`] in a bucket of Amazon S3, or of what speaks its protocol and knows conditional writes: it
/// is for several servers on several machines, which have no folder in common.
///
/// `heads/<tenant>.json` is replaced whole, and only in place of the one that was read (`If-Match`). It
/// names the newest of the tenant's objects below `erasures/`, each of which names the one before it and
/// is never written over; one that no head leads to was being written when a process ended, and doesn't
/// count. `deployment.json` is the deployment log's head. Nothing is ever deleted: keep what expires
/// objects away from the prefix, and never restore it together with the database.
pub struct ObjectGuard {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    place: String,
    /// The chain that was walked last: it is read page by page.
    walked: Mutex<Option<Arc<Chain>>>,
}

/// The objects with a tenant's erasures.
struct Chain {
    tenant: TenantId,
    /// The newest of them.
    last: String,
    /// How many erasures lie before each, and its name, oldest first.
    objects: Vec<(u64, String)>,
}

impl fmt::Debug for ObjectGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The store's own may tell how it signs in.
        f.debug_struct("ObjectGuard")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

/// What a head's object holds.
#[derive(Debug, Serialize, Deserialize)]
struct HeadObject {
    v: u32,
    epoch: u64,
    size: u64,
    /// In base64.
    root: String,
    /// How many erasures there are, and the object that holds the last of them.
    erasures: u64,
    last: Option<String>,
}

/// Some erasures, in their order.
#[derive(Debug, Serialize, Deserialize)]
struct ErasuresObject {
    v: u32,
    /// How many lie before these, and the object that holds the last of those.
    start: u64,
    before: Option<String>,
    erasures: Vec<ErasureItem>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ErasureItem {
    seq: u64,
    accepted_at: String,
    ctl: String,
}

/// A head as it was read, with what a conditional write needs.
struct Found {
    head: GuardedHead,
    erasures: u64,
    last: Option<String>,
    version: UpdateVersion,
}

impl ObjectGuard {
    /// The guard at a URL, `s3://bucket/prefix`. The bucket has to be there, and is not asked for before
    /// the first call. How it is reached is [in the environment](crate#where).
    ///
    /// # Errors
    /// Those of [`ObjectOptions::new`] and [`open_with`](Self::open_with).
    pub fn open(url: &str) -> Result<Self> {
        Self::open_with(&ObjectOptions::new(url)?)
    }

    /// Opens a guard, as [`open`](Self::open) does.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] naming `url` for a folder, which is [`FolderGuard`](audit_core::FolderGuard)'s,
    /// and when its path or a variable can't be used; [`ErrorKind::Refused`] when this build has no S3, or
    /// naming the file of authorities when that can't be used.
    pub fn open_with(options: &ObjectOptions) -> Result<Self> {
        if options.url.scheme() != "s3" {
            return Err(Error::field("url", "s3://bucket/prefix is expected"));
        }
        let (store, prefix, _) = crate::bucket(options)?;
        Ok(Self {
            store,
            prefix,
            place: options.url.to_string(),
            walked: Mutex::default(),
        })
    }

    fn path(&self, parts: &[&str]) -> Path {
        let parts = parts.iter().map(|part| Path::from(*part));
        let parts: Vec<_> = parts.collect();
        let below = parts.iter().flat_map(Path::parts);
        self.prefix.parts().chain(below).collect()
    }

    fn head_path(&self, tenant: TenantId) -> Path {
        self.path(&[HEADS, &format!("{tenant}{ENDING}")])
    }

    /// What an object holds, and its version; none where there is no such object.
    async fn read<T: DeserializeOwned>(&self, path: &Path) -> Result<Option<(T, UpdateVersion)>> {
        let found = match self.store.get(path).await {
            Err(error) if is_absent(&error) => return Ok(None),
            found => found.map_err(away)?,
        };
        let version = UpdateVersion {
            e_tag: found.meta.e_tag.clone(),
            version: found.meta.version.clone(),
        };
        let bytes = found.bytes().await.map_err(away)?;
        let read = serde_json::from_slice(&bytes).map_err(|e| damaged(path).with_source(e))?;
        Ok(Some((read, version)))
    }

    async fn read_head(&self, path: &Path) -> Result<Option<Found>> {
        let Some((object, version)) = self.read::<HeadObject>(path).await? else {
            return Ok(None);
        };
        let root = Hash::from_base64(&object.root).filter(|_| object.v == VERSION);
        Ok(Some(Found {
            head: GuardedHead {
                epoch: object.epoch,
                size: object.size,
                root: root.ok_or_else(|| damaged(path))?,
            },
            erasures: object.erasures,
            last: object.last,
            version,
        }))
    }

    /// An object of a tenant's erasures, which a head or a later one leads to.
    async fn read_erasures(&self, tenant: TenantId, name: &str) -> Result<ErasuresObject> {
        let path = self.path(&[ERASURES, &tenant.to_string(), name]);
        let found = self.read::<ErasuresObject>(&path).await?;
        let object = found.map(|(object, _)| object).filter(|o| o.v == VERSION);
        object.ok_or_else(|| damaged(&path))
    }

    fn walked(&self) -> MutexGuard<'_, Option<Arc<Chain>>> {
        self.walked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A tenant's objects, walked back from the newest one unless they are known.
    async fn chain(&self, tenant: TenantId, last: String) -> Result<Arc<Chain>> {
        let known = self.walked().clone();
        if let Some(known) = known.filter(|k| (k.tenant, &k.last) == (tenant, &last)) {
            return Ok(known);
        }
        let mut objects = Vec::new();
        let mut next = Some(last.clone());
        while let Some(name) = next {
            let object = self.read_erasures(tenant, &name).await?;
            objects.push((object.start, name));
            next = object.before;
        }
        objects.reverse();
        let chain = Arc::new(Chain {
            tenant,
            last,
            objects,
        });
        *self.walked() = Some(Arc::clone(&chain));
        Ok(chain)
    }

    /// Writes the erasures that come behind a head's, and returns the object's name.
    async fn write_erasures(
        &self,
        tenant: TenantId,
        present: Option<&Found>,
        erasures: &[GuardedErasure],
    ) -> Result<String> {
        let object = ErasuresObject {
            v: VERSION,
            start: present.map_or(0, |found| found.erasures),
            before: present.and_then(|found| found.last.clone()),
            erasures: erasures
                .iter()
                .map(|erasure| ErasureItem {
                    seq: erasure.seq,
                    accepted_at: erasure.accepted_at.to_string(),
                    ctl: erasure.ctl.clone(),
                })
                .collect(),
        };
        let bytes = encoded(&object)?;
        // After its content: what another process writes in its place has another name.
        let name = format!("{}{ENDING}", leaf_hash(&bytes));
        let path = self.path(&[ERASURES, &tenant.to_string(), &name]);
        self.store.put(&path, bytes.into()).await.map_err(away)?;
        Ok(name)
    }

    /// Remembers a head, and a tenant's erasures.
    async fn write(
        &self,
        path: &Path,
        tenant: Option<TenantId>,
        advance: &GuardAdvance,
    ) -> Result<()> {
        let present = self.read_head(path).await?;
        if !admit_advance(present.as_ref().map(|found| &found.head), advance)? {
            return Ok(());
        }
        let mut object = HeadObject {
            v: VERSION,
            epoch: advance.to.epoch,
            size: advance.to.size,
            root: advance.to.root.to_base64(),
            erasures: present.as_ref().map_or(0, |found| found.erasures),
            last: present.as_ref().and_then(|found| found.last.clone()),
        };
        if let Some(tenant) = tenant.filter(|_| !advance.erasures.is_empty()) {
            let erasures = &advance.erasures;
            let name = self
                .write_erasures(tenant, present.as_ref(), erasures)
                .await?;
            object.last = Some(name);
            object.erasures += erasures.len() as u64;
        }
        let mode = match present {
            None => PutMode::Create,
            Some(found) => PutMode::Update(found.version),
        };
        let bytes = encoded(&object)?;
        let stored = self.store.put_opts(path, bytes.into(), mode.into()).await;
        match stored {
            Ok(_) => Ok(()),
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. },
            ) => self.overtaken(path, advance).await,
            Err(error) => Err(away(error)),
        }
    }

    /// Says what came of an advance in whose place something was written: by another, or by an own call
    /// whose answer was lost.
    async fn overtaken(&self, path: &Path, advance: &GuardAdvance) -> Result<()> {
        let present = self.read_head(path).await?;
        match admit_advance(present.as_ref().map(|found| &found.head), advance)? {
            false => Ok(()),
            true => Err(Error::new(
                ErrorKind::Unavailable,
                "the guard's object was written at the same time",
            )),
        }
    }
}

/// The bytes of an object.
fn encoded(object: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(object).map_err(|e| {
        Error::new(ErrorKind::Internal, "the guard's object can't be written").with_source(e)
    })
}

fn away(error: object_store::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "the guard's bucket doesn't answer").with_source(error)
}

fn damaged(path: &Path) -> Error {
    let message = format!("the guard's object {path} is damaged or missing");
    Error::new(ErrorKind::Unavailable, message)
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Guard for ObjectGuard {
    fn place(&self) -> String {
        self.place.clone()
    }

    async fn head(&self, tenant: TenantId) -> Result<Option<GuardedHead>> {
        let found = self.read_head(&self.head_path(tenant)).await?;
        Ok(found.map(|found| found.head))
    }

    /// The first page of a tenant walks all of its objects; those that follow read their own.
    async fn erasures(
        &self,
        tenant: TenantId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<GuardedErasure>> {
        let found = self.read_head(&self.head_path(tenant)).await?;
        let Some(last) = found
            .filter(|found| from < found.erasures)
            .and_then(|found| found.last)
        else {
            return Ok(Vec::new());
        };
        let chain = self.chain(tenant, last).await?;
        let first = chain.objects.partition_point(|(start, _)| *start <= from);
        let mut erasures = Vec::new();
        for (start, name) in &chain.objects[first.saturating_sub(1)..] {
            let object = self.read_erasures(tenant, name).await?;
            let skipped = usize::try_from(from.saturating_sub(*start)).unwrap_or(usize::MAX);
            for item in object.erasures.into_iter().skip(skipped) {
                if erasures.len() == limit {
                    return Ok(erasures);
                }
                let accepted_at = Timestamp::parse(&item.accepted_at);
                erasures.push(GuardedErasure {
                    seq: item.seq,
                    accepted_at: accepted_at.map_err(|e| {
                        damaged(&self.path(&[ERASURES, &tenant.to_string(), name])).with_source(e)
                    })?,
                    ctl: item.ctl,
                });
            }
        }
        Ok(erasures)
    }

    async fn tenants(&self, after: Option<TenantId>, limit: usize) -> Result<Vec<TenantId>> {
        let folder = self.path(&[HEADS]);
        let behind = after.map_or_else(|| folder.clone(), |after| self.head_path(after));
        let mut found = self.store.list_with_offset(Some(&folder), &behind);
        // Not every server lists in order, so that all have to be seen.
        let mut tenants = Vec::new();
        while let Some(object) = found.try_next().await.map_err(away)? {
            let name = object.location.filename().unwrap_or_default();
            let tenant = name.strip_suffix(ENDING);
            tenants.extend(tenant.and_then(|tenant| tenant.parse::<TenantId>().ok()));
        }
        tenants.retain(|tenant| Some(*tenant) > after);
        tenants.sort_unstable();
        tenants.truncate(limit);
        Ok(tenants)
    }

    async fn advance(&self, tenant: TenantId, advance: &GuardAdvance) -> Result<()> {
        self.write(&self.head_path(tenant), Some(tenant), advance)
            .await
    }

    async fn deployment_head(&self) -> Result<Option<GuardedHead>> {
        let found = self.read_head(&self.path(&[DEPLOYMENT])).await?;
        Ok(found.map(|found| found.head))
    }

    async fn advance_deployment(&self, known: Option<GuardedHead>, to: GuardedHead) -> Result<()> {
        let advance = GuardAdvance::plain(known, to);
        self.write(&self.path(&[DEPLOYMENT]), None, &advance).await
    }
}

#[cfg(test)]
mod tests {
    use audit_conformance::GuardHarness;
    use object_store::memory::InMemory;

    use super::*;

    /// A bucket in memory, whose conditional writes are atomic.
    struct InBucket(ObjectGuard);

    fn guard(store: &Arc<dyn ObjectStore>) -> ObjectGuard {
        ObjectGuard {
            store: Arc::clone(store),
            prefix: Path::from("guards/of.here"),
            place: "s3://bucket/guards/of.here".to_owned(),
            walked: Mutex::default(),
        }
    }

    impl GuardHarness for InBucket {
        type Guard = ObjectGuard;

        async fn open() -> Self {
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            Self(guard(&store))
        }

        fn guard(&self) -> &ObjectGuard {
            &self.0
        }

        async fn reopen(self) -> Self {
            Self(guard(&self.0.store))
        }
    }

    audit_conformance::guard!(InBucket);

    fn head(size: u64) -> GuardedHead {
        let root = Hash([size as u8; 32]);
        GuardedHead {
            epoch: 1,
            size,
            root,
        }
    }

    fn advance(known: Option<u64>, to: u64, erased: &[u64]) -> GuardAdvance {
        let erasure = |seq: &u64| GuardedErasure {
            seq: *seq,
            accepted_at: Timestamp::MIN,
            ctl: "{}".to_owned(),
        };
        GuardAdvance {
            known: known.map(head),
            to: head(to),
            erasures: erased.iter().map(erasure).collect(),
        }
    }

    #[tokio::test]
    async fn erasures_that_no_head_leads_to_do_not_count() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let guard = guard(&store);
        let tenant = TenantId::new(uuid::Uuid::from_u128(1));
        let first = advance(None, 10, &[3, 4]);
        guard.advance(tenant, &first).await.unwrap();
        // A process ends between its two writes; another one writes what it found instead.
        let path = guard.head_path(tenant);
        let present = guard.read_head(&path).await.unwrap();
        let lost = advance(Some(10), 20, &[11]);
        let written = guard.write_erasures(tenant, present.as_ref(), &lost.erasures);
        written.await.unwrap();
        let found = guard.erasures(tenant, 0, 10).await.unwrap();
        assert_eq!(found, first.erasures);
        let second = advance(Some(10), 21, &[12, 13]);
        guard.advance(tenant, &second).await.unwrap();
        for (from, limit, expected) in [
            (0, 10, vec![3, 4, 12, 13]),
            (1, 2, vec![4, 12]),
            (2, 1, vec![12]),
            (3, 9, vec![13]),
            (4, 9, vec![]),
        ] {
            let found = guard.erasures(tenant, from, limit).await.unwrap();
            let seqs: Vec<u64> = found.iter().map(|erasure| erasure.seq).collect();
            assert_eq!(seqs, expected, "{from} {limit}");
        }
    }

    #[tokio::test]
    async fn an_object_that_is_damaged_or_missing_is_told_and_is_no_unknown_log() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let guard = guard(&store);
        let tenant = TenantId::new(uuid::Uuid::from_u128(1));
        let first = advance(None, 10, &[3]);
        guard.advance(tenant, &first).await.unwrap();
        let found = guard.read_head(&guard.head_path(tenant)).await.unwrap();
        let name = found.unwrap().last.unwrap();
        let path = guard.path(&[ERASURES, &tenant.to_string(), &name]);
        store.delete(&path).await.unwrap();
        let error = guard.erasures(tenant, 0, 10).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains(&name), "{error}");
        for text in [
            "",
            "{}",
            "{\"v\":2,\"epoch\":1,\"size\":10,\"root\":\"\",\"erasures\":0}",
        ] {
            let path = guard.head_path(tenant);
            store
                .put(&path, text.as_bytes().to_vec().into())
                .await
                .unwrap();
            let error = guard.head(tenant).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{text}");
            let refused = guard.advance(tenant, &advance(None, 11, &[])).await;
            assert!(refused.is_err(), "{text}");
        }
    }
}
