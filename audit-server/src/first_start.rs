//! Starting with nothing: the data folder, a secret, a tenant, and a token for them.
//!
//! Only without any setting for tokens, and only on a loopback address: whoever can read the files
//! of the data folder may do everything.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use audit_core::{AuditLog, Role, TenantFilter, TenantId, Timestamp};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::auth::jwt::{self, Demands, Verifiers};

/// The file with the secret that local tokens are signed with.
pub const SECRET_FILE: &str = "secret";
/// The file with the token of the first start.
pub const TOKEN_FILE: &str = "token";
/// The name of the tenant that is made when there is none.
pub const TENANT_NAME: &str = "default";
/// Whom the token of the first start is for.
pub const SUBJECT: &str = "local";
/// For how long it is valid, in microseconds.
pub const TOKEN_LIFETIME: i64 = 24 * 3600 * 1_000_000;
/// A minute, in microseconds.
const MINUTE: i64 = 60 * 1_000_000;
/// A token with less than this left is replaced, in microseconds.
const TOKEN_RESERVE: i64 = 3600 * 1_000_000;
/// More than any of these files holds.
const MAX_FILE: u64 = 64 * 1024;

/// What of the data folder can't be used.
#[derive(Debug, thiserror::Error)]
#[error("the data folder can't be used: {path}: {source}", path = path.display())]
pub struct FolderFault {
    /// The folder or file.
    pub path: PathBuf,
    /// The cause.
    pub source: io::Error,
}

fn fault(path: &Path) -> impl Fn(io::Error) -> FolderFault {
    let path = path.to_owned();
    move |source| FolderFault {
        path: path.clone(),
        source,
    }
}

/// Makes the data folder, for its owner only, and checks that it can be written. A folder that is
/// there keeps its mode.
///
/// # Errors
/// A folder that can't be made or written.
pub fn make_folder(folder: &Path) -> Result<(), FolderFault> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).map_err(fault(folder))?;
    let probe = folder.join(".write-probe");
    create(&probe).map_err(fault(folder))?;
    std::fs::remove_file(&probe).map_err(fault(folder))
}

/// Creates or empties a file that only its owner may read.
fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Writes a file whole: a crash leaves the old one or the new one.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), FolderFault> {
    let temporary = path.with_extension("new");
    // A leftover could have been made with another mode.
    match std::fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(fault(&temporary)(e)),
        _ => {}
    }
    let mut file = create(&temporary).map_err(fault(&temporary))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(fault(&temporary))?;
    std::fs::rename(&temporary, path).map_err(fault(path))
}

pub(crate) fn read(path: &Path) -> Result<Option<String>, FolderFault> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(fault(path)(e)),
    };
    let mut text = String::new();
    file.take(MAX_FILE)
        .read_to_string(&mut text)
        .map_err(fault(path))?;
    Ok(Some(text.trim().to_owned()).filter(|t| !t.is_empty()))
}

/// The secret of the data folder, made when there is none.
///
/// # Errors
/// A file that can't be read or written.
pub fn secret(folder: &Path, fresh: [u8; 32]) -> Result<String, FolderFault> {
    let path = folder.join(SECRET_FILE);
    if let Some(secret) = read(&path)? {
        return Ok(secret);
    }
    let secret = URL_SAFE_NO_PAD.encode(fresh);
    write(&path, &format!("{secret}\n"))?;
    Ok(secret)
}

/// The tenant of the first start, made when there is none of its name.
///
/// # Errors
/// What the store answers.
pub async fn tenant(log: &AuditLog) -> audit_core::Result<TenantId> {
    let named = TenantFilter::all().name(TENANT_NAME);
    if let Some(tenant) = log.tenants().tenants(&named, None, 1).await?.pop() {
        return Ok(tenant.id);
    }
    Ok(log.create_tenant(None, TENANT_NAME).await?.id)
}

/// The token of the data folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalToken {
    /// The token itself.
    pub text: String,
    /// When it was there already.
    pub kept: bool,
    /// From when on it is refused.
    pub expires_at: Timestamp,
}

impl LocalToken {
    /// For how long it is valid, in words: `24 h`, or `kept, 22 h 59 min left`.
    pub fn validity(&self, now: Timestamp) -> String {
        let left = (self.expires_at.as_micros() - now.as_micros()).max(0);
        let minutes = (left + MINUTE / 2) / MINUTE;
        let (hours, minutes) = (minutes / 60, minutes % 60);
        let length = match minutes {
            0 => format!("{hours} h"),
            _ => format!("{hours} h {minutes} min"),
        };
        if self.kept {
            format!("kept, {length} left")
        } else {
            length
        }
    }
}

/// The token of the data folder, made anew when it has expired, or will within the hour.
///
/// # Errors
/// A file that can't be read or written.
pub async fn token(
    folder: &Path,
    secret: &str,
    demands: &Demands,
    tenant: TenantId,
    now: Timestamp,
) -> Result<LocalToken, FolderFault> {
    let path = folder.join(TOKEN_FILE);
    let verifiers = Verifiers::none()
        .secret(secret.as_bytes(), demands, true)
        .map_err(|e| fault(&folder.join(SECRET_FILE))(io::Error::other(e)))?;
    if let Some(token) = read(&path)? {
        let later = Timestamp::saturating_from_micros(now.as_micros() + TOKEN_RESERVE);
        if let Ok((principal, Some(expires_at))) = verifiers.principal(&token, later).await
            && principal.tenant == Some(tenant)
        {
            return Ok(LocalToken {
                text: token,
                kept: true,
                expires_at,
            });
        }
    }
    let until = Timestamp::saturating_from_micros(now.as_micros() + TOKEN_LIFETIME);
    let token = jwt::sign(
        secret.as_bytes(),
        SUBJECT,
        Some(tenant),
        Role::Admin,
        demands,
        until,
    )
    .map_err(|e| fault(&path)(io::Error::other(e)))?;
    write(&path, &format!("{token}\n"))?;
    Ok(LocalToken {
        text: token,
        kept: false,
        expires_at: until,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn folder_and_files_are_the_owners_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("a/data");
        make_folder(&folder).unwrap();
        let first = secret(&folder, [1; 32]).unwrap();
        assert_eq!(
            secret(&folder, [2; 32]).unwrap(),
            first,
            "a second start keeps the secret"
        );
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700);
        assert_eq!(mode(&folder.join(SECRET_FILE)), 0o600);
    }

    #[tokio::test]
    async fn a_token_is_kept_until_it_expires() {
        let folder = tempfile::tempdir().unwrap();
        let secret = secret(folder.path(), [1; 32]).unwrap();
        let tenant = TenantId::new(uuid::Uuid::from_u128(1));
        let at = |hours: i64| Timestamp::from_micros(hours * 3_600_000_000).unwrap();
        let demands = Demands::default();
        let first = token(folder.path(), &secret, &demands, tenant, at(10))
            .await
            .unwrap();
        let second = token(folder.path(), &secret, &demands, tenant, at(20))
            .await
            .unwrap();
        assert_eq!(first.text, second.text);
        assert_eq!(first.validity(at(10)), "24 h");
        assert_eq!(second.validity(at(20)), "kept, 14 h left");
        let later = Timestamp::from_micros(at(20).as_micros() + 61 * MINUTE).unwrap();
        assert_eq!(second.validity(later), "kept, 12 h 59 min left");
        let third = token(folder.path(), &secret, &demands, tenant, at(34))
            .await
            .unwrap();
        assert_ne!(first.text, third.text);
        assert!(!third.kept);
    }
}
