//! Metrics, in Prometheus' text format. None has a tenant in its labels: their number is bounded.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use audit_core::{ArchiveStatus, QueueDepth, WorkerStatus};
use metrics::{
    SharedString, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use poem::Response;
use poem::http::{Method, StatusCode};

/// The recorder is the process's; servers in one process share it.
static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Bounds of the buckets of durations, in seconds.
const SECONDS: [f64; 12] = [
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
];

/// Installs the recorder. None when the process has another one already.
pub(crate) fn install() -> Option<PrometheusHandle> {
    HANDLE
        .get_or_init(|| {
            let builder = PrometheusBuilder::new()
                .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)
                .ok()?;
            match builder.install_recorder() {
                Ok(handle) => {
                    describe();
                    Some(handle)
                }
                Err(error) => {
                    tracing::warn!(%error, "metrics are not recorded");
                    None
                }
            }
        })
        .clone()
}

fn describe() {
    describe_counter!(
        "audit_http_requests_total",
        "Requests by method, route and status."
    );
    describe_histogram!(
        "audit_http_request_duration_seconds",
        "Until the head of the response."
    );
    describe_counter!(
        "audit_http_rate_limited_total",
        "Requests that a limit refused."
    );
    describe_counter!(
        "audit_events_recorded_total",
        "New entries that were acknowledged."
    );
    describe_counter!(
        "audit_events_accepted_total",
        "Events that were put into the queue."
    );
    describe_gauge!("audit_streams_open", "Open streams.");
    describe_counter!(
        "audit_streams_closed_total",
        "Streams that the server closed, by reason."
    );
    describe_gauge!("audit_worker_up", "1 while the worker runs.");
    describe_gauge!(
        "audit_worker_lag",
        "Entries or messages that the worker is behind."
    );
    describe_gauge!(
        "audit_worker_dropped",
        "Messages that this log had not written."
    );
    describe_gauge!(
        "audit_index_difference",
        "Entries that the search index lacks, or has too many of, as the reconciler last saw them."
    );
    describe_counter!(
        "audit_index_losses_total",
        "How often the search index had lost what the indexer had given it."
    );
    describe_counter!(
        "audit_index_repaired_total",
        "Entries of the search index that the reconciler put right."
    );
    describe_counter!(
        "audit_retention_pruned_total",
        "Entries that were pruned because their tenant keeps them no longer."
    );
    describe_counter!(
        "audit_retention_erased_total",
        "Entries that lost groups because their tenant keeps those no longer."
    );
    describe_gauge!(
        "audit_retention_held",
        "Tenants whose retention is not applied because a legal hold is open."
    );
    describe_counter!(
        "audit_offboarding_unappended_total",
        "Accepted events that were never appended and went with a deleted tenant."
    );
    describe_gauge!(
        "audit_deployment_leaves",
        "Leaves of the deployment log that its newest checkpoint covers, as the signer sees it."
    );
    describe_gauge!(
        "audit_deployment_signed_timestamp_seconds",
        "When the deployment log's newest checkpoint was signed."
    );
    describe_gauge!(
        "audit_witness_cosigned_timestamp_seconds",
        "The time of a witness's cosignature of the newest checkpoint; 0 while it has none."
    );
    describe_gauge!(
        "audit_witness_failing",
        "1 while a witness has not cosigned since the newest checkpoint was signed."
    );
    describe_gauge!(
        "audit_witness_refuses",
        "1 while a witness answers that it won't cosign."
    );
    describe_counter!(
        "audit_archive_segments_total",
        "Segments that were archived, read back and verified."
    );
    describe_counter!("audit_archive_entries_total", "Entries in these segments.");
    describe_counter!("audit_archive_bytes_total", "Bytes of these segments.");
    describe_counter!(
        "audit_archive_failures_total",
        "Prunes that were given up because archiving failed."
    );
    describe_counter!(
        "audit_archive_renewed_total",
        "Segments that were written anew, without what was erased."
    );
    describe_gauge!(
        "audit_guard_stopped",
        "Logs that take nothing and are not signed, because the guard knows more than they hold; the \
         deployment log, where it is only not signed, counts as one."
    );
    describe_gauge!("audit_queue_messages", "Messages in the queue by state.");
}

/// Counts a request.
pub(crate) fn request(method: &Method, route: Arc<str>, status: StatusCode, elapsed: Duration) {
    // A method is the client's to choose: unknown ones share a label.
    let method = match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    };
    let route = SharedString::from_shared(route);
    let status = match status.as_u16() {
        200 => "200".into(),
        201 => "201".into(),
        _ => SharedString::from_owned(status.as_str().to_owned()),
    };
    counter!("audit_http_requests_total", "method" => method, "route" => route.clone(), "status" => status)
        .increment(1);
    histogram!("audit_http_request_duration_seconds", "method" => method, "route" => route)
        .record(elapsed.as_secs_f64());
}

/// Sets the gauges of the workers.
#[allow(clippy::cast_precision_loss)] // gauges are floats
pub(crate) fn workers(statuses: &[WorkerStatus]) {
    for status in statuses {
        let name = status.name.clone();
        gauge!("audit_worker_up", "worker" => name.clone())
            .set(f64::from(u8::from(status.running)));
        gauge!("audit_worker_dropped", "worker" => name.clone()).set(status.dropped as f64);
        if let Some(difference) = status.difference {
            gauge!("audit_index_difference").set(difference as f64);
            counter!("audit_index_repaired_total").absolute(status.repaired);
        }
        if let Some(losses) = status.losses {
            counter!("audit_index_losses_total").absolute(losses);
        }
        if let Some(retention) = &status.retention {
            counter!("audit_retention_pruned_total").absolute(retention.pruned);
            counter!("audit_retention_erased_total").absolute(retention.erased);
            gauge!("audit_retention_held").set(retention.held as f64);
        }
        if let Some(offboarding) = &status.offboarding {
            counter!("audit_offboarding_unappended_total").absolute(offboarding.unappended);
        }
        if let Some(deployment) = &status.deployment {
            gauge!("audit_deployment_leaves").set(deployment.size as f64);
            if let Some(signed_at) = deployment.signed_at {
                gauge!("audit_deployment_signed_timestamp_seconds")
                    .set(signed_at.as_micros() as f64 / 1e6);
            }
            for witness in &deployment.witnesses {
                let name = witness.name.clone();
                gauge!("audit_witness_cosigned_timestamp_seconds", "witness" => name.clone())
                    .set(witness.cosigned_at.unwrap_or(0) as f64);
                gauge!("audit_witness_failing", "witness" => name.clone())
                    .set(f64::from(u8::from(witness.last_error.is_some())));
                gauge!("audit_witness_refuses", "witness" => name)
                    .set(f64::from(u8::from(witness.refuses)));
            }
        }
        if let Some(lag) = status.lag {
            gauge!("audit_worker_lag", "worker" => name).set(lag as f64);
        }
    }
}

/// Sets the counters of the archive.
pub(crate) fn archive(status: ArchiveStatus) {
    counter!("audit_archive_segments_total").absolute(status.segments);
    counter!("audit_archive_entries_total").absolute(status.entries);
    counter!("audit_archive_bytes_total").absolute(status.bytes);
    counter!("audit_archive_failures_total").absolute(status.failures);
    counter!("audit_archive_renewed_total").absolute(status.renewed);
}

/// Sets the gauge of the guard.
#[allow(clippy::cast_precision_loss)] // gauges are floats
pub(crate) fn guard(stopped: usize) {
    gauge!("audit_guard_stopped").set(stopped as f64);
}

/// Sets the gauges of the queue.
#[allow(clippy::cast_precision_loss)] // gauges are floats
pub(crate) fn queue(depth: QueueDepth) {
    for (state, count) in [
        ("waiting", depth.waiting),
        ("leased", depth.leased),
        ("dead", depth.dead),
    ] {
        gauge!("audit_queue_messages", "state" => state).set(count as f64);
    }
}

/// Lets the recorder drop what it has rendered; without it, histograms grow until they are asked for.
pub(crate) fn upkeep() {
    if let Some(Some(handle)) = HANDLE.get() {
        handle.run_upkeep();
    }
}

/// The page that Prometheus asks for.
pub(crate) fn page(handle: &PrometheusHandle) -> Response {
    Response::builder()
        .content_type("text/plain; version=0.0.4")
        .body(handle.render())
}
