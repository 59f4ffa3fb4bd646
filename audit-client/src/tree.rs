//! A log's Merkle tree, computed here from the tiles that a server has of it (C2SP tlog-tiles).
//!
//! What is computed is as good as what the server sent: a proof counts once
//! [`merkle::verify_consistency`] or [`merkle::verify_inclusion`] has said so, against roots of signed
//! checkpoints.

use std::collections::BTreeMap;
use std::ops::Range;

use audit_core::tlog::leaf::{Hash, MAX_LEAF_LEN};
use audit_core::tlog::merkle;
use audit_core::tlog::tile::{Content, FULL_WIDTH, Tile, TileFault, TileReader};
use audit_core::{Error, Result, TenantId};
use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{ACCEPT, HeaderValue};

use crate::client::Client;
use crate::evidence::not_the_format;
use crate::transport::Call;

/// How many tiles a [`LogTree`] keeps, at most 8 kB each.
const KEPT_TILES: usize = 64;

/// The tree of one size of a tenant's log. It fetches the tiles that an answer needs, a few for each
/// level, and keeps at most half a megabyte of them.
#[derive(Debug)]
pub struct LogTree {
    client: Client,
    tenant: TenantId,
    size: u64,
    tiles: BTreeMap<Tile, Bytes>,
}

impl Client {
    /// A tile of a tenant's log: of hashes, or of the leaf data of entries.
    ///
    /// # Errors
    /// [`NotFound`](audit_core::ErrorKind::NotFound) when the log isn't so large;
    /// [`Pruned`](audit_core::ErrorKind::Pruned) when leaf data of the bundle is gone;
    /// [`Malformed`](audit_core::ErrorKind::Malformed) for more bytes than such a tile can have.
    pub async fn tile(&self, tenant: TenantId, tile: &Tile) -> Result<Bytes> {
        let longest = usize::from(FULL_WIDTH)
            * match tile.content() {
                Content::Hashes(_) => 32,
                Content::Entries => 2 + MAX_LEAF_LEN,
            };
        let call = Call::new(Method::GET, format!("api/v1/tlog/{tenant}/{}", tile.path())).header(
            ACCEPT,
            HeaderValue::from_static("application/octet-stream, */*"),
        );
        self.bytes(&call, longest).await
    }

    /// The tree of the first `size` entries of a tenant's log. Nothing is asked yet.
    #[must_use]
    pub fn tree(&self, tenant: TenantId, size: u64) -> LogTree {
        LogTree {
            client: self.clone(),
            tenant,
            size,
            tiles: BTreeMap::new(),
        }
    }

    /// The proof (RFC 6962 §2.1.2) that the log of `to` entries continues the one of `from`, made of the
    /// log's tiles. It says nothing by itself: [`merkle::verify_consistency`] says whether it holds for
    /// the roots of two checkpoints of these sizes. Empty when they are equal, and from 0.
    ///
    /// ```no_run
    /// use audit_client::Client;
    /// use audit_core::TenantId;
    /// use audit_core::tlog::checkpoint::Checkpoint;
    /// use audit_core::tlog::merkle::verify_consistency;
    ///
    /// # async fn example(log: Client, acme: TenantId, old: Checkpoint, new: Checkpoint)
    /// # -> Result<(), Box<dyn std::error::Error>> {
    /// let proof = log.consistency(acme, old.size(), new.size()).await?;
    /// verify_consistency(old.size(), &old.root(), new.size(), &new.root(), &proof)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Invalid`](audit_core::ErrorKind::Invalid) naming `from` when it is above `to`;
    /// [`NotFound`](audit_core::ErrorKind::NotFound) when the log isn't so large;
    /// [`Malformed`](audit_core::ErrorKind::Malformed) for what is no tile.
    pub async fn consistency(&self, tenant: TenantId, from: u64, to: u64) -> Result<Vec<Hash>> {
        self.tree(tenant, to).consistency_proof(from).await
    }
}

impl LogTree {
    /// How many entries it is of.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The root that the tiles at the tree's right edge lead to; SHA-256 of nothing at size 0.
    ///
    /// # Errors
    /// [`NotFound`](audit_core::ErrorKind::NotFound) when the log isn't so large;
    /// [`Malformed`](audit_core::ErrorKind::Malformed) for what is no tile.
    pub async fn root(&mut self) -> Result<Hash> {
        self.node(0..self.size).await
    }

    /// The hashes of the leaves that a tile of level 0 spans.
    ///
    /// # Errors
    /// As for [`root`](Self::root), and [`Invalid`](audit_core::ErrorKind::Invalid) naming `index` when
    /// the tree has no such tile.
    pub async fn leaf_hashes(&mut self, index: u64) -> Result<Vec<Hash>> {
        let tile = Tile::at(Content::Hashes(0), index, self.size)
            .ok_or_else(|| Error::field("index", "the tree has no such tile"))?;
        if !self.tiles.contains_key(&tile) {
            self.fetch(tile).await?;
        }
        let bytes = self.tiles.get(&tile).map_or(&[][..], Bytes::as_ref);
        audit_core::tlog::tile::parse_hashes(bytes, tile.width()).map_err(not_the_format)
    }

    /// The proof that the tree continues the one of `old` entries, as [`Client::consistency`].
    ///
    /// # Errors
    /// As for [`Client::consistency`].
    pub async fn consistency_proof(&mut self, old: u64) -> Result<Vec<Hash>> {
        let nodes = merkle::consistency_nodes(old, self.size)
            .ok_or_else(|| Error::field("from", format!("above the newer size, {}", self.size)))?;
        let mut hashes = Vec::with_capacity(nodes.len());
        for range in nodes {
            hashes.push(self.node(range).await?);
        }
        Ok(hashes)
    }

    /// The hash over a range of leaves that a proof asks for.
    async fn node(&mut self, range: Range<u64>) -> Result<Hash> {
        loop {
            let tiles = &self.tiles;
            let mut reader = TileReader::new(self.size, |tile| {
                let kept = tiles.get(&tile).ok_or(Unread::Missing(tile))?;
                Ok(kept.to_vec())
            });
            match reader.node(range.clone()) {
                Ok(hash) => return Ok(hash),
                Err(Unread::Missing(tile)) => self.fetch(tile).await?,
                Err(Unread::Fault(fault)) => return Err(not_the_format(fault)),
            }
        }
    }

    /// Fetches a tile and keeps it, and the upper levels, which the next answers need, when there is
    /// no more room.
    async fn fetch(&mut self, tile: Tile) -> Result<()> {
        if self.tiles.len() >= KEPT_TILES {
            self.tiles
                .retain(|kept, _| kept.content() != Content::Hashes(0));
        }
        if self.tiles.len() >= KEPT_TILES {
            self.tiles.clear();
        }
        let bytes = self.client.tile(self.tenant, &tile).await?;
        self.tiles.insert(tile, bytes);
        Ok(())
    }
}

/// Why a hash can't be told from the tiles that are kept.
enum Unread {
    Missing(Tile),
    Fault(TileFault),
}

impl From<TileFault> for Unread {
    fn from(fault: TileFault) -> Self {
        Self::Fault(fault)
    }
}
