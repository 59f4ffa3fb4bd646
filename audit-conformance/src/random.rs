//! A small world of events, and queries that find some of them: random, and the same in every run.

use audit_core::text::Query;
use audit_core::{
    ActionType, Event, Filter, Outcome, RelatedResource, Severity, TimeRange, Timestamp,
};

/// An xorshift generator.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// The same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number from 0 to `n`, exclusive.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// A value of which the first ones are frequent and the last ones rare.
    fn skewed(&mut self, n: u64) -> u64 {
        let bound = self.below(n) + 1;
        self.below(bound)
    }

    /// An event of a small world, about the time `now`: most happened just before, some long ago or
    /// in the future, many at the same instant.
    pub fn event(&mut self, now: Timestamp) -> Event {
        let resource_type = self.pick(&["invoice", "doc", "Straße"]);
        let mut event = Event::new(
            self.pick(ActionType::ALL),
            resource_type,
            format!("r{}", self.skewed(300)),
        )
        .severity(self.pick(Severity::ALL))
        .outcome(self.pick(Outcome::ALL));
        if !self.one_in(5) {
            event = event.user(format!("user {}", self.skewed(100)));
        }
        if self.one_in(3) {
            event = event.session_id(format!("s{}", self.skewed(1_000)));
        }
        if self.one_in(3) {
            event = event.request_id(format!("q{}", self.below(1_000_000)));
        }
        if self.one_in(4) {
            event = event.related(RelatedResource::new(
                "group",
                format!("g{}", self.below(20)),
            ));
        }
        if self.one_in(2) {
            event = event.ip_address([10, 8, 8, self.skewed(30) as u8].into());
        }
        if self.one_in(2) {
            let words: Vec<String> = (0..self.below(6))
                .map(|_| format!("w{}", self.skewed(40)))
                .collect();
            event = event.reason(words.join(" "));
        }
        if self.one_in(3) {
            event =
                event.metadata(&serde_json::json!({"Größe": self.below(50), "k": ["x y", 1.5]}));
        }
        match self.below(8) {
            0 => event,
            1 => event.occurred_at(self.time()),
            2 => event.occurred_at(Timestamp::saturating_from_micros(
                now.as_micros() + 3_600_000_000,
            )),
            _ => event.occurred_at(Timestamp::saturating_from_micros(
                now.as_micros() - self.below(5) as i64 * 1_000_000,
            )),
        }
    }

    /// A time of 2026, on the second.
    pub fn time(&mut self) -> Timestamp {
        let start = Timestamp::parse("2026-01-01T00:00:00Z")
            .expect("valid")
            .as_micros();
        Timestamp::from_micros(start + self.below(365 * 86_400) as i64 * 1_000_000).expect("valid")
    }

    fn range(&mut self, times: &[Timestamp]) -> TimeRange {
        let mut ends = [self.pick(times), self.pick(times)];
        ends.sort_unstable();
        TimeRange {
            from: (!self.one_in(3)).then_some(ends[0]),
            to: (!self.one_in(3)).then_some(ends[1]),
        }
    }

    /// A query of words and phrases that the events above may have.
    pub fn query(&mut self) -> Query {
        let parts: Vec<String> = (0..=self.below(2))
            .map(|_| match self.below(8) {
                0 => format!("\"w{} w{}\"", self.skewed(40), self.skewed(40)),
                1 => format!("10.8.8.{}", self.skewed(30)),
                2 => "STRASSE".into(),
                3 => "\"x y\"".into(),
                4 => "1.5".into(),
                5 => format!("größe {}", self.below(60)),
                6 => format!("\"user {}\"", self.skewed(100)),
                _ => format!("w{}", self.skewed(45)),
            })
            .collect();
        Query::parse(&parts.join(" ")).expect("valid")
    }

    /// A filter of up to a few conditions; `times` are instants that matter, `size` is the log's.
    pub fn filter(&mut self, times: &[Timestamp], size: u64) -> Filter {
        let mut filter = Filter::new();
        for _ in 0..self.below(4) {
            filter = match self.below(15) {
                0 => filter.user(format!("user {}", self.skewed(110))),
                1 => filter.session(format!("s{}", self.skewed(1_000))),
                2 => filter.action_type(self.pick(ActionType::ALL)),
                3 => filter.action(self.pick(&["create", "login", "CREATE"])),
                4 => filter.resource_type(self.pick(&["invoice", "doc", "Straße", "none"])),
                5 => filter.resource_id(format!("r{}", self.skewed(300))),
                6 => filter.related_id(format!("g{}", self.below(22))),
                7 => filter.severity(self.pick(Severity::ALL)),
                8 => filter.outcome(self.pick(Outcome::ALL)),
                9 => filter.ip_address(std::net::IpAddr::from([10, 8, 8, self.skewed(30) as u8])),
                10 => filter.request(format!("q{}", self.below(1_000_000))),
                11 => filter.occurred(self.range(times)),
                12 => filter.created(self.range(times)),
                13 => filter.from_seq(self.below(size + 2)),
                _ => filter.to_seq(self.below(size + 2)),
            };
        }
        filter
    }
}
