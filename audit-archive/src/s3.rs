//! How a bucket is reached.

use std::path::Path;
use std::time::Duration;

use audit_core::{Error, ErrorKind, Result};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, Checksum};
use object_store::client::{HttpConnector as _, ReqwestConnector};
use object_store::{BackoffConfig, Certificate, ClientOptions, RetryConfig};

use crate::ObjectOptions;

/// How often a call that fails is made again, and for how long. Whoever archives tries again by itself: this
/// is for a moment's trouble.
const REPEATS: usize = 5;
const REPEATED_WITHIN: Duration = Duration::from_secs(10);
/// How long one try may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The variables that say how a bucket is reached. Whatever else begins with `AWS_`, in the environment that
/// other programs share, changes nothing.
const VARIABLES: [&str; 17] = [
    // Who signs the requests.
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_ENDPOINT_URL_STS",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    // Where the bucket is.
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ALLOW_HTTP",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
    // What kind of bucket it is.
    "AWS_S3_EXPRESS",
];

/// The bucket of an `s3` URL, and whether it lists its objects in order.
pub(crate) fn open(options: &ObjectOptions) -> Result<(AmazonS3, bool)> {
    let mut client = ClientOptions::new().with_timeout(TIMEOUT);
    if let Some(file) = &options.ca_file {
        client = trusting(client, file)?;
    }
    let builder = AmazonS3Builder::new()
        .with_client_options(client)
        .with_retry(RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: REPEATS,
            retry_timeout: REPEATED_WITHIN,
        });
    let environment = |name: &str| std::env::var(name).ok();
    let builder = reached_by(builder, environment, &options.variables)?;
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

/// Takes what says how the bucket is reached from an environment, and then from what is named in its place.
fn reached_by(
    mut builder: AmazonS3Builder,
    environment: impl Fn(&str) -> Option<String>,
    variables: &[(String, String)],
) -> Result<AmazonS3Builder> {
    for name in VARIABLES {
        if let (Some(key), Some(value)) = (key(name), environment(name)) {
            builder = builder.with_config(key, value);
        }
    }
    for (name, value) in variables {
        let key = key(name);
        let key = key.ok_or_else(|| Error::field("variable", "is none that S3 is reached by"))?;
        builder = builder.with_config(key, value);
    }
    Ok(builder)
}

/// What a variable is to S3, if it is one that is read.
fn key(name: &str) -> Option<AmazonS3ConfigKey> {
    let name = VARIABLES.iter().find(|one| **one == name)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Those that another program is told by, or that would take away what keeps an archive safe.
    const OTHERS: [&str; 12] = [
        "AWS_PROFILE",
        "AWS_BUCKET",
        "AWS_ENDPOINT",
        "AWS_TOKEN",
        "AWS_SKIP_SIGNATURE",
        "AWS_UNSIGNED_PAYLOAD",
        "AWS_CHECKSUM_ALGORITHM",
        "AWS_ALLOW_INVALID_CERTIFICATES",
        "AWS_PROXY_URL",
        "AWS_TIMEOUT",
        "AWS_METADATA_ENDPOINT",
        "AWS_SSE_CUSTOMER_KEY_BASE64",
    ];

    #[test]
    fn of_the_environment_only_the_documented_variables_are_read() {
        let environment = |name: &str| {
            assert!(!OTHERS.contains(&name), "{name}");
            Some(format!("{name} of the environment"))
        };
        let named = [("AWS_REGION".to_owned(), "eu-central-1".to_owned())];
        let builder = reached_by(AmazonS3Builder::new(), environment, &named).unwrap();
        let value = |name: &str| {
            let key: AmazonS3ConfigKey = name.to_ascii_lowercase().parse().unwrap();
            builder.get_config_value(&key)
        };
        for name in VARIABLES {
            let expected = match name {
                "AWS_REGION" => "eu-central-1".to_owned(),
                // The region is known without it.
                "AWS_DEFAULT_REGION" => continue,
                _ => format!("{name} of the environment"),
            };
            assert_eq!(value(name), Some(expected), "{name}");
        }
        for name in OTHERS {
            let named = [(name.to_owned(), "true".to_owned())];
            let refused = reached_by(AmazonS3Builder::new(), |_| None, &named);
            assert!(refused.is_err(), "{name}");
        }
    }
}
