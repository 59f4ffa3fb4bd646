//! `audit export`.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::Duration;

use audit_client::{Client, ExportFormat};
use audit_core::EvidenceRequest;
use futures_util::StreamExt as _;
use indicatif::{HumanBytes, HumanCount, ProgressBar};

use crate::args::{ExportArgs, ExportFormatArg};
use crate::bundle::writer::Folder;
use crate::failure::{Failure, Outcome};
use crate::present::Out;

pub(crate) async fn run(
    client: &Client,
    mut out: Out,
    args: ExportArgs,
) -> Result<Outcome, Failure> {
    let format = match args.format {
        ExportFormatArg::Csv => ExportFormat::Csv,
        ExportFormatArg::Ndjson => ExportFormat::Ndjson,
    };
    let filter = args.filter.filter().map_err(Failure::Usage)?;
    if let Some(folder) = &args.evidence {
        let request = EvidenceRequest::new()
            .filter(filter)
            .withhold(&args.withhold);
        return evidence(client, &mut out, folder, &request).await;
    }
    let mut export = client.export(&filter, format).await?;
    let mut file = match &args.output {
        Some(path) => Some((path.as_path(), open(path, args.append, args.force)?)),
        None => None,
    };
    let progress = if out.shows_progress() && file.is_some() {
        ProgressBar::new_spinner()
    } else {
        ProgressBar::hidden()
    };
    progress.enable_steady_tick(Duration::from_millis(100));
    let mut records = Records::new(format);
    let mut skip_head = args.append && format == ExportFormat::Csv;
    let mut bytes = 0;
    let ended = loop {
        let complete = match export.next().await {
            None => break Ok(()),
            Some(Ok(piece)) => records.push(&piece),
            Some(Err(error)) => break Err(error),
        };
        let mut complete = complete.as_slice();
        if skip_head && !complete.is_empty() {
            let head = complete
                .iter()
                .position(|b| *b == b'\n')
                .map_or(0, |at| at + 1);
            complete = complete.get(head..).unwrap_or_default();
            skip_head = false;
        }
        bytes += complete.len() as u64;
        match &mut file {
            Some((path, file)) => {
                file.write_all(complete).map_err(|e| unwritable(path, e))?;
            }
            None => out.bytes(complete)?,
        }
        let (count, size) = (HumanCount(records.entries), HumanBytes(bytes));
        progress.set_message(format!("{count} entries, {size}"));
    };
    progress.finish_and_clear();
    match &mut file {
        Some((path, file)) => file
            .flush()
            .and_then(|()| file.get_ref().sync_all())
            .map_err(|e| unwritable(path, e))?,
        None => out.flush()?,
    }
    match (ended, records.last_seq) {
        (Ok(()), _) => {
            if file.is_some() {
                out.hint(&format!("{} entries exported", records.entries));
            }
            Ok(Outcome::Complete)
        }
        (Err(error), Some(seq)) => Err(Failure::Halted(
            format!(
                "complete up to entry {seq}: go on with --from-seq {} --append",
                seq + 1
            ),
            error,
        )),
        (Err(error), None) => Err(error.into()),
    }
}

/// Writes an evidence export into a folder of its own, which is there whole or not at all.
async fn evidence(
    client: &Client,
    out: &mut Out,
    at: &Path,
    request: &EvidenceRequest,
) -> Result<Outcome, Failure> {
    let mut folder = Folder::create(at)?;
    let mut export = client.evidence(request).await?;
    let progress = match out.shows_progress() {
        true => ProgressBar::new_spinner(),
        false => ProgressBar::hidden(),
    };
    progress.enable_steady_tick(Duration::from_millis(100));
    let mut bytes = 0;
    while let Some(piece) = export.next().await {
        let piece = piece?;
        bytes += piece.len() as u64;
        folder.push(&piece)?;
        progress.set_message(HumanBytes(bytes).to_string());
    }
    folder.finish()?;
    progress.finish_and_clear();
    out.hint(&format!(
        "evidence written: audit verify {}{}",
        at.display(),
        if request.filter.is_empty() && request.withheld.is_empty() {
            ""
        } else {
            " --partial"
        }
    ));
    Ok(Outcome::Complete)
}

fn open(path: &Path, append: bool, force: bool) -> Result<BufWriter<File>, Failure> {
    let mut options = OpenOptions::new();
    if append {
        options.append(true);
    } else if force {
        options.write(true).create(true).truncate(true);
    } else {
        options.write(true).create_new(true);
    }
    options.open(path).map(BufWriter::new).map_err(|e| {
        let hint = if e.kind() == std::io::ErrorKind::AlreadyExists {
            " (--force replaces it, --append goes on with it)"
        } else {
            ""
        };
        Failure::Local(format!("{} can't be written{hint}", path.display()), e)
    })
}

fn unwritable(path: &Path, error: std::io::Error) -> Failure {
    Failure::Local(format!("{} can't be written", path.display()), error)
}

/// Cuts an export into whole records, so that what is written can be gone on with.
struct Records {
    format: ExportFormat,
    rest: Vec<u8>,
    /// Of CSV: within quotes a line break is part of a value.
    quoted: bool,
    /// How much of `rest` was looked at.
    seen: usize,
    entries: u64,
    last_seq: Option<u64>,
}

impl Records {
    fn new(format: ExportFormat) -> Self {
        Self {
            format,
            rest: Vec::new(),
            quoted: false,
            seen: 0,
            entries: 0,
            last_seq: None,
        }
    }

    /// Takes the next piece and returns the records that it completes.
    fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        self.rest.extend_from_slice(piece);
        let mut complete = 0;
        for at in self.seen..self.rest.len() {
            match self.rest[at] {
                b'"' if self.format == ExportFormat::Csv => self.quoted = !self.quoted,
                b'\n' if !self.quoted => {
                    if let Some(seq) = self.seq(&self.rest[complete..at]) {
                        self.entries += 1;
                        self.last_seq = Some(seq);
                    }
                    complete = at + 1;
                }
                _ => {}
            }
        }
        let rest = self.rest.split_off(complete);
        self.seen = rest.len();
        std::mem::replace(&mut self.rest, rest)
    }

    /// The position that a record names; none for the head of CSV.
    fn seq(&self, record: &[u8]) -> Option<u64> {
        let record = std::str::from_utf8(record).ok()?;
        match self.format {
            // id, tenant_id and seq come first, and are never quoted.
            ExportFormat::Csv => record.split(',').nth(2)?.parse().ok(),
            // The first `"seq":` is the entry's own: only ids stand before it.
            ExportFormat::Ndjson => {
                let (_, after) = record.split_once("\"seq\":")?;
                after.split([',', '}']).next()?.trim().parse().ok()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_records_are_let_through_however_the_bytes_are_cut() {
        let csv = "id,tenant_id,seq,reason\r\na,b,4,\"x\n\"\"y,\"\r\na,b,5,z\r\na,b,6,\"cut";
        let ndjson =
            "{\"id\":\"a\",\"seq\":4}\n{\"id\":\"b\",\"seq\":5,\"x\":{\"seq\":9}}\n{\"seq\":6";
        for (format, text) in [(ExportFormat::Csv, csv), (ExportFormat::Ndjson, ndjson)] {
            for size in 1..text.len() {
                let mut records = Records::new(format);
                let mut whole = Vec::new();
                for piece in text.as_bytes().chunks(size) {
                    whole.extend(records.push(piece));
                }
                let end = text.rfind('\n').unwrap() + 1;
                assert_eq!(std::str::from_utf8(&whole).unwrap(), &text[..end], "{size}");
                assert_eq!((records.entries, records.last_seq), (2, Some(5)), "{size}");
            }
        }
    }
}
