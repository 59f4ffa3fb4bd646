//! `audit import`.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use audit_client::Client;
use audit_core::{Error, ErrorKind, Event, Receipt, TenantFilter};
use flate2::read::MultiGzDecoder;
use futures_util::TryStreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::args::{ImportArgs, ImportFormatArg, TenantFromArg};
use crate::cloudtrail;
use crate::failure::{Failure, Outcome};
use crate::ndjson;
use crate::present::{Out, clean};

/// The most events of one request, and the most bytes of their raw JSON.
const BATCH_EVENTS: usize = 500;
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// The largest CloudTrail file, inflated; AWS delivers far smaller ones.
const MAX_FILE: u64 = 512 * 1024 * 1024;
/// The longest line of NDJSON; an event is well below it.
const MAX_LINE: u64 = 4 * 1024 * 1024;

pub(crate) async fn run(
    client: &Client,
    mut out: Out,
    args: ImportArgs,
) -> Result<Outcome, Failure> {
    if args.tenant_from.is_some() && args.format != ImportFormatArg::Cloudtrail {
        return Err(Failure::Usage(
            "--tenant-from is for CloudTrail files".into(),
        ));
    }
    let sources = sources(&args.paths, args.format)?;
    let progress = progress(&out, &sources);
    let mut import = Import {
        client,
        tenant_from: args.tenant_from,
        tenants: HashMap::new(),
        waiting: Vec::new(),
        waiting_bytes: 0,
        summary: Summary::default(),
        progress,
    };
    let result = import.files(&sources, args.format).await;
    import.progress.finish_and_clear();
    let summary = import.summary;
    if out.json {
        out.value(&summary)?;
    } else if !out.quiet {
        summary.show(&mut out)?;
    }
    out.flush()?;
    match result {
        Err(Failure::Log(error)) => Err(Failure::Halted(
            "the import was broken off, and importing the same files again goes on with it".into(),
            error,
        )),
        Err(failure) => Err(failure),
        Ok(()) if summary.conflicts + summary.refused > 0 => Ok(Outcome::Partial),
        Ok(()) => Ok(Outcome::Complete),
    }
}

/// What became of the items.
#[derive(Debug, Default, Serialize)]
struct Summary {
    files: u64,
    read: u64,
    stored: u64,
    duplicates: u64,
    conflicts: u64,
    refused: u64,
    /// Entries that a log wrote about itself.
    passed_over: u64,
    /// Values that did not fit their field and are in `metadata` only, by field.
    dropped: BTreeMap<&'static str, u64>,
}

impl Summary {
    fn show(&self, out: &mut Out) -> Result<(), Failure> {
        let mut rows = vec![
            ("read", self.read),
            ("stored", self.stored),
            ("duplicates", self.duplicates),
            ("conflicts", self.conflicts),
            ("refused", self.refused),
        ];
        if self.passed_over > 0 {
            rows.push(("the log's own entries, passed over", self.passed_over));
        }
        for (name, count) in rows {
            out.text(&format!("{count:>8}  {name}"))?;
        }
        for (field, count) in &self.dropped {
            out.text(&format!(
                "{count:>8}  {field}: over its limit, kept in metadata only"
            ))?;
        }
        Ok(())
    }
}

/// A file, or standard input.
enum Source {
    Stdin,
    File(PathBuf),
}

impl Source {
    fn name(&self) -> Arc<str> {
        match self {
            Self::Stdin => "(standard input)".into(),
            Self::File(path) => path.display().to_string().into(),
        }
    }

    /// Its bytes, inflated when they begin as gzip does (RFC 1952 §2.3.1); `progress` counts them as
    /// they lie in the file.
    fn open(&self, progress: &ProgressBar) -> io::Result<Box<dyn BufRead>> {
        let raw: Box<dyn Read> = match self {
            Self::Stdin => Box::new(io::stdin()),
            Self::File(path) => Box::new(File::open(path)?),
        };
        let mut raw = BufReader::new(progress.wrap_read(raw));
        Ok(if raw.fill_buf()?.starts_with(&[0x1f, 0x8b]) {
            Box::new(BufReader::new(MultiGzDecoder::new(raw)))
        } else {
            Box::new(raw)
        })
    }
}

/// The files that the arguments name; of folders what has a known ending, in order of names.
fn sources(paths: &[PathBuf], format: ImportFormatArg) -> Result<Vec<Source>, Failure> {
    let endings: &[&str] = match format {
        ImportFormatArg::Cloudtrail => &[".json", ".json.gz"],
        ImportFormatArg::Ndjson => &[".ndjson", ".ndjson.gz", ".jsonl", ".jsonl.gz"],
    };
    let mut sources = Vec::new();
    for path in paths {
        if path == Path::new("-") {
            sources.push(Source::Stdin);
            continue;
        }
        let unreadable = |e| Failure::Local(format!("{} can't be read", path.display()), e);
        if !std::fs::metadata(path).map_err(unreadable)?.is_dir() {
            sources.push(Source::File(path.clone()));
            continue;
        }
        let before = sources.len();
        let mut folders = vec![path.clone()];
        let mut found = Vec::new();
        while let Some(folder) = folders.pop() {
            for item in std::fs::read_dir(&folder).map_err(unreadable)? {
                let item = item.map_err(unreadable)?;
                let name = item.file_name();
                let name = name.to_string_lossy();
                // A link to a folder isn't followed: it could lead back.
                if item.file_type().map_err(unreadable)?.is_dir() {
                    folders.push(item.path());
                } else if endings.iter().any(|ending| name.ends_with(ending)) {
                    found.push(item.path());
                }
            }
        }
        found.sort();
        sources.extend(found.into_iter().map(Source::File));
        if sources.len() == before {
            return Err(Failure::Usage(format!(
                "{} holds no files that end in {}",
                path.display(),
                endings.join(" or ")
            )));
        }
    }
    Ok(sources)
}

fn progress(out: &Out, sources: &[Source]) -> ProgressBar {
    if !out.shows_progress() {
        return ProgressBar::hidden();
    }
    let size = |source: &Source| match source {
        Source::Stdin => None,
        Source::File(path) => std::fs::metadata(path).ok().map(|m| m.len()),
    };
    match sources.iter().map(size).sum::<Option<u64>>() {
        Some(bytes) => {
            let bar = ProgressBar::new(bytes);
            let style = "{bar:30} {bytes}/{total_bytes}  {eta}  {msg}";
            match ProgressStyle::with_template(style) {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        }
        None => ProgressBar::new_spinner(),
    }
}

/// Where an item stands.
#[derive(Clone)]
struct Place {
    file: Arc<str>,
    /// From 1: a line, or a record of a CloudTrail file.
    number: usize,
    is_line: bool,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let between = if self.is_line { ":" } else { ": record " };
        write!(f, "{}{between}{}", self.file, self.number)
    }
}

struct Waiting {
    place: Place,
    /// The name of the tenant that it is for, where the items say so.
    tenant: Option<String>,
    event: Event,
}

struct Import<'a> {
    client: &'a Client,
    tenant_from: Option<TenantFromArg>,
    tenants: HashMap<String, Client>,
    waiting: Vec<Waiting>,
    waiting_bytes: usize,
    summary: Summary,
    progress: ProgressBar,
}

impl Import<'_> {
    async fn files(&mut self, sources: &[Source], format: ImportFormatArg) -> Result<(), Failure> {
        for source in sources {
            let file = source.name();
            let unreadable = |e| Failure::Local(format!("{file} can't be read"), e);
            let reader = source.open(&self.progress).map_err(unreadable)?;
            self.summary.files += 1;
            match format {
                ImportFormatArg::Cloudtrail => self.cloudtrail(&file, reader).await?,
                ImportFormatArg::Ndjson => self.ndjson(&file, reader).await?,
            }
        }
        self.send().await
    }

    async fn cloudtrail(&mut self, file: &Arc<str>, reader: impl Read) -> Result<(), Failure> {
        let unreadable = |e| Failure::Local(format!("{file} can't be read"), e);
        let mut text = String::new();
        reader
            .take(MAX_FILE + 1)
            .read_to_string(&mut text)
            .map_err(unreadable)?;
        let records = if text.len() as u64 > MAX_FILE {
            Err(format!("has more than {MAX_FILE} bytes"))
        } else {
            cloudtrail::records(&text)
        };
        let records = match records {
            Ok(records) => records,
            Err(reason) => {
                self.refuse(file, &reason);
                return Ok(());
            }
        };
        for (i, record) in records.into_iter().enumerate() {
            self.summary.read += 1;
            let place = Place {
                file: Arc::clone(file),
                number: i + 1,
                is_line: false,
            };
            let mapped = match cloudtrail::event(record) {
                Ok(mapped) => mapped,
                Err(reason) => {
                    self.refuse(&place, &reason);
                    continue;
                }
            };
            let tenant = match (self.tenant_from, mapped.account) {
                (None, _) => None,
                (Some(TenantFromArg::RecipientAccountId), Some(account)) => Some(account),
                (Some(TenantFromArg::RecipientAccountId), None) => {
                    self.refuse(&place, "recipientAccountId: required for --tenant-from");
                    continue;
                }
            };
            for field in mapped.dropped {
                *self.summary.dropped.entry(field).or_default() += 1;
            }
            self.add(
                Waiting {
                    place,
                    tenant,
                    event: mapped.event,
                },
                record.len(),
            )
            .await?;
        }
        Ok(())
    }

    async fn ndjson(&mut self, file: &Arc<str>, mut reader: impl BufRead) -> Result<(), Failure> {
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let read = (&mut reader)
                .take(MAX_LINE + 1)
                .read_until(b'\n', &mut line);
            if read.map_err(|e| Failure::Local(format!("{file} can't be read"), e))? == 0 {
                break;
            }
            let place = Place {
                file: Arc::clone(file),
                number,
                is_line: true,
            };
            if line.len() as u64 > MAX_LINE {
                self.summary.read += 1;
                self.refuse(
                    &place,
                    &format!("body: the line has more than {MAX_LINE} bytes"),
                );
                // Without a line's end nothing that follows can be told apart.
                break;
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            self.summary.read += 1;
            let parsed = std::str::from_utf8(&line)
                .map_err(|_| "body: not UTF-8".to_owned())
                .and_then(|text| ndjson::line(text.trim()));
            match parsed {
                Ok(ndjson::Line::Event(event)) => {
                    self.add(
                        Waiting {
                            place,
                            tenant: None,
                            event: *event,
                        },
                        line.len(),
                    )
                    .await?;
                }
                Ok(ndjson::Line::OwnEntry) => self.summary.passed_over += 1,
                Err(reason) => self.refuse(&place, &reason),
            }
        }
        Ok(())
    }

    async fn add(&mut self, item: Waiting, bytes: usize) -> Result<(), Failure> {
        if !self.waiting.is_empty() && self.waiting_bytes + bytes > BATCH_BYTES {
            self.send().await?;
        }
        self.waiting.push(item);
        self.waiting_bytes += bytes;
        if self.waiting.len() == BATCH_EVENTS {
            self.send().await
        } else {
            Ok(())
        }
    }

    /// Sends what waits, each tenant's in one request.
    async fn send(&mut self) -> Result<(), Failure> {
        self.waiting_bytes = 0;
        let mut of_tenants: BTreeMap<Option<String>, (Vec<Place>, Vec<Event>)> = BTreeMap::new();
        for item in self.waiting.drain(..) {
            let (places, events) = of_tenants.entry(item.tenant).or_default();
            places.push(item.place);
            events.push(item.event);
        }
        for (tenant, (places, events)) in of_tenants {
            let client = match tenant {
                None => self.client.clone(),
                Some(name) => self.tenant(name).await?,
            };
            let results = client.record_each(events).await;
            // What was stored is counted whatever became of the others.
            let counted: Vec<_> = places
                .iter()
                .zip(results)
                .map(|(place, result)| self.count(place, result))
                .collect();
            counted.into_iter().collect::<Result<(), _>>()?;
        }
        self.progress.set_message(format!(
            "{} stored, {} known",
            self.summary.stored, self.summary.duplicates
        ));
        Ok(())
    }

    fn count(&mut self, place: &Place, result: Result<Receipt, Error>) -> Result<(), Failure> {
        match result {
            Ok(receipt) if receipt.duplicate => self.summary.duplicates += 1,
            Ok(_) => self.summary.stored += 1,
            Err(error) => match error.kind() {
                ErrorKind::Conflict => {
                    self.summary.conflicts += 1;
                    self.tell("conflict", place, &error.to_string());
                }
                ErrorKind::Invalid | ErrorKind::Malformed | ErrorKind::Refused => {
                    self.refuse(place, &error.to_string());
                }
                // The others aren't about this item, and would meet every later one.
                _ => return Err(error.into()),
            },
        }
        Ok(())
    }

    fn refuse(&mut self, place: &impl std::fmt::Display, reason: &str) {
        self.summary.refused += 1;
        self.tell("refused", place, reason);
    }

    fn tell(&self, what: &str, place: &impl std::fmt::Display, reason: &str) {
        let line = format!("{what}: {place}: {reason}");
        self.progress.suspend(|| {
            // Nobody is left to be told when standard error is closed.
            drop(writeln!(io::stderr(), "{}", clean(&line)));
        });
    }

    /// The client for the tenant of this name, which is made when it is missing.
    async fn tenant(&mut self, name: String) -> Result<Client, Failure> {
        if let Some(client) = self.tenants.get(&name) {
            return Ok(client.clone());
        }
        let mut found = self
            .client
            .all_tenants(TenantFilter::all().name(name.as_str()));
        let tenant = match found.try_next().await? {
            Some(tenant) => tenant,
            None => self.client.create_tenant(None, &name).await?,
        };
        let client = self.client.with_tenant(tenant.id);
        self.tenants.insert(name, client.clone());
        Ok(client)
    }
}
