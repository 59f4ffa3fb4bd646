//! A guard in a bucket, on a real server of the protocol.

use audit_archive::{ObjectGuard, ObjectOptions};
use audit_conformance::GuardHarness;
use audit_core::{
    Clock as _, ErrorKind, Guard as _, GuardAdvance, GuardedHead, Hash, SystemClock, TenantId,
};

use crate::s3::{endpoint, make_bucket, new_name, options};

struct Bucket {
    name: String,
    guard: ObjectGuard,
}

fn open(bucket: &str) -> ObjectGuard {
    ObjectGuard::open_with(&options(bucket, "guards/of.here", &endpoint())).unwrap()
}

impl GuardHarness for Bucket {
    type Guard = ObjectGuard;

    async fn open() -> Self {
        let name = new_name();
        make_bucket(&name).await;
        let guard = open(&name);
        Self { name, guard }
    }

    fn guard(&self) -> &ObjectGuard {
        &self.guard
    }

    async fn reopen(self) -> Self {
        let guard = open(&self.name);
        Self { guard, ..self }
    }
}

/// All but those with several writers at once, which the module's own tests run: the server of the tests
/// compares and writes in two steps, which Amazon S3 doesn't.
mod conformance {
    use super::Bucket;
    use audit_conformance::{guard, run};

    #[test]
    fn what_a_guard_was_told_it_remembers() {
        run(guard::what_a_guard_was_told_it_remembers::<Bucket>());
    }

    #[test]
    fn a_guard_lists_the_tenants_that_it_knows() {
        run(guard::a_guard_lists_the_tenants_that_it_knows::<Bucket>());
    }

    #[test]
    fn a_guard_never_goes_back() {
        run(guard::a_guard_never_goes_back::<Bucket>());
    }

    #[test]
    fn what_a_guard_knows_already_changes_nothing() {
        run(guard::what_a_guard_knows_already_changes_nothing::<Bucket>());
    }

    #[test]
    fn a_guard_remembers_the_deployment_log_by_the_same_rules() {
        run(guard::a_guard_remembers_the_deployment_log_by_the_same_rules::<Bucket>());
    }
}

fn head(size: u64) -> GuardedHead {
    let root = Hash([size as u8; 32]);
    GuardedHead {
        epoch: 1,
        size,
        root,
    }
}

#[tokio::test]
async fn another_process_on_the_bucket_knows_the_same_and_one_that_is_behind_is_refused() {
    let name = new_name();
    make_bucket(&name).await;
    let (one, two) = (open(&name), open(&name));
    let tenant = TenantId::new(SystemClock.event_id().into_uuid());
    one.advance(tenant, &GuardAdvance::plain(None, head(10)))
        .await
        .unwrap();
    assert_eq!(two.head(tenant).await.unwrap(), Some(head(10)));
    two.advance(tenant, &GuardAdvance::plain(Some(head(10)), head(20)))
        .await
        .unwrap();
    let behind = GuardAdvance::plain(Some(head(10)), head(30));
    let refused = one.advance(tenant, &behind).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused);
    assert_eq!(one.head(tenant).await.unwrap(), Some(head(20)));
    assert!(one.place().starts_with("s3://"), "{}", one.place());
}

/// A log that was signed would be stopped for it, and one that wasn't would go on.
#[tokio::test]
async fn a_missing_bucket_is_no_guard_that_knows_nothing() {
    let guard = open(&new_name());
    let tenant = TenantId::new(SystemClock.event_id().into_uuid());
    let advance = GuardAdvance::plain(None, head(1));
    for error in [
        guard.head(tenant).await.unwrap_err(),
        guard.erasures(tenant, 0, 1).await.unwrap_err(),
        guard.tenants(None, 1).await.unwrap_err(),
        guard.deployment_head().await.unwrap_err(),
        guard.advance(tenant, &advance).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    }
}

#[test]
fn a_folder_is_no_bucket() {
    let folder = ObjectOptions::new("file:///tmp/guard").unwrap();
    let refused = ObjectGuard::open_with(&folder).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
}
