//! How a bucket is reached.

use std::path::Path;
use std::time::Duration;

use audit_core::{Error, ErrorKind, Result};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, Checksum};
use object_store::client::{HttpConnector as _, ReqwestConnector};
use object_store::{BackoffConfig, Certificate, ClientOptions, RetryConfig};

use crate::ArchiveOptions;

/// How often a call that fails is made again, and for how long. Whoever archives tries again by itself: this
/// is for a moment's trouble.
const REPEATS: usize = 5;
const REPEATED_WITHIN: Duration = Duration::from_secs(10);
/// How long one try may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The bucket of an `s3` URL, and whether it lists its objects in order.
pub(crate) fn open(options: &ArchiveOptions) -> Result<(AmazonS3, bool)> {
    let mut client = ClientOptions::new().with_timeout(TIMEOUT);
    if let Some(file) = &options.ca_file {
        client = trusting(client, file)?;
    }
    let mut builder = AmazonS3Builder::new()
        .with_client_options(client)
        .with_retry(RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: REPEATS,
            retry_timeout: REPEATED_WITHIN,
        });
    for (name, value) in std::env::vars_os() {
        let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else {
            continue;
        };
        // The environment has variables of other programs, too.
        if let Some(key) = key(name) {
            builder = builder.with_config(key, value);
        }
    }
    for (name, value) in &options.variables {
        let key = key(name);
        let key = key.ok_or_else(|| Error::field("variable", "is none that S3 is reached by"))?;
        builder = builder.with_config(key, value);
    }
    // A directory bucket has an order of its own.
    let is_directory = builder.get_config_value(&AmazonS3ConfigKey::S3Express);
    let in_order = is_directory.is_none_or(|value| value == "false");
    let store = builder
        .with_bucket_name(options.url.host_str().unwrap_or_default())
        .with_checksum_algorithm(Checksum::SHA256)
        // Objects go one by one, and not every server of the protocol knows how to delete many.
        .with_disable_bulk_delete(true)
        .build()
        .map_err(|e| Error::new(ErrorKind::Invalid, "S3 can't be used so").with_source(e))?;
    Ok((store, in_order))
}

/// What a variable is to S3, if it is anything.
fn key(name: &str) -> Option<AmazonS3ConfigKey> {
    name.strip_prefix("AWS_")?;
    name.to_ascii_lowercase().parse().ok()
}

/// A client that trusts the authorities of this file besides the system's.
fn trusting(mut client: ClientOptions, file: &Path) -> Result<ClientOptions> {
    let refused = |what: &str| {
        let message = format!("the certificates in {} {what}", file.display());
        Error::new(ErrorKind::Refused, message)
    };
    let pem = std::fs::read(file).map_err(|e| refused("can't be read").with_source(e))?;
    let found = Certificate::from_pem_bundle(&pem);
    let found = found.map_err(|e| refused("are not PEM").with_source(e))?;
    if found.is_empty() {
        return Err(refused("are none"));
    }
    for authority in found {
        client = client.with_root_certificate(authority);
    }
    // What is within the PEM only a connector looks at.
    let connected = ReqwestConnector::default().connect(&client);
    connected.map_err(|e| refused("can't be used").with_source(e))?;
    Ok(client)
}
