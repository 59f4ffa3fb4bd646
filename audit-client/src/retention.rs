//! How long tenants' entries are kept, and legal holds, for administrators.

use audit_core::retention::{ActionRetention, Retention};
use audit_core::{Error, ErrorKind, Group, Result, TenantId};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::client::Client;
use crate::tenants::json;
use crate::transport::{Call, Repeat, parse};

/// What a retention would take now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RetentionDue {
    /// What would be pruned; none without `keep_days`, or when it is refused.
    pub pruned: Option<PrefixDue>,
    /// How many entries would lose groups, for each rule; counting ends after 10,000.
    pub erased: Vec<u64>,
    /// Why nothing goes now: a legal hold.
    pub refused: Option<String>,
}

/// What would be pruned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PrefixDue {
    /// Entries below this position would be gone.
    pub below: u64,
    /// How many would go.
    pub entries: u64,
}

/// A legal hold as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LegalHold {
    /// Its id.
    pub id: Uuid,
    /// Its name, which whoever is refused by it is shown.
    pub name: String,
    /// Why it was placed.
    pub reason: Option<String>,
    /// Who placed it.
    pub placed_by: Option<String>,
    /// When it was placed, RFC 3339.
    pub placed_at: String,
    /// When it was released, RFC 3339; none while it holds.
    pub released_at: Option<String>,
}

/// One page of legal holds, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct LegalHoldPage {
    /// The holds.
    #[serde(rename = "data")]
    pub items: Vec<LegalHold>,
    /// Where the next page begins; none at the end.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Settings {
    keep_days: Option<u32>,
    minimum_days: Option<u32>,
    actions: Vec<Rule>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing)]
    due: Option<RetentionDue>,
}

#[derive(Serialize, Deserialize)]
struct Rule {
    action: String,
    days: u32,
    groups: Vec<String>,
}

impl Settings {
    fn new(retention: &Retention, reason: Option<&str>) -> Self {
        let names = |groups: &[Group]| groups.iter().map(|g| g.as_str().to_owned()).collect();
        Self {
            keep_days: retention.keep_days,
            minimum_days: retention.minimum_days,
            actions: retention
                .actions
                .iter()
                .map(|rule| Rule {
                    action: rule.action.clone(),
                    days: rule.days,
                    groups: names(&rule.groups),
                })
                .collect(),
            reason: reason.map(str::to_owned),
            due: None,
        }
    }

    fn retention(self) -> Result<Retention> {
        let mut retention = Retention::forever();
        retention.keep_days = self.keep_days;
        retention.minimum_days = self.minimum_days;
        for rule in self.actions {
            let groups = rule.groups.iter().map(|name| name.parse().ok());
            let groups = groups.collect::<Option<Vec<Group>>>().ok_or_else(|| {
                Error::new(ErrorKind::Internal, "the server names an unknown group")
            })?;
            let rule = ActionRetention::new(rule.action, rule.days).groups(&groups);
            retention = retention.action(rule);
        }
        Ok(retention)
    }
}

#[derive(Serialize)]
struct Place<'a> {
    id: Uuid,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

impl Client {
    /// How long a tenant's entries are kept.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when there is no such tenant.
    pub async fn retention(&self, tenant: TenantId) -> Result<Retention> {
        let call = Call::new(Method::GET, format!("api/v1/tenants/{tenant}/retention"));
        parse::<Settings>(&self.answer(&call).await?.body)?.retention()
    }

    /// Replaces a tenant's retention; its log says so, with the reason.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) with every fault, [`NotFound`](ErrorKind::NotFound) when there is
    /// no such tenant.
    pub async fn set_retention(
        &self,
        tenant: TenantId,
        retention: &Retention,
        reason: Option<&str>,
    ) -> Result<()> {
        let body = json(&Settings::new(retention, reason))?;
        let call = Call::new(Method::PUT, format!("api/v1/tenants/{tenant}/retention")).json(body);
        self.answer(&call).await.map(drop)
    }

    /// What a retention would take now, were it the tenant's. Changes nothing.
    ///
    /// # Errors
    /// As [`set_retention`](Self::set_retention).
    pub async fn retention_due(
        &self,
        tenant: TenantId,
        retention: &Retention,
    ) -> Result<RetentionDue> {
        let body = json(&Settings::new(retention, None))?;
        let call = Call::new(Method::PUT, format!("api/v1/tenants/{tenant}/retention"))
            .query(vec![("dry_run", "true".to_owned())])
            .json(body);
        let answer: Settings = parse(&self.answer(&call).await?.body)?;
        answer
            .due
            .ok_or_else(|| Error::new(ErrorKind::Internal, "the server doesn't say what is due"))
    }

    /// One page of a tenant's legal holds, open and released ones; `cursor` is the page before's.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when there is no such tenant.
    pub async fn legal_holds(
        &self,
        tenant: TenantId,
        cursor: Option<&str>,
    ) -> Result<LegalHoldPage> {
        let cursor = cursor.map(|cursor| ("cursor", cursor.to_owned()));
        let call = Call::new(Method::GET, format!("api/v1/tenants/{tenant}/legal-holds"))
            .query(cursor.into_iter().collect());
        parse(&self.answer(&call).await?.body)
    }

    /// Places a legal hold, which refuses erasures and prunes of the tenant's log. Its id is made here
    /// when none is given.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when there is no such tenant, [`Conflict`](ErrorKind::Conflict)
    /// when the tenant has a hold of this id.
    pub async fn place_hold(
        &self,
        tenant: TenantId,
        id: Option<Uuid>,
        name: &str,
        reason: Option<&str>,
    ) -> Result<LegalHold> {
        let id = id.unwrap_or_else(|| self.shared.clock.event_id().into_uuid());
        let body = json(&Place { id, name, reason })?;
        let path = format!("api/v1/tenants/{tenant}/legal-holds");
        let call = Call::new(Method::POST, path)
            .repeat(Repeat::IfNotDone)
            .json(body);
        parse(&self.answer(&call).await?.body)
    }

    /// Releases a legal hold. Releasing it again changes nothing.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when there is no such tenant or hold.
    pub async fn release_hold(
        &self,
        tenant: TenantId,
        id: Uuid,
        reason: Option<&str>,
    ) -> Result<LegalHold> {
        let reason = reason.map(|reason| ("reason", reason.to_owned()));
        let path = format!("api/v1/tenants/{tenant}/legal-holds/{id}");
        let call = Call::new(Method::DELETE, path).query(reason.into_iter().collect());
        parse(&self.answer(&call).await?.body)
    }
}
