//! What lies in an archive of one tenant.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use audit_tlog::folder::{MANIFEST, SegmentName};

use super::{Archive, MAX_LISTED};
use crate::error::Result;
use crate::id::TenantId;

/// A tenant's segments, with the paths of their files. Those without a manifest were not written or not
/// removed to the end.
#[derive(Debug, Default)]
pub(super) struct Shelf(BTreeMap<SegmentName, Vec<String>>);

impl Shelf {
    /// The segments that begin at a position or behind it: all, or as many as are `enough`.
    pub(super) async fn list(
        archive: &dyn Archive,
        tenant: TenantId,
        first: u64,
        enough: impl Fn(&Self) -> bool,
    ) -> Result<Self> {
        let folder = tenant.to_string();
        let mut shelf = Self::default();
        let mut after = format!("{folder}/{first:016}");
        loop {
            let page = archive.list(&folder, &after).await?;
            for path in &page {
                let name = path.split('/').nth(1).and_then(SegmentName::parse);
                if let Some(name) = name {
                    shelf.0.entry(name).or_default().push(path.clone());
                }
            }
            match page.last() {
                Some(last) if page.len() == MAX_LISTED && !enough(&shelf) => after.clone_from(last),
                _ => return Ok(shelf),
            }
        }
    }

    /// The segments that have exactly these positions.
    pub(super) async fn at(
        archive: &dyn Archive,
        tenant: TenantId,
        positions: &Range<u64>,
    ) -> Result<Self> {
        let is_behind = |shelf: &Self| shelf.names().any(|name| name.from > positions.start);
        let mut shelf = Self::list(archive, tenant, positions.start, is_behind).await?;
        shelf.0.retain(|name, _| name.positions() == *positions);
        Ok(shelf)
    }

    /// All of them.
    pub(super) fn names(&self) -> impl Iterator<Item = SegmentName> + '_ {
        self.0.keys().copied()
    }

    /// Those that were written to the end.
    pub(super) fn whole(&self) -> impl Iterator<Item = SegmentName> + '_ {
        let is_whole = |paths: &[String]| paths.iter().any(|path| path.ends_with(MANIFEST));
        let whole = self.0.iter().filter(move |(_, paths)| is_whole(paths));
        whole.map(|(name, _)| *name)
    }

    /// Those of them that have exactly these positions, the newest first.
    pub(super) fn versions(&self, positions: &Range<u64>) -> Vec<SegmentName> {
        let same = self.whole().filter(|name| name.positions() == *positions);
        let mut versions: Vec<SegmentName> = same.collect();
        versions.sort_by_key(|name| std::cmp::Reverse(name.id));
        versions
    }

    /// The runs of positions of which there are segments that were written to the end.
    pub(super) fn runs(&self) -> impl Iterator<Item = Range<u64>> {
        let runs: BTreeSet<(u64, u64)> = self.whole().map(|name| (name.from, name.to)).collect();
        runs.into_iter().map(|(from, to)| from..to)
    }

    /// The paths of a segment's files.
    pub(super) fn paths(&self, name: SegmentName) -> &[String] {
        self.0.get(&name).map_or(&[], Vec::as_slice)
    }
}
