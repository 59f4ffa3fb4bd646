//! `/tlog/{tenant_id}/…`, `/tlog-deployment/…` and `GET /logs/{id}/proof`: what other people's tools
//! verify.

use std::sync::Arc;

use audit_core::tlog::tile::{Content, FULL_WIDTH, Tile};
use audit_core::{Permission, TenantId, TiledLog};
use poem::http::HeaderValue;
use poem::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use poem::{IntoResponse, Response};
use poem_openapi::param::Path;
use poem_openapi::payload::Payload;
use poem_openapi::registry::{MetaSchema, MetaSchemaRef};
use poem_openapi::{ApiResponse, OpenApi};

use crate::api::PathId;
use crate::api::filter::MAX_SEQ;
use crate::api::schema::Tag;
use crate::app::App;
use crate::auth::{Caller, Visitor};
use crate::problem::{Problem, ProblemKind, Reading, Refused};
use crate::query::{Parameter, Parameters, Params, Reader};

/// Checkpoints, tiles and proofs.
pub(crate) struct Tlog(pub(crate) Arc<App>);

/// What never changes may be kept for ever.
const FOREVER: &str = "private, max-age=31536000, immutable";
/// The same of a public log, in caches that several share.
const EVERYONE_FOREVER: &str = "public, max-age=31536000, immutable";
/// What never changes, and may be gone one day.
const A_DAY: &str = "private, max-age=86400, immutable";
/// The same of a public log, in caches that several share.
const EVERYONE_A_DAY: &str = "public, max-age=86400, immutable";
/// What a later answer replaces.
const NEVER: &str = "no-store";

/// Text as a standard of its own defines it.
pub(crate) struct Text {
    text: String,
    cache: &'static str,
}

impl Payload for Text {
    const CONTENT_TYPE: &'static str = "text/plain; charset=utf-8";

    fn schema_ref() -> MetaSchemaRef {
        MetaSchemaRef::Inline(Box::new(MetaSchema::new("string")))
    }
}

impl IntoResponse for Text {
    fn into_response(self) -> Response {
        served(self.text.into_bytes(), Self::CONTENT_TYPE, self.cache)
    }
}

/// A tile's bytes.
pub(crate) struct Bytes {
    bytes: Vec<u8>,
    cache: &'static str,
}

impl Payload for Bytes {
    const CONTENT_TYPE: &'static str = "application/octet-stream";

    fn schema_ref() -> MetaSchemaRef {
        MetaSchemaRef::Inline(Box::new(MetaSchema::new_with_format("string", "binary")))
    }
}

impl IntoResponse for Bytes {
    fn into_response(self) -> Response {
        served(self.bytes, Self::CONTENT_TYPE, self.cache)
    }
}

fn served(bytes: Vec<u8>, content_type: &'static str, cache: &'static str) -> Response {
    let mut response = Response::builder().body(bytes);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(cache));
    response
}

#[derive(ApiResponse)]
pub(crate) enum TextAnswer {
    /// The text.
    #[oai(status = 200)]
    Text(Text),
}

#[derive(ApiResponse)]
pub(crate) enum TileAnswer {
    /// The tile.
    #[oai(status = 200)]
    Tile(Bytes),
}

/// Which checkpoint is asked for.
#[derive(Debug)]
pub(crate) struct Asked {
    covers: Option<u64>,
}

impl Parameters for Asked {
    fn list() -> Vec<Parameter> {
        vec![Parameter::number(
            "covers",
            1,
            None,
            "Not the newest, but the smallest that was kept and covers so many entries. For the `seq` of a \
             `key` entry and one more, both keys sign it.",
        )]
    }

    fn read(reader: &mut Reader<'_>) -> Self {
        Self {
            covers: reader.number("covers", 1..=MAX_SEQ),
        }
    }
}

fn no_tile() -> Problem {
    Problem::new(ProblemKind::NotFound, "the log has no such tile")
}

#[OpenApi(prefix_path = "/api/v1")]
impl Tlog {
    async fn enter(&self, visitor: &Visitor, tenant: &PathId) -> Result<TiledLog, Problem> {
        let tenant: TenantId = tenant.parse_as("tenant_id")?;
        self.0.gate.enter_tiles(visitor, tenant).await
    }

    /// Prove that an entry is in the log
    ///
    /// Needs `read`. A C2SP tlog-proof: the entry's position, the hashes from its leaf to the root,
    /// and the signed checkpoint with that root. The leaf is the entry's `leaf_hash`. The answer
    /// waits for a checkpoint that covers the entry, which takes about a second after it was recorded;
    /// 503 when none came within five.
    #[oai(
        path = "/logs/:id/proof",
        method = "get",
        operation_id = "proof",
        tag = "Tag::Evidence"
    )]
    async fn proof(
        &self,
        caller: Caller,
        /// The entry's id.
        id: Path<PathId>,
    ) -> Result<TextAnswer, Refused<Reading>> {
        let id = id.0.parse()?;
        let log = self.0.gate.enter(&caller, Permission::Read, &[]).await?;
        let text = log.proof(id).await?.encode();
        Ok(TextAnswer::Text(Text { text, cache: NEVER }))
    }

    /// Read the newest checkpoint
    ///
    /// Needs `read`, or no credential where the tenant's log is public. A C2SP tlog-checkpoint in a
    /// signed note: the log's origin, its size and root, and the signature of its key. It is made within
    /// about a second after the log has grown.
    #[oai(
        path = "/tlog/:tenant_id/checkpoint",
        method = "get",
        operation_id = "checkpoint",
        tag = "Tag::Evidence"
    )]
    async fn checkpoint(
        &self,
        visitor: Visitor,
        /// Whose log.
        tenant_id: Path<PathId>,
        asked: Params<Asked>,
    ) -> Result<TextAnswer, Refused<Reading>> {
        let log = self.enter(&visitor, &tenant_id.0).await?;
        let found = match asked.0.covers {
            None => log.checkpoint().await?,
            Some(size) => log.checkpoint_covering(size).await?,
        };
        let checkpoint = found
            .ok_or_else(|| Problem::new(ProblemKind::NotFound, "the log has no checkpoint yet"))?;
        Ok(TextAnswer::Text(Text {
            text: checkpoint.note,
            cache: NEVER,
        }))
    }

    /// Read the key that verifies checkpoints
    ///
    /// Needs `read`, or no credential where the tenant's log is public. A C2SP verifier key (`vkey`), one
    /// line. An auditor who has it from here trusts this server for it: compare it with one that was
    /// handed over before.
    #[oai(
        path = "/tlog/:tenant_id/key",
        method = "get",
        operation_id = "checkpoint_key",
        tag = "Tag::Evidence"
    )]
    async fn key(
        &self,
        visitor: Visitor,
        /// Whose log.
        tenant_id: Path<PathId>,
    ) -> Result<TextAnswer, Refused<Reading>> {
        let log = self.enter(&visitor, &tenant_id.0).await?;
        let text = format!("{}\n", log.verifying_key().await?.encode());
        Ok(TextAnswer::Text(Text { text, cache: NEVER }))
    }

    /// Read a tile
    ///
    /// Needs `read`, or no credential where the tenant's log is public. As C2SP tlog-tiles lays them out:
    /// `tile/<L>/<N>[.p/<W>]` has hashes, `tile/entries/<N>[.p/<W>]` the leaf data of entries, which shows
    /// nothing that can be erased. A tile never changes. Leaf data of a bundle that was pruned is gone (410), its hashes stay.
    #[oai(
        path = "/tlog/:tenant_id/tile/:tile",
        method = "get",
        operation_id = "tile",
        tag = "Tag::Evidence"
    )]
    async fn tile(
        &self,
        visitor: Visitor,
        /// Whose log.
        tenant_id: Path<PathId>,
        /// The rest of the tile's path, with its slashes: `0/x001/067`, `entries/000.p/17`.
        tile: Path<String>,
    ) -> Result<TileAnswer, Refused<Reading>> {
        let log = self.enter(&visitor, &tenant_id.0).await?;
        let tile = Tile::parse(&format!("tile/{}", tile.0)).map_err(|_| no_tile())?;
        let bytes = log.tile(&tile).await?;
        // A prune takes leaf data away, and caches know nothing of it; hashes stay as they are. A bundle
        // that grows is fetched by few, and again when it is full.
        let is_open = visitor.0.is_none();
        let cache = match tile.content() {
            Content::Hashes(_) if is_open => EVERYONE_FOREVER,
            Content::Hashes(_) => FOREVER,
            Content::Entries if tile.width() < FULL_WIDTH => NEVER,
            Content::Entries if is_open => EVERYONE_A_DAY,
            Content::Entries => A_DAY,
        };
        Ok(TileAnswer::Tile(Bytes { bytes, cache }))
    }

    /// Prove that the log's head is in the deployment log
    ///
    /// Needs `read`. One log commits to the heads of all tenants' logs, and witnesses cosign its head
    /// once an hour. The answer is a C2SP tlog-proof of the leaf of this tenant's newest head that it
    /// commits to, under its newest checkpoint with the cosignatures that it has. The proof's extra data
    /// is the JSON that opens the leaf: salt, tenant, size and root. 503 while no head of this log is in
    /// it: the next one is an hour after the log has grown at the latest.
    #[oai(
        path = "/tlog/:tenant_id/deployment",
        method = "get",
        operation_id = "head_proof",
        tag = "Tag::Evidence"
    )]
    async fn head_proof(
        &self,
        caller: Caller,
        /// Whose log.
        tenant_id: Path<PathId>,
    ) -> Result<TextAnswer, Refused<Reading>> {
        let tenant: TenantId = tenant_id.0.parse_as("tenant_id")?;
        let gate = &self.0.gate;
        let log = gate.enter_path(&caller, tenant, Permission::Read).await?;
        let text = log.head_proof().await?.encode();
        Ok(TextAnswer::Text(Text { text, cache: NEVER }))
    }

    /// Read the deployment log's newest checkpoint
    ///
    /// Needs `read`, in any tenant. A C2SP tlog-checkpoint in a signed note, with the cosignatures of
    /// witnesses. The log's leaves are salted commitments: who reads it learns how many heads were
    /// committed to, and nothing of whose they are.
    #[oai(
        path = "/tlog-deployment/checkpoint",
        method = "get",
        operation_id = "deployment_checkpoint",
        tag = "Tag::Evidence"
    )]
    async fn deployment_checkpoint(&self, caller: Caller) -> Result<TextAnswer, Refused<Reading>> {
        let log = self.0.gate.enter(&caller, Permission::Read, &[]).await?;
        let checkpoint = log.deployment_checkpoint().await?.ok_or_else(|| {
            Problem::new(
                ProblemKind::NotFound,
                "the deployment log has no checkpoint yet",
            )
        })?;
        Ok(TextAnswer::Text(Text {
            text: checkpoint.note,
            cache: NEVER,
        }))
    }

    /// Read the key that verifies the deployment log's checkpoints
    ///
    /// Needs `read`, in any tenant. A C2SP verifier key (`vkey`), one line. After a restore its name may
    /// be another.
    #[oai(
        path = "/tlog-deployment/key",
        method = "get",
        operation_id = "deployment_key",
        tag = "Tag::Evidence"
    )]
    async fn deployment_key(&self, caller: Caller) -> Result<TextAnswer, Refused<Reading>> {
        let log = self.0.gate.enter(&caller, Permission::Read, &[]).await?;
        let text = format!("{}\n", log.deployment_key().await?.encode());
        Ok(TextAnswer::Text(Text { text, cache: NEVER }))
    }

    /// Read a tile of the deployment log
    ///
    /// Needs `read`, in any tenant. As C2SP tlog-tiles lays them out, of hashes or of leaf data. A tile
    /// never changes.
    #[oai(
        path = "/tlog-deployment/tile/:tile",
        method = "get",
        operation_id = "deployment_tile",
        tag = "Tag::Evidence"
    )]
    async fn deployment_tile(
        &self,
        caller: Caller,
        /// The rest of the tile's path, with its slashes: `0/x001/067`, `entries/000.p/17`.
        tile: Path<String>,
    ) -> Result<TileAnswer, Refused<Reading>> {
        let log = self.0.gate.enter(&caller, Permission::Read, &[]).await?;
        let tile = Tile::parse(&format!("tile/{}", tile.0)).map_err(|_| no_tile())?;
        let bytes = log.deployment_tile(&tile).await?;
        Ok(TileAnswer::Tile(Bytes {
            bytes,
            cache: FOREVER,
        }))
    }
}
