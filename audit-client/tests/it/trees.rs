//! Trees computed from the tiles of a server.

use audit_client::Client;
use audit_core::tlog::leaf::{Hash, leaf_hash};
use audit_core::tlog::merkle::{self, subtree_root, verify_consistency};
use audit_core::tlog::tile::{Content, FULL_WIDTH, Tile, encode_hashes};
use audit_core::{ErrorKind, TenantId};
use wiremock::matchers::method;
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate};

use crate::{TENANT, client};

/// Serves the tiles of hashes of a log.
struct Tiles(Vec<Hash>);

impl Respond for Tiles {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        let prefix = format!("/api/v1/tlog/{TENANT}/");
        let path = request.url.path().strip_prefix(&prefix).unwrap();
        let Ok(tile) = Tile::parse(path) else {
            return ResponseTemplate::new(404);
        };
        let Content::Hashes(level) = tile.content() else {
            return ResponseTemplate::new(410);
        };
        let leaves = tile.leaves();
        let Some(leaves) = self.0.get(leaves.start as usize..leaves.end as usize) else {
            return ResponseTemplate::new(404);
        };
        let run = usize::from(FULL_WIDTH).pow(level.into());
        let hashes: Vec<_> = leaves.chunks(run).map(subtree_root).collect();
        ResponseTemplate::new(200).set_body_bytes(encode_hashes(&hashes))
    }
}

async fn serving(answer: impl Respond + 'static) -> (MockServer, Client, TenantId) {
    let server = MockServer::start().await;
    Mock::given(method("GET"))
        .respond_with(answer)
        .mount(&server)
        .await;
    let client = client(&server.uri());
    (server, client, TENANT.parse().unwrap())
}

fn leaves(count: u64) -> Vec<Hash> {
    (0..count).map(|n| leaf_hash(&n.to_be_bytes())).collect()
}

#[tokio::test]
async fn consistency_between_two_sizes_comes_from_tiles_of_all_levels() {
    let leaves = leaves(66_000);
    let root = |size: u64| merkle::root(&leaves[..size as usize]);
    let (_server, client, tenant) = serving(Tiles(leaves.clone())).await;
    for (old, new) in [
        (0, 1),
        (1, 1),
        (1, 255),
        (255, 257),
        (256, 512),
        (300, 65_536),
        (65_535, 66_000),
        (65_600, 66_000),
    ] {
        let proof = client.consistency(tenant, old, new).await.unwrap();
        verify_consistency(old, &root(old), new, &root(new), &proof)
            .unwrap_or_else(|fault| panic!("{old} to {new}: {fault}"));
    }
    let mut tree = client.tree(tenant, 66_000);
    assert_eq!(tree.root().await.unwrap(), root(66_000));
    assert_eq!(tree.leaf_hashes(257).await.unwrap(), leaves[65_792..]);
}

#[tokio::test]
async fn sizes_that_there_are_no_proofs_for_are_refused() {
    let (_server, client, tenant) = serving(Tiles(leaves(10))).await;
    let above = client.consistency(tenant, 5, 4).await.unwrap_err();
    assert_eq!(above.fields()[0].field, "from");
    let beyond = client.consistency(tenant, 5, 11).await.unwrap_err();
    assert_eq!(beyond.kind(), ErrorKind::NotFound);
    let bundle = Tile::at(Content::Entries, 0, 10).unwrap();
    let pruned = client.tile(tenant, &bundle).await.unwrap_err();
    assert_eq!(pruned.kind(), ErrorKind::Pruned);
}

#[tokio::test]
async fn what_is_no_tile_is_malformed_however_long_it_is() {
    for length in [0, 31, 33, 1 << 20] {
        let answer = ResponseTemplate::new(200).set_body_bytes(vec![0; length]);
        let (_server, client, tenant) = serving(answer).await;
        let error = client.consistency(tenant, 1, 2).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Malformed, "{length}");
    }
}
