//! Which server, and as whom.

use std::path::{Path, PathBuf};
use std::time::Duration;

use audit_client::{Client, Retry};
use audit_core::ErrorKind;

use crate::args::Connection;
use crate::failure::Failure;

/// Where a server that is started in the same folder keeps its first token.
pub(crate) const DEFAULT_TOKEN: &str = "audit-data/token";

/// The client that the arguments and the environment name.
pub(crate) fn client(connection: &Connection, patience: u64) -> Result<Client, Failure> {
    let mut builder = Client::builder(connection.url.clone());
    if let Some(token) = token(connection)? {
        builder = builder.token(token);
    }
    if let Some(tenant) = connection.tenant {
        builder = builder.tenant(tenant);
    }
    let patience = Duration::from_secs(connection.patience.unwrap_or(patience));
    // The deadline alone decides: with the waits between them, so many attempts take hours.
    let retry = Retry::default().attempts(10_000).deadline(patience);
    builder
        .retry(retry)
        .build()
        .map_err(|e| Failure::Usage(e.to_string()))
}

/// What a refusal means to whoever named no credential.
pub(crate) fn explain(connection: &Connection, failure: Failure) -> Failure {
    let refused = match &failure {
        Failure::Log(error) | Failure::Halted(_, error) => error.kind() == ErrorKind::Forbidden,
        _ => false,
    };
    match token(connection) {
        Ok(None) if refused => Failure::NoCredential(connection.url.clone()),
        _ => failure,
    }
}

fn token(connection: &Connection) -> Result<Option<String>, Failure> {
    if let Some(path) = &connection.token_file {
        return read(path).map(Some);
    }
    // A variable that is set to nothing is as if it weren't.
    if let Some(token) = connection
        .token
        .as_ref()
        .filter(|token| !token.0.is_empty())
    {
        return Ok(Some(token.0.clone()));
    }
    let default = PathBuf::from(DEFAULT_TOKEN);
    if default.is_file() {
        read(&default).map(Some)
    } else {
        Ok(None)
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        Failure::Local(
            format!("the token file {} can't be read", path.display()),
            e,
        )
    })?;
    match text.trim() {
        "" => Err(Failure::Usage(format!(
            "the token file {} is empty",
            path.display()
        ))),
        token => Ok(token.to_owned()),
    }
}
