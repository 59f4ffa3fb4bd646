//! `audit keys`.

use audit_client::{Client, NewKey};
use futures_util::StreamExt as _;
use serde::Serialize;

use crate::args::KeysCommand;
use crate::failure::{Failure, Outcome};
use crate::present::Out;

#[derive(Serialize)]
struct Issued<'a> {
    #[serde(flatten)]
    key: &'a audit_client::ApiKey,
    #[serde(rename = "key")]
    secret: &'a str,
}

pub(crate) async fn run(
    client: &Client,
    mut out: Out,
    command: KeysCommand,
) -> Result<Outcome, Failure> {
    match command {
        KeysCommand::List => {
            let mut keys = client.all_keys();
            let mut rows = Vec::new();
            while let Some(key) = keys.next().await {
                let key = key?;
                if out.json {
                    out.value(&key)?;
                    continue;
                }
                let or_never = |at: &Option<String>| at.clone().unwrap_or_else(|| "never".into());
                rows.push(vec![
                    key.id.to_string(),
                    key.name.clone(),
                    key.role.clone(),
                    key.created_at.clone(),
                    or_never(&key.expires_at),
                    or_never(&key.last_used_at),
                ]);
            }
            if !out.json {
                let head = [
                    "ID",
                    "NAME",
                    "ROLE",
                    "CREATED AT",
                    "EXPIRES AT",
                    "LAST USED AT",
                ];
                if rows.is_empty() {
                    out.hint("there is no key");
                }
                out.table(&head, rows)?;
            }
        }
        KeysCommand::Create {
            name,
            role,
            expires_at,
        } => {
            let mut new = NewKey::new(name, role);
            new.expires_at = expires_at;
            let issued = client.create_key(&new).await?;
            if out.json {
                out.value(&Issued {
                    key: &issued.key,
                    secret: &issued.secret,
                })?;
            } else {
                out.text(&issued.secret)?;
                out.hint(&format!(
                    "key {} with the role {}; the secret is not shown again",
                    issued.key.id, issued.key.role
                ));
            }
        }
        KeysCommand::Revoke { id } => {
            client.revoke_key(id).await?;
            out.hint(&format!("key {id} is revoked"));
        }
    }
    out.flush()?;
    Ok(Outcome::Complete)
}
