//! How to reach a queue, and how much to ask of it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use audit_core::{Clock, Error, Result, SystemClock};

/// Which queue, where, and how it is used.
#[derive(Clone)]
pub struct SqsOptions {
    pub(crate) url: String,
    pub(crate) endpoint: String,
    pub(crate) region: Option<String>,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) batch_bytes: usize,
    pub(crate) sends: usize,
    pub(crate) receives: usize,
    pub(crate) max_receives: u32,
    pub(crate) timeout: Duration,
    pub(crate) clock: Arc<dyn Clock>,
}

impl SqsOptions {
    /// The queue of this URL, `https://sqs.<region>.amazonaws.com/<account>/<name>`. The region is
    /// the URL's, where it has one, else the one that the environment or profile says. Credentials
    /// come from where AWS's own tools take them: environment, profile, container, instance.
    ///
    /// # Errors
    /// [`Invalid`](audit_core::ErrorKind::Invalid) naming `url` when it isn't one, and when it holds a
    /// user or a password, which SQS would not use and which errors would show.
    pub fn new(url: impl Into<String>) -> Result<Self> {
        let url = url.into();
        if url.contains('@') {
            return Err(Error::field("url", HAS_USER));
        }
        let (endpoint, name) = split(&url).ok_or_else(|| {
            Error::field(
                "url",
                "not a queue's URL: https://sqs.<region>.amazonaws.com/<account>/<name> is expected",
            )
        })?;
        debug_assert!(!name.is_empty());
        Ok(Self {
            endpoint: endpoint.to_owned(),
            region: region(endpoint).map(str::to_owned),
            url,
            ca_file: None,
            batch_bytes: 256 * 1024,
            sends: 8,
            receives: 8,
            max_receives: 100,
            timeout: Duration::from_secs(12),
            clock: Arc::new(SystemClock),
        })
    }

    /// Where requests go, when that isn't the queue URL's own host: a proxy, or a local server. As in
    /// the queue's URL, a user or a password has no place in it:
    /// [`open`](crate::SqsQueue::open) refuses one.
    #[must_use]
    pub fn endpoint(mut self, url: impl Into<String>) -> Self {
        self.endpoint = url.into();
        self
    }

    /// The region that requests are signed for.
    #[must_use]
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.region = Some(region.into());
        self
    }

    /// A PEM file with the certificates of authorities that are trusted besides the system's.
    #[must_use]
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(path.into());
        self
    }

    /// The most bytes of messages in one call, attributes included: 256 KiB unless this says
    /// otherwise, which every SQS takes. AWS takes 1 MiB today. A larger message goes by itself.
    #[must_use]
    pub fn batch_bytes(mut self, bytes: usize) -> Self {
        self.batch_bytes = bytes.max(1);
        self
    }

    /// How many sends are under way at once: 8 unless this says otherwise. Messages that wait for
    /// one go together. On a FIFO queue a tenant's messages are never in two at once.
    #[must_use]
    pub fn sends_in_flight(mut self, calls: usize) -> Self {
        self.sends = calls.max(1);
        self
    }

    /// How many receives one [`receive`](audit_core::EventQueue::receive) has under way at once: 8
    /// unless this says otherwise. An idle queue is asked by one at a time.
    #[must_use]
    pub fn receives_in_flight(mut self, calls: usize) -> Self {
        self.receives = calls.max(1);
        self
    }

    /// After how many deliveries without an answer SQS itself moves a message to the dead-letter
    /// queue, on queues that [`create`](crate::SqsQueue::create) makes: 100 unless this says
    /// otherwise, 1 to 1,000.
    ///
    /// Events that the log refuses get there at once, with the reason. This is for what kills its
    /// worker each time. Deliveries count as well while the store is away, so that a low number
    /// would make dead letters of good messages in an outage: at 100 it takes about 45 minutes.
    #[must_use]
    pub fn max_receives(mut self, deliveries: u32) -> Self {
        self.max_receives = deliveries.clamp(1, 1_000);
        self
    }

    /// How long an operation may take, its tries together: 12 s unless this says otherwise. A
    /// receive may take as much longer as it waits, and a send as much longer as it waited for its
    /// turn: at most the same time again. What had no turn by then fails, and was not sent.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Where the time of a dead letter comes from.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// The queue's name: the last part of its URL.
    pub(crate) fn name(&self) -> &str {
        name(&self.url)
    }

    /// Whether the queue keeps the order within a group.
    pub(crate) fn is_fifo(&self) -> bool {
        self.name().ends_with(".fifo")
    }

    /// The URL of another queue of the same account and region.
    pub(crate) fn sibling(&self, other: &str) -> String {
        format!("{}{other}", &self.url[..self.url.len() - self.name().len()])
    }
}

/// Why a URL is refused whose text must not be shown.
pub(crate) const HAS_USER: &str =
    "holds a user or a password; credentials come from where AWS's own tools take them";

impl fmt::Debug for SqsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An endpoint with a user is refused, but only when it is used.
        let endpoint = match self.endpoint.contains('@') {
            true => "(not shown: it holds a user or a password)",
            false => &self.endpoint,
        };
        f.debug_struct("SqsOptions")
            .field("url", &self.url)
            .field("endpoint", &endpoint)
            .field("region", &self.region)
            .field("ca_file", &self.ca_file)
            .field("batch_bytes", &self.batch_bytes)
            .field("sends", &self.sends)
            .field("receives", &self.receives)
            .field("max_receives", &self.max_receives)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// The last part of a queue's URL.
pub(crate) fn name(url: &str) -> &str {
    url.rsplit_once('/').map_or(url, |(_, name)| name)
}

/// Scheme and host, and the queue's name.
fn split(url: &str) -> Option<(&str, &str)> {
    let rest = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"))?;
    let (host, path) = rest.split_once('/')?;
    let (account, name) = path.rsplit_once('/')?;
    let sound = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if host.is_empty() || account.is_empty() || name.is_empty() || !name.chars().all(sound) {
        return None;
    }
    Some((&url[..url.len() - path.len() - 1], name))
}

/// The region in a host of AWS's: `sqs.<region>.amazonaws.com`, also behind a VPC endpoint.
fn region(endpoint: &str) -> Option<&str> {
    let (_, host) = endpoint.split_once("://")?;
    if !host.contains(".amazonaws.com") {
        return None;
    }
    let mut labels = host
        .split('.')
        .skip_while(|label| !label.starts_with("sqs"));
    labels.next()?;
    labels.next().filter(|label| label.contains('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_says_where_the_queue_is() {
        let cases = [
            (
                "https://sqs.eu-central-1.amazonaws.com/123456789012/audit.fifo",
                "https://sqs.eu-central-1.amazonaws.com",
                Some("eu-central-1"),
            ),
            (
                "https://vpce-1-2.sqs.us-east-1.vpce.amazonaws.com/123456789012/audit",
                "https://vpce-1-2.sqs.us-east-1.vpce.amazonaws.com",
                Some("us-east-1"),
            ),
            (
                "https://sqs.cn-north-1.amazonaws.com.cn/123456789012/audit",
                "https://sqs.cn-north-1.amazonaws.com.cn",
                Some("cn-north-1"),
            ),
            (
                "http://127.0.0.1:9324/000000000000/audit",
                "http://127.0.0.1:9324",
                None,
            ),
        ];
        for (url, endpoint, region) in cases {
            let options = SqsOptions::new(url).unwrap();
            assert_eq!(options.endpoint, endpoint);
            assert_eq!(options.region.as_deref(), region, "{url}");
            assert_eq!(options.is_fifo(), url.ends_with(".fifo"));
        }
        let options = SqsOptions::new(cases[0].0).unwrap();
        assert_eq!(
            options.sibling("dead.fifo"),
            "https://sqs.eu-central-1.amazonaws.com/123456789012/dead.fifo"
        );
    }

    #[test]
    fn a_user_in_a_url_is_refused_and_not_shown() {
        for url in [
            "https://ann:sesame@sqs.eu-central-1.amazonaws.com/123456789012/audit",
            "https://ann:se/sesame@host/1/audit",
            "https://sesame@host",
        ] {
            let error = SqsOptions::new(url).unwrap_err();
            assert_eq!(error.fields()[0].field, "url");
            assert!(
                !format!("{error} {error:?}").contains("sesame"),
                "{error:?}"
            );
        }
        let options = SqsOptions::new("https://host/1/audit").unwrap();
        let options = options.endpoint("http://ann:sesame@host");
        assert!(!format!("{options:?}").contains("sesame"), "{options:?}");
    }

    #[test]
    fn what_is_no_queues_url_is_refused() {
        for url in [
            "",
            "audit",
            "sqs://host/1/audit",
            "https://host",
            "https://host/audit",
            "https://host/1/",
            "https://host/1/a b",
            "https:///1/audit",
        ] {
            assert!(SqsOptions::new(url).is_err(), "{url}");
        }
    }
}
