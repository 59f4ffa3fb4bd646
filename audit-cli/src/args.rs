//! Commands and their arguments.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use audit_core::{
    ActionRetention, ActionType, ActorType, EventId, Filter, Outcome, Query, Role, Severity,
    TenantId, TenantStatus, TimeRange, Timestamp,
};
use audit_tlog::{Basis, Group, VerifyingKey};
use clap::{Args, Parser, Subcommand, ValueEnum};
use uuid::Uuid;

use crate::when;

/// Records, finds, follows and moves the entries of an audit log.
#[derive(Debug, Parser)]
#[command(
    name = "audit",
    version,
    max_term_width = 100,
    after_help = "\
Times are RFC 3339 (2026-11-24T14:00:00Z), UTC days (2026-11-24) or how long ago (15m, 24h, 7d).

Exit codes:
  0  everything was done
  1  something was refused, in conflict, or not found
  2  the arguments can't be meant so, or a local file can't be read or written
  3  the server can't be reached or can't work
  4  the credential is missing, invalid, or not allowed to do this"
)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) connection: Connection,
    /// Print JSON, one value a line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print results and errors only: no progress, hints or summaries; of verify, what was found to be wrong
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which server, and as whom.
#[derive(Debug, Args)]
pub(crate) struct Connection {
    /// The server
    #[arg(
        long,
        global = true,
        env = "AUDIT_URL",
        default_value = "http://127.0.0.1:8000"
    )]
    pub(crate) url: String,
    /// A token or an API key; better in the environment, where other users can't read it
    #[arg(
        long,
        global = true,
        env = "AUDIT_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    pub(crate) token: Option<Secret>,
    /// A file that holds the token; ./audit-data/token is taken when it exists and nothing is said
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// The tenant, for a credential that may act in several
    #[arg(long, global = true, env = "AUDIT_TENANT", value_name = "ID")]
    pub(crate) tenant: Option<TenantId>,
    /// How many seconds to try when the server is away or too busy; 60 for import, export, tail and
    /// verify, 5 for the others
    #[arg(long, global = true, value_name = "SECONDS")]
    pub(crate) patience: Option<u64>,
}

/// A value that is never shown.
#[derive(Clone)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Record one event, from arguments or as JSON
    Record(Box<RecordArgs>),
    /// Show one entry
    Get(GetArgs),
    /// Find entries, newest first
    Search(Box<SearchArgs>),
    /// Follow the log as it grows
    Tail(Box<TailArgs>),
    /// Count entries
    Stats(StatsArgs),
    /// Administer tenants
    #[command(subcommand)]
    Tenants(TenantsCommand),
    /// Administer API keys of the tenant
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Write many entries to a file or a pipe
    Export(Box<ExportArgs>),
    /// Record many events from files; importing again stores nothing twice
    Import(ImportArgs),
    /// Remove the entries accepted before a time
    Prune(PruneArgs),
    /// Destroy the content of entries, by id, user or filter; their places in the log stay
    Erase(Box<EraseArgs>),
    /// Check an evidence bundle without a server, or follow a server's log: exit code 0 verified, 1
    /// findings, 2 unreadable
    Verify(VerifyArgs),
    /// Print the log's newest signed head, to be kept elsewhere: verify --known then finds a tail that
    /// was cut off
    Head(HeadArgs),
    /// Look after messages that were given up
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),
    /// Ask whether the server can work
    Health,
}

impl Command {
    /// How many seconds it tries when nothing is said.
    pub(crate) fn patience(&self) -> u64 {
        match self {
            Self::Import(_) | Self::Export(_) | Self::Tail(_) | Self::Verify(_) => 60,
            _ => 5,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct RecordArgs {
    /// What was done: CREATE, UPDATE, DELETE, VIEW, LOGIN, LOGOUT, GRANT, REVOKE, EXECUTE, EXPORT, OTHER
    #[arg(requires = "resource_type", conflicts_with = "file")]
    pub(crate) action_type: Option<ActionType>,
    /// To what type of resource
    #[arg(requires = "resource_id")]
    pub(crate) resource_type: Option<String>,
    /// To which resource
    pub(crate) resource_id: Option<String>,
    /// A file with the event as JSON; - or nothing at all is standard input
    #[arg(long, short, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) fields: FieldArgs,
}

/// The fields of an event but those that are arguments by position.
#[derive(Debug, Args)]
#[group(
    multiple = true,
    conflicts_with = "file",
    id = "fields",
    requires = "action_type"
)]
pub(crate) struct FieldArgs {
    /// Identity and idempotency key; made when not given
    #[arg(long)]
    pub(crate) id: Option<EventId>,
    /// When it happened; now when not given
    #[arg(long, value_name = "TIME", value_parser = when::parse)]
    pub(crate) occurred_at: Option<Timestamp>,
    /// The fine name, noun.verb; no personal data, since it can't be erased
    #[arg(long)]
    pub(crate) action: Option<String>,
    /// success, failure, denied or unknown
    #[arg(long)]
    pub(crate) outcome: Option<Outcome>,
    /// INFO, WARNING, ERROR or CRITICAL
    #[arg(long)]
    pub(crate) severity: Option<Severity>,
    /// The actor
    #[arg(long, visible_alias = "user", value_name = "ID")]
    pub(crate) user_id: Option<String>,
    /// user, service, system, agent or anonymous
    #[arg(long, value_name = "TYPE")]
    pub(crate) actor_type: Option<ActorType>,
    /// The actor's display name
    #[arg(long, value_name = "NAME")]
    pub(crate) actor_name: Option<String>,
    /// The impersonated or delegating principal
    #[arg(long, value_name = "ID")]
    pub(crate) on_behalf_of: Option<String>,
    /// The resource's display name
    #[arg(long, value_name = "NAME")]
    pub(crate) resource_name: Option<String>,
    /// Another target; up to 16
    #[arg(long, value_name = "TYPE=ID", value_parser = related)]
    pub(crate) related: Vec<(String, String)>,
    /// The session
    #[arg(long, value_name = "ID")]
    pub(crate) session_id: Option<String>,
    /// The request
    #[arg(long, value_name = "ID")]
    pub(crate) request_id: Option<String>,
    /// The trace
    #[arg(long, value_name = "ID")]
    pub(crate) trace_id: Option<String>,
    /// The user agent
    #[arg(long)]
    pub(crate) user_agent: Option<String>,
    /// From where
    #[arg(long, visible_alias = "ip", value_name = "ADDRESS")]
    pub(crate) ip_address: Option<IpAddr>,
    /// Why
    #[arg(long)]
    pub(crate) reason: Option<String>,
    /// The resource before
    #[arg(long, visible_alias = "before", value_name = "JSON")]
    pub(crate) before_state: Option<String>,
    /// The resource after
    #[arg(long, visible_alias = "after", value_name = "JSON")]
    pub(crate) after_state: Option<String>,
    /// Anything else
    #[arg(long, value_name = "JSON")]
    pub(crate) metadata: Option<String>,
}

fn related(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((kind, id)) if !kind.is_empty() && !id.is_empty() => Ok((kind.into(), id.into())),
        _ => Err("TYPE=ID is expected".into()),
    }
}

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// The event's id
    pub(crate) id: EventId,
}

/// Which entries. One that is given more than once means any of the values.
#[derive(Debug, Args)]
#[command(next_help_heading = "Which entries")]
pub(crate) struct FilterArgs {
    /// Words that are all in it; "in quotes" one behind the other
    #[arg(long, value_name = "WORDS")]
    q: Option<String>,
    /// The actor
    #[arg(long, visible_alias = "user", value_name = "ID")]
    user_id: Vec<String>,
    /// The session
    #[arg(long, value_name = "ID")]
    session_id: Vec<String>,
    /// The coarse operation, CREATE
    #[arg(long, value_name = "TYPE")]
    action_type: Vec<ActionType>,
    /// The fine name, whole
    #[arg(long)]
    action: Vec<String>,
    /// The resource's type
    #[arg(long, value_name = "TYPE")]
    resource_type: Vec<String>,
    /// The resource
    #[arg(long, value_name = "ID")]
    resource_id: Vec<String>,
    /// Another target
    #[arg(long, value_name = "ID")]
    related_id: Vec<String>,
    /// INFO, WARNING, ERROR or CRITICAL
    #[arg(long)]
    severity: Vec<Severity>,
    /// success, failure, denied or unknown
    #[arg(long)]
    outcome: Vec<Outcome>,
    /// From where
    #[arg(long, visible_alias = "ip", value_name = "ADDRESS")]
    ip_address: Vec<IpAddr>,
    /// The request
    #[arg(long, value_name = "ID")]
    request_id: Vec<String>,
    /// The trace
    #[arg(long, value_name = "ID")]
    trace_id: Vec<String>,
    /// Happened at this time or later
    #[arg(long, value_name = "TIME", value_parser = when::parse)]
    from: Option<Timestamp>,
    /// Happened before this time
    #[arg(long, value_name = "TIME", value_parser = when::parse)]
    to: Option<Timestamp>,
    /// Accepted at this time or later
    #[arg(long, value_name = "TIME", value_parser = when::parse)]
    created_from: Option<Timestamp>,
    /// Accepted before this time
    #[arg(long, value_name = "TIME", value_parser = when::parse)]
    created_to: Option<Timestamp>,
    /// The first position
    #[arg(long, value_name = "SEQ")]
    from_seq: Option<u64>,
}

impl FilterArgs {
    /// The filter, or why it is none.
    pub(crate) fn filter(self) -> Result<Filter, String> {
        let mut filter = Filter::new();
        filter.user_id = self.user_id;
        filter.session_id = self.session_id;
        filter.action_type = self.action_type;
        filter.action = self.action;
        filter.resource_type = self.resource_type;
        filter.resource_id = self.resource_id;
        filter.related_id = self.related_id;
        filter.severity = self.severity;
        filter.outcome = self.outcome;
        filter.ip_address = self.ip_address;
        filter.request_id = self.request_id;
        filter.trace_id = self.trace_id;
        filter.occurred = TimeRange {
            from: self.from,
            to: self.to,
        };
        filter.created = TimeRange {
            from: self.created_from,
            to: self.created_to,
        };
        filter.from_seq = self.from_seq;
        if let Some(q) = self.q {
            filter.q = Some(Query::parse(&q).map_err(|e| e.to_string())?);
        }
        Ok(filter)
    }
}

#[derive(Debug, Args)]
pub(crate) struct SearchArgs {
    /// Words that are all in it, as with --q
    #[arg(value_name = "WORDS", conflicts_with = "q")]
    pub(crate) words: Vec<String>,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
    /// At most so many entries
    #[arg(long, short = 'n', default_value_t = 50)]
    pub(crate) limit: usize,
    /// All entries
    #[arg(long, conflicts_with = "limit")]
    pub(crate) all: bool,
    /// Oldest first
    #[arg(long)]
    pub(crate) oldest_first: bool,
    /// By when it happened, not by when it was accepted
    #[arg(long)]
    pub(crate) by_time: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TailArgs {
    /// The first position; what is appended from now on when not given
    #[arg(long = "from", value_name = "SEQ")]
    pub(crate) start: Option<u64>,
    /// End after so many entries
    #[arg(long, short = 'n')]
    pub(crate) limit: Option<u64>,
    #[command(flatten)]
    pub(crate) filter: TailFilterArgs,
}

/// What a tail can be narrowed by. One that is given more than once means any of the values.
#[derive(Debug, Args)]
#[command(next_help_heading = "Which entries")]
pub(crate) struct TailFilterArgs {
    /// The actor
    #[arg(long, visible_alias = "user", value_name = "ID")]
    user_id: Vec<String>,
    /// The coarse operation, CREATE
    #[arg(long, value_name = "TYPE")]
    action_type: Vec<ActionType>,
    /// The fine name, whole
    #[arg(long)]
    action: Vec<String>,
    /// The resource's type
    #[arg(long, value_name = "TYPE")]
    resource_type: Vec<String>,
    /// The resource
    #[arg(long, value_name = "ID")]
    resource_id: Vec<String>,
    /// INFO, WARNING, ERROR or CRITICAL
    #[arg(long)]
    severity: Vec<Severity>,
    /// success, failure, denied or unknown
    #[arg(long)]
    outcome: Vec<Outcome>,
}

impl TailFilterArgs {
    pub(crate) fn filter(self) -> Filter {
        let mut filter = Filter::new();
        filter.user_id = self.user_id;
        filter.action_type = self.action_type;
        filter.action = self.action;
        filter.resource_type = self.resource_type;
        filter.resource_id = self.resource_id;
        filter.severity = self.severity;
        filter.outcome = self.outcome;
        filter
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum GroupByArg {
    ActionType,
    Severity,
    Outcome,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum IntervalArg {
    Day,
    Week,
    Month,
}

#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    /// Accepted on this UTC day or later
    #[arg(long, value_name = "DAY", value_parser = when::parse)]
    pub(crate) from: Option<Timestamp>,
    /// Accepted before this UTC day
    #[arg(long, value_name = "DAY", value_parser = when::parse)]
    pub(crate) to: Option<Timestamp>,
    /// Print how many entries there are of each, and nothing else
    #[arg(long)]
    pub(crate) group_by: Option<GroupByArg>,
    /// Print how many entries there are in each, and nothing else
    #[arg(long)]
    pub(crate) interval: Option<IntervalArg>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TenantsCommand {
    /// List tenants
    List {
        /// Of exactly this name
        #[arg(long)]
        name: Option<String>,
        /// active, inactive, suspended or deleted
        #[arg(long)]
        status: Option<TenantStatus>,
    },
    /// Create a tenant
    Create {
        /// Its name
        name: String,
        /// Its id; made when not given
        #[arg(long)]
        id: Option<TenantId>,
        /// Serve its log's checkpoints, key and tiles without a credential
        #[arg(long)]
        public_log: bool,
    },
    /// Show one tenant
    Get {
        /// Its id
        id: TenantId,
    },
    /// Open or close a tenant: active, inactive (refuses writes), suspended (refuses everything)
    SetStatus {
        /// Its id
        id: TenantId,
        /// active, inactive or suspended
        status: TenantStatus,
        /// Why; the tenant's log keeps it
        #[arg(long)]
        reason: Option<String>,
    },
    /// Delete a tenant for ever: its evidence goes to the server's archive, everything of it is removed but a
    /// tombstone, and its id is never taken again
    Delete {
        /// Its id
        id: TenantId,
        /// Archive nothing: the evidence goes with the tenant
        #[arg(long)]
        no_archive: bool,
        /// Why; the tenant's log keeps it, and its archive with it
        #[arg(long)]
        reason: Option<String>,
        /// Don't ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Open a tenant's log to monitors that have no credential, or close it: its checkpoints, key and
    /// tiles, which show each entry's action, outcome and times, and who acted on what to nobody
    SetLog {
        /// Its id
        id: TenantId,
        /// Whether it is open
        log: LogArg,
        /// Why; the tenant's log keeps it
        #[arg(long)]
        reason: Option<String>,
    },
    /// Show how long a tenant's entries are kept
    Retention {
        /// Its id
        id: TenantId,
    },
    /// Set how long a tenant's entries are kept; what isn't given is no longer set
    SetRetention {
        /// Its id
        id: TenantId,
        /// Prune what is older
        #[arg(long, value_name = "DAYS")]
        keep_days: Option<u32>,
        /// Let nobody prune what is younger
        #[arg(long, value_name = "DAYS")]
        minimum_days: Option<u32>,
        /// Erase groups of an action's entries after so many days, all groups when none are named;
        /// may be repeated
        #[arg(long, value_name = "ACTION=DAYS[:GROUP,…]", value_parser = rule)]
        erase: Vec<ActionRetention>,
        /// Only say what would go now
        #[arg(long)]
        dry_run: bool,
        /// Why; the tenant's log keeps it
        #[arg(long)]
        reason: Option<String>,
    },
    /// List a tenant's legal holds, newest first
    Holds {
        /// Its id
        id: TenantId,
    },
    /// Place a legal hold: nothing of the tenant's log is erased or pruned until it is released
    Hold {
        /// Its id
        id: TenantId,
        /// The hold's name, a case number say
        name: String,
        /// Why; the tenant's log keeps it
        #[arg(long)]
        reason: Option<String>,
    },
    /// Release a legal hold
    Release {
        /// Its id
        id: TenantId,
        /// The hold's id
        hold: Uuid,
        /// Why; the tenant's log keeps it
        #[arg(long)]
        reason: Option<String>,
    },
    /// Give a tenant another name
    Rename {
        /// Its id
        id: TenantId,
        /// Its new name
        name: String,
        /// Why; the tenant's log keeps it
        #[arg(long)]
        reason: Option<String>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogArg {
    Public,
    Private,
}

/// `ACTION=DAYS` or `ACTION=DAYS:GROUP,GROUP`.
fn rule(text: &str) -> Result<ActionRetention, String> {
    let (action, rest) = text.split_once('=').ok_or("ACTION=DAYS is expected")?;
    let (days, groups) = match rest.split_once(':') {
        Some((days, groups)) => (days, Some(groups)),
        None => (rest, None),
    };
    let days = days.parse().map_err(|_| "a number of days is expected")?;
    let rule = ActionRetention::new(action, days);
    let Some(names) = groups else { return Ok(rule) };
    let groups = names.split(',').map(|name| {
        name.parse::<Group>()
            .map_err(|_| format!("{name} is no group"))
    });
    Ok(rule.groups(&groups.collect::<Result<Vec<_>, _>>()?))
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// List keys
    List,
    /// Make a key; its secret is shown once
    Create {
        /// What it is for
        name: String,
        /// writer, auditor, user, tenant_admin or admin
        #[arg(long, default_value = "writer")]
        role: Role,
        /// From when on it is refused; never when not given
        #[arg(long, value_name = "TIME", value_parser = when::parse)]
        expires_at: Option<Timestamp>,
    },
    /// Revoke a key
    Revoke {
        /// Its id
        id: Uuid,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormatArg {
    Csv,
    Ndjson,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The form
    #[arg(long, default_value = "ndjson")]
    pub(crate) format: ExportFormatArg,
    /// The file; standard output when not given
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Go on with a file, after --from-seq
    #[arg(long, requires = "output", requires = "from_seq")]
    pub(crate) append: bool,
    /// Replace a file that exists
    #[arg(long, requires = "output", conflicts_with = "append")]
    pub(crate) force: bool,
    /// Write evidence for `audit verify` into a new folder: leaf data, disclosures and a signed
    /// checkpoint. All control entries are in it, whatever the filter
    #[arg(long, value_name = "DIR", conflicts_with_all = ["output", "append", "force", "format"])]
    pub(crate) evidence: Option<PathBuf>,
    /// Keep groups back, such as actor,context: their digests are shown, and not what they hold
    #[arg(
        long,
        value_name = "GROUPS",
        value_delimiter = ',',
        requires = "evidence"
    )]
    pub(crate) withhold: Vec<Group>,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImportFormatArg {
    /// Files of AWS CloudTrail, plain or .gz
    Cloudtrail,
    /// An export of another log, or events one a line, plain or .gz
    Ndjson,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TenantFromArg {
    /// The account that received a CloudTrail record
    #[value(name = "recipientAccountId")]
    RecipientAccountId,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// What the files are
    #[arg(long)]
    pub(crate) format: ImportFormatArg,
    /// Record for the tenant of this name, which is made when it is missing; needs an admin's token
    #[arg(long, value_name = "FIELD")]
    pub(crate) tenant_from: Option<TenantFromArg>,
    /// Files, folders, or - for standard input
    #[arg(required = true)]
    pub(crate) paths: Vec<PathBuf>,
}

/// Up to when; one of the two.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct BoundArgs {
    /// What was accepted before this time
    #[arg(long, value_name = "TIME", value_parser = when::parse)]
    pub(crate) before: Option<Timestamp>,
    /// What was accepted more than so many days ago
    #[arg(
        long,
        value_name = "DAYS",
        value_parser = clap::value_parser!(u32).range(1..=36_500)
    )]
    pub(crate) older_than_days: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    #[command(flatten)]
    pub(crate) bound: BoundArgs,
    /// Only say what would go
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Why; the log keeps it
    #[arg(long)]
    pub(crate) reason: Option<String>,
    /// Don't ask before entries are removed
    #[arg(long, short)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EraseArgs {
    /// Entries by id, at most 1,000; more of them with --id
    #[arg(value_name = "ID")]
    pub(crate) entries: Vec<EventId>,
    /// An entry by id
    #[arg(long, value_name = "ID")]
    pub(crate) id: Vec<EventId>,
    /// Destroy only these groups: actor, resource, context, reason, before_state, after_state, metadata
    #[arg(long, value_name = "GROUPS", value_delimiter = ',')]
    pub(crate) groups: Vec<Group>,
    /// On what grounds, as gdpr-17; the log keeps it
    #[arg(long)]
    pub(crate) basis: Option<Basis>,
    /// Why; the log keeps it, so it must not say whom the erasure is about
    #[arg(long)]
    pub(crate) reason: Option<String>,
    /// Only count what is selected
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// End when the server has taken the request, and not when it is done
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// Don't ask before entries are erased that were not named one by one
    #[arg(long, short)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
}

#[derive(Debug, Args)]
pub(crate) struct HeadArgs {
    /// The newest head that is in the deployment log, as the proof of that with the cosignatures that there
    /// are. A log's heads come in once an hour
    #[arg(long)]
    pub(crate) cosigned: bool,
    /// The key that verifies the heads, for verify --key
    #[arg(long, conflicts_with = "cosigned")]
    pub(crate) key: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The bundle's folder, a tenant's folder of an archive, or a file with an evidence stream, plain
    /// or .zst; - is standard input
    #[arg(required_unless_present = "live", conflicts_with = "live")]
    pub(crate) bundle: Option<PathBuf>,
    /// Follow the log of a server: each head has to continue the last one, and each new entry to be what
    /// is hashed. The server's address with --tenant, or the log's, URL/api/v1/tlog/TENANT
    #[arg(long, value_name = "URL")]
    pub(crate) live: Option<String>,
    /// Where what was verified is kept from one look to the next; ./audit-live/TENANT when not given
    #[arg(long, value_name = "DIR", requires = "live")]
    pub(crate) state: Option<PathBuf>,
    /// Look once, and not until something is found
    #[arg(long, requires = "live")]
    pub(crate) once: bool,
    /// How many seconds between two looks
    #[arg(
        long,
        value_name = "SECONDS",
        requires = "live",
        conflicts_with = "once",
        default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(1..=86_400)
    )]
    pub(crate) every: u64,
    /// Accept an export that isn't the whole log: what it says that it withholds is no finding; of an
    /// archive, that segments are missing
    #[arg(long, conflicts_with = "live")]
    pub(crate) partial: bool,
    /// A file with a checkpoint or a head proof that you have from elsewhere; the log has to continue it. Of
    /// an archive also the folder of an export of the log, which has to go on where the archive ends, and says
    /// what was erased since
    #[arg(long, value_name = "FILE", conflicts_with = "live")]
    pub(crate) known: Vec<PathBuf>,
    /// The vkey of a witness that has to have cosigned the checkpoint, or a head proof given as --known,
    /// which head --cosigned prints
    #[arg(long, value_name = "VKEY", conflicts_with = "live")]
    pub(crate) witness: Vec<VerifyingKey>,
    /// The log's vkey, now or earlier, that you have from elsewhere; one of those given has to be its
    #[arg(long, value_name = "VKEY")]
    pub(crate) key: Vec<VerifyingKey>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SourceArg {
    Queue,
    Outbox,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLettersCommand {
    /// List them, oldest first
    List,
    /// Send them again
    Redrive {
        /// Only those of the queue, or those of the outbox
        #[arg(long)]
        source: Option<SourceArg>,
        /// Which of the source; all of them when not given
        #[arg(requires = "source")]
        handles: Vec<String>,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn a_token_is_not_in_debug_output() {
        let options = Options::try_parse_from(["audit", "--token", "topsecret", "stats"]).unwrap();
        assert!(!format!("{options:?}").contains("topsecret"));
    }
}
