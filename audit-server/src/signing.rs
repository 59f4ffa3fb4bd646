//! The key that heads are signed with, and the name that they are signed under.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use audit_archive::{ObjectGuard, ObjectOptions};
use audit_core::tlog::checkpoint::Origin;
use audit_core::tlog::note::SigningKey;
use audit_core::{Clock as _, Error, ErrorKind, FolderGuard, Guard, Signer, SystemClock};

use crate::config::{GuardPlace, Settings, StoreUrl};
use crate::first_start::{self, FolderFault};

/// The file of the data folder with the key, made when there is none.
pub const KEY_FILE: &str = "tlog.key";
/// The file of the data folder with the keys that signed before, one in a line.
pub const OLD_KEYS_FILE: &str = "tlog.old.keys";
/// The folder of the data folder that remembers what was signed, made when there is none.
pub const GUARD_FOLDER: &str = "tlog.guard";
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
    /// Several servers may sign, and none could notice what another one's restored copy lacks.
    #[error(
        "AUDIT_TLOG_GUARD: where servers share a database, name what remembers outside of it what was \
         signed: a folder that all of them reach, or s3://bucket/prefix; or off"
    )]
    NoGuard,
    /// There is an archive, and nobody signs what would be in it.
    #[error(
        "AUDIT_ARCHIVE_URL: what is archived is signed: set AUDIT_TLOG_KEY, the same for all servers"
    )]
    NothingSigned,
    /// The settings' key can't be read.
    #[error("{setting}: {path} can't be read: {source}", path = path.display())]
    Unreadable {
        /// The setting.
        setting: &'static str,
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
    /// There is no key of the data folder that could be replaced.
    #[error("{0}")]
    NotReplaced(&'static str),
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
    if signs_nobody(settings) {
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
        (Some(key), _) => {
            let text = configured("AUDIT_TLOG_KEY", key.reveal())?;
            Named::Key(origin, Box::new(parse(&text, "AUDIT_TLOG_KEY")?))
        }
        (None, None) => Named::Key(origin, Box::new(made(&SystemClock.secret())?)),
        (None, Some(folder)) => Named::Kept(origin, folder.to_owned()),
    })
}

/// Whether a database is shared and no key is.
fn signs_nobody(settings: &Settings) -> bool {
    let shared = matches!(settings.store, StoreUrl::Postgres(_)) && settings.names_token_keys();
    settings.tlog_key.is_none() && shared
}

/// Whether the settings say who signs. Makes nothing.
///
/// # Errors
/// An origin that is missing, a key that can't be read, an archive without a key, a shared database
/// without a guard.
pub fn check(settings: &Settings) -> Result<(), SigningFault> {
    if matches!(named(settings)?, Named::Nobody) && settings.archive_url.is_some() {
        return Err(SigningFault::NothingSigned);
    }
    if has_to_name_guard(settings) {
        return Err(SigningFault::NoGuard);
    }
    // The data folder's are looked at when it is there.
    match settings.tlog_old_keys {
        Some(_) => old_keys(settings).map(drop),
        None => Ok(()),
    }
}

/// The keys that signed before.
fn old_keys(settings: &Settings) -> Result<Vec<SigningKey>, SigningFault> {
    let (text, from) = match (&settings.tlog_old_keys, settings.store.folder()) {
        (Some(keys), _) => {
            let text = configured("AUDIT_TLOG_OLD_KEYS", keys.reveal())?;
            (Some(text), "AUDIT_TLOG_OLD_KEYS".to_owned())
        }
        // A key of the settings has its predecessors there too.
        (None, Some(folder)) if settings.tlog_key.is_none() => {
            let path = folder.join(OLD_KEYS_FILE);
            (first_start::read(&path)?, path.display().to_string())
        }
        (None, _) => (None, String::new()),
    };
    let keys = text.as_deref().unwrap_or_default().split_whitespace();
    keys.map(|key| parse(key, &from)).collect()
}

/// Makes another key for the data folder, and keeps the present one as the last that signed before.
/// The next start changes the key in every log. Returns the file of the new one.
///
/// # Errors
/// [`SigningFault::NotReplaced`] when the key is in the settings or the folder has none yet; a file
/// that can't be read or written.
pub fn rotate(settings: &Settings) -> Result<PathBuf, SigningFault> {
    let folder = match (&settings.tlog_key, settings.store.folder()) {
        (None, Some(folder)) => folder,
        _ => {
            return Err(SigningFault::NotReplaced(
                "the key is not the data folder's: set AUDIT_TLOG_KEY to the new one and \
                 AUDIT_TLOG_OLD_KEYS to the old one",
            ));
        }
    };
    let (path, old) = (folder.join(KEY_FILE), folder.join(OLD_KEYS_FILE));
    let Some(present) = first_start::read(&path)? else {
        return Err(SigningFault::NotReplaced(
            "the data folder has no key yet: the first start makes one",
        ));
    };
    parse(&present, &path.display().to_string())?;
    // In this order: killed in between, the folder has the key that it had.
    let mut keys = first_start::read(&old)?.unwrap_or_default();
    if !keys.split_whitespace().any(|key| key == present) {
        keys.push('\n');
        keys.push_str(&present);
        first_start::write(&old, &format!("{}\n", keys.trim()))?;
    }
    first_start::write(&path, &format!("{}\n", new_key()?))?;
    Ok(path)
}

/// A new key, as it stands in a file or a setting.
///
/// # Errors
/// None that is known.
pub fn new_key() -> Result<String, SigningFault> {
    Ok(made(&SystemClock.secret())?.encode())
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
    let mut signer = Signer::new(origin.clone(), key.clone());
    let keys = [vec![key.clone()], old_keys(settings)?].concat();
    let origins = [Some(&origin), settings.tlog_old_origin.as_ref()];
    for earlier in origins.into_iter().flatten() {
        for old in &keys {
            if *earlier != origin || old.verifying_key() != key.verifying_key() {
                signer = signer.succeeding(earlier.clone(), old.clone());
            }
        }
    }
    Ok(Some(signer))
}

/// What remembers the heads that were signed, outside the database, for whoever adds to the log, whether it
/// signs or not. By default in the data folder; none in memory, and where nothing is named and nobody signs.
/// Only who signs makes a folder that is named and isn't there: elsewhere it is one that isn't mounted.
///
/// # Errors
/// A folder that can't be made or isn't there, a bucket that can't be used; [`ErrorKind::Refused`] naming
/// `AUDIT_TLOG_GUARD` where a database is shared, the key is in the settings and nothing is named.
pub fn guard(settings: &Settings, is_signing: bool) -> audit_core::Result<Option<Arc<dyn Guard>>> {
    let folder = match (&settings.tlog_guard, settings.store.folder()) {
        (Some(GuardPlace::Off), _) => {
            tracing::warn!(
                "nothing notices that an old copy of the log was restored: AUDIT_TLOG_GUARD is off"
            );
            return Ok(None);
        }
        (Some(GuardPlace::Bucket(url)), _) => return bucket(url, settings).map(Some),
        (Some(GuardPlace::Folder(folder)), _) if !is_signing && !folder.is_dir() => {
            let message = format!(
                "AUDIT_TLOG_GUARD: {} isn't there, and the process that signs makes it",
                folder.display()
            );
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        (Some(GuardPlace::Folder(folder)), _) => folder.clone(),
        (None, _) if has_to_name_guard(settings) => {
            return Err(Error::new(
                ErrorKind::Refused,
                SigningFault::NoGuard.to_string(),
            ));
        }
        (None, Some(folder)) if !signs_nobody(settings) => folder.join(GUARD_FOLDER),
        (None, _) => return Ok(None),
    };
    Ok(Some(Arc::new(FolderGuard::open(folder)?)))
}

/// Whether there is no place for a guard but one that is named: a folder of one server knows nothing of
/// what another one signed.
fn has_to_name_guard(settings: &Settings) -> bool {
    matches!(settings.store, StoreUrl::Postgres(_))
        && settings.tlog_key.is_some()
        && settings.tlog_guard.is_none()
}

fn bucket(url: &str, settings: &Settings) -> audit_core::Result<Arc<dyn Guard>> {
    let unusable = |error: Error| {
        Error::new(error.kind(), "AUDIT_TLOG_GUARD can't be used").with_source(error)
    };
    let mut options = ObjectOptions::new(url).map_err(unusable)?;
    if let Some(file) = &settings.ca_file {
        options = options.ca_file(file);
    }
    Ok(Arc::new(
        ObjectGuard::open_with(&options).map_err(unusable)?,
    ))
}

/// What a setting holds, or the file that it names.
fn configured(setting: &'static str, value: &str) -> Result<String, SigningFault> {
    let value = value.trim();
    // Whatever looks like a key, misspelt perhaps, is never shown as a path.
    if value.contains(KEY_START) {
        return Ok(value.to_owned());
    }
    std::fs::read_to_string(value).map_err(|source| SigningFault::Unreadable {
        setting,
        path: value.into(),
        source,
    })
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
