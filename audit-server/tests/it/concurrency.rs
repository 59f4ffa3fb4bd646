//! Many clients at once.

use audit_core::Role;
use futures_util::future::join_all;

use crate::service::{Service, event, send, token};

#[tokio::test(flavor = "multi_thread")]
async fn of_64_clients_with_the_same_id_one_stores_and_63_repeat() {
    let service = Service::start().await;
    let tenant = service.tenant("t").await;
    let token = token(Role::Writer, tenant);
    let id = "0190a000-0000-7000-8000-0000000000aa";
    let body = format!(
        r#"{{"id":"{id}","action_type":"VIEW","resource_type":"doc","resource_id":"same"}}"#
    );
    let answers =
        join_all((0..64).map(|_| send(service.post("/api/v1/logs", &token, body.clone())))).await;
    let with = |status: u16| answers.iter().filter(|a| a.status == status).count();
    assert_eq!((with(201), with(200)), (1, 63));
    assert_eq!(service.head(tenant).await.size(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_neighbours_and_clients_that_hang_up_cost_nobody_an_event() {
    let service = Service::start().await;
    let tenant = service.tenant("t").await;
    let token = token(Role::Writer, tenant);
    let id = "0190a000-0000-7000-8000-0000000000bb";
    let taken = format!(
        r#"{{"id":"{id}","action_type":"VIEW","resource_type":"doc","resource_id":"taken"}}"#
    );
    send(service.post("/api/v1/logs", &token, taken.clone()))
        .await
        .expect(201);
    let conflict = taken.replace("taken", "other");
    let requests = (0..200).map(|n| {
        let (service, token, conflict) = (&service, &token, conflict.clone());
        async move {
            match n % 4 {
                0 => {
                    send(service.post("/api/v1/logs", token, conflict))
                        .await
                        .expect(409);
                }
                1 => {
                    // Hangs up at once, or while the commit is on its way.
                    let request = service.post("/api/v1/logs", token, event("gone")).send();
                    let patience = std::time::Duration::from_micros(n * 20);
                    tokio::time::timeout(patience, request).await.ok();
                }
                _ => {
                    let resource = format!("kept-{n}");
                    send(service.post("/api/v1/logs", token, event(&resource)))
                        .await
                        .expect(201);
                }
            }
        }
    });
    join_all(requests).await;
    let reader = crate::service::token(Role::Auditor, tenant);
    for n in (0..200).filter(|n| n % 4 > 1) {
        let path = format!("/api/v1/logs?resource_id=kept-{n}");
        let page = send(service.get(&path, &reader)).await.expect(200).json();
        assert_eq!(page["data"].as_array().unwrap().len(), 1, "kept-{n}");
    }
}
