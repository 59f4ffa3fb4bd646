//! The key that heads are signed with, and the name that they are signed under.

use std::path::{Path, PathBuf};

use audit_core::tlog::checkpoint::Origin;
use audit_core::tlog::note::SigningKey;
use audit_core::{Clock as _, Signer, SystemClock};

use crate::config::{Settings, StoreUrl};
use crate::first_start::{self, FolderFault};

/// The file of the data folder with the key, made when there is none.
pub const KEY_FILE: &str = "tlog.key";
/// The origin of a server that only this machine reaches.
pub const LOCAL_ORIGIN: &str = "localhost/audit";
/// What a key in the settings begins with; anything else is the path of a file.
const KEY_START: &str = "PRIVATE+KEY+";

/// Why heads can't be signed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SigningFault {
    /// Others reach the server, and the log has no name of its own.
    #[error(
        "AUDIT_TLOG_ORIGIN: the log needs a name of its own where others reach the server, such as \
         audit.example.com/log"
    )]
    NoOrigin,
    /// The settings' key can't be read.
    #[error("AUDIT_TLOG_KEY: {path} can't be read: {source}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// What was read is no key.
    #[error("{from}: not a signing key (PRIVATE+KEY+<name>+<id>+<base64>)")]
    NotAKey {
        /// The setting or the file.
        from: String,
    },
    /// The data folder can't be used.
    #[error(transparent)]
    Folder(#[from] FolderFault),
}

/// What the settings say of who signs: nothing is made yet.
enum Named {
    /// Nobody: a database is shared and no key is, so that each server would make one of its own.
    Nobody,
    /// A key of the settings, or of a store that is gone with the process.
    Key(Origin, Box<SigningKey>),
    /// The data folder's key.
    Kept(Origin, PathBuf),
}

fn named(settings: &Settings) -> Result<Named, SigningFault> {
    let shared = matches!(settings.store, StoreUrl::Postgres(_)) && settings.names_token_keys();
    if settings.tlog_key.is_none() && shared {
        return Ok(Named::Nobody);
    }
    let origin = match &settings.tlog_origin {
        Some(origin) => origin.clone(),
        None if settings.bind.ip().is_loopback() => {
            Origin::parse(LOCAL_ORIGIN).map_err(|_| SigningFault::NoOrigin)?
        }
        None => return Err(SigningFault::NoOrigin),
    };
    Ok(match (&settings.tlog_key, settings.store.folder()) {
        (Some(key), _) => Named::Key(origin, Box::new(configured(key.reveal())?)),
        (None, None) => Named::Key(origin, Box::new(made(&SystemClock.secret())?)),
        (None, Some(folder)) => Named::Kept(origin, folder.to_owned()),
    })
}

/// Whether the settings say who signs. Makes nothing.
///
/// # Errors
/// An origin that is missing, a key that can't be read.
pub fn check(settings: &Settings) -> Result<(), SigningFault> {
    named(settings).map(drop)
}

/// Who signs. None where a database is shared and no key is. The data folder's key is made when there
/// is none.
///
/// # Errors
/// An origin that is missing, a key that can't be read or made.
pub fn signer(settings: &Settings) -> Result<Option<Signer>, SigningFault> {
    let (origin, key) = match named(settings)? {
        Named::Nobody => {
            tracing::warn!("heads are not signed and nothing is proved: AUDIT_TLOG_KEY is not set");
            return Ok(None);
        }
        Named::Key(origin, key) => (origin, *key),
        Named::Kept(origin, folder) => (origin, kept(&folder)?),
    };
    Ok(Some(Signer::new(origin, key)))
}

fn configured(setting: &str) -> Result<SigningKey, SigningFault> {
    let setting = setting.trim();
    // Whatever looks like a key, misspelt perhaps, is never shown as a path.
    if setting.contains(KEY_START) {
        return parse(setting, "AUDIT_TLOG_KEY");
    }
    let text = std::fs::read_to_string(setting).map_err(|source| SigningFault::Unreadable {
        path: setting.into(),
        source,
    })?;
    parse(&text, setting)
}

fn kept(folder: &Path) -> Result<SigningKey, SigningFault> {
    let path = folder.join(KEY_FILE);
    match first_start::read(&path)? {
        Some(text) => parse(&text, &path.display().to_string()),
        // Another key would not be the one that the logs were signed with.
        None if path.exists() => Err(SigningFault::NotAKey {
            from: path.display().to_string(),
        }),
        None => {
            let key = made(&SystemClock.secret())?;
            first_start::write(&path, &format!("{}\n", key.encode()))?;
            Ok(key)
        }
    }
}

/// The name in the file says nothing: heads are signed under the origin and the tenant.
fn made(seed: &[u8; 32]) -> Result<SigningKey, SigningFault> {
    SigningKey::from_seed("audit", seed).map_err(|_| SigningFault::NotAKey {
        from: KEY_FILE.to_owned(),
    })
}

fn parse(text: &str, from: &str) -> Result<SigningKey, SigningFault> {
    SigningKey::parse(text.trim()).map_err(|_| SigningFault::NotAKey {
        from: from.to_owned(),
    })
}
