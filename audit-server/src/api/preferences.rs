//! The request headers that change how an event is recorded: `Prefer` and `Idempotency-Key`.

use poem::Request;

use crate::problem::Problem;

/// The most characters of an idempotency key.
pub(crate) const MAX_KEY: usize = 255;

/// What a client prefers (RFC 7240).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Preferences {
    /// An answer as soon as the event is safe in the queue.
    pub(crate) respond_async: bool,
    /// Each item of a bulk by itself.
    pub(crate) lenient: bool,
}

impl Preferences {
    /// Reads the headers `Prefer`; what is not known is ignored, as §2 of the RFC says.
    pub(crate) fn of(request: &Request) -> Self {
        let mut found = Self::default();
        for value in request.headers().get_all("prefer") {
            for preference in value.to_str().unwrap_or_default().split(',') {
                let preference = preference.split(';').next().unwrap_or_default();
                let plain: String = preference
                    .chars()
                    .filter(|c| !c.is_whitespace() && *c != '"')
                    .collect();
                match plain.to_ascii_lowercase().as_str() {
                    "respond-async" => found.respond_async = true,
                    "handling=lenient" => found.lenient = true,
                    _ => {}
                }
            }
        }
        found
    }

    /// The header `Preference-Applied`, when anything was applied.
    pub(crate) fn applied(self) -> Option<String> {
        match (self.respond_async, self.lenient) {
            (false, false) => None,
            (true, false) => Some("respond-async".into()),
            (false, true) => Some("handling=lenient".into()),
            (true, true) => Some("respond-async, handling=lenient".into()),
        }
    }
}

/// The header `Idempotency-Key`, quoted or bare.
pub(crate) fn idempotency_key(request: &Request) -> Result<Option<&str>, Problem> {
    const NAME: &str = "Idempotency-Key";
    let mut values = request.headers().get_all(NAME).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(Problem::parameter(NAME, "stands more than once"));
    }
    let text = std::str::from_utf8(value.as_bytes())
        .map_err(|_| Problem::parameter(NAME, "not UTF-8"))?
        .trim();
    let key = text
        .strip_prefix('"')
        .and_then(|t| t.strip_suffix('"'))
        .unwrap_or(text);
    if key.is_empty() || key.chars().count() > MAX_KEY {
        return Err(Problem::parameter(
            NAME,
            format!("1 to {MAX_KEY} characters are expected"),
        ));
    }
    Ok(Some(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preferences_are_read_in_all_their_forms() {
        let request = Request::builder()
            .header("prefer", "foo=bar, Respond-Async; wait=3")
            .header("prefer", "handling = \"lenient\"")
            .finish();
        assert_eq!(
            Preferences::of(&request),
            Preferences {
                respond_async: true,
                lenient: true
            }
        );
        let key = |value: &str| {
            let request = Request::builder().header("idempotency-key", value).finish();
            idempotency_key(&request).map(|k| k.map(str::to_owned))
        };
        assert_eq!(key("\"abc\"").unwrap().as_deref(), Some("abc"));
        assert_eq!(key("abc").unwrap().as_deref(), Some("abc"));
        assert!(key("\"\"").is_err());
        assert!(key(&"x".repeat(MAX_KEY)).is_ok());
        assert!(key(&"x".repeat(MAX_KEY + 1)).is_err());
    }
}
