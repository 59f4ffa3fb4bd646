//! A small witness: C2SP `tlog-witness` over HTTP, for the logs that it is told of.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use audit_core::tlog::checkpoint::Checkpoint;
use audit_core::tlog::note::{Cosigner, Note, VerifyingKey};
use audit_core::tlog::witness::{
    AddCheckpoint, Refusal, SIZE_CONTENT_TYPE, WitnessedLog, decide, monitoring_path,
};
use audit_core::{Clock as _, SystemClock};
use poem::http::StatusCode;
use poem::web::{Data, Path};
use poem::{Body, Endpoint, EndpointExt as _, Response, Route, get, handler, post};

/// Cosigns for some logs. Of each it keeps the last checkpoint that it cosigned, in a file that is also
/// what monitors read.
#[derive(Debug)]
pub(crate) struct Witness {
    cosigner: Cosigner,
    logs: Vec<VerifyingKey>,
    folder: PathBuf,
    /// Reading the last checkpoint and keeping the next one is one step.
    turn: Mutex<()>,
}

/// Why there is no cosignature.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The log, or its request, doesn't deserve one.
    Refused(Refusal),
    /// The witness can't remember what it would have cosigned.
    Unkept(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Unkept(error)
    }
}

impl Witness {
    /// A witness that keeps its state in a folder, which nobody else writes to. A log may have several
    /// keys, each with the log's name.
    pub(crate) fn new(
        cosigner: Cosigner,
        logs: Vec<VerifyingKey>,
        folder: impl Into<PathBuf>,
    ) -> Arc<Self> {
        Arc::new(Self {
            cosigner,
            logs,
            folder: folder.into(),
            turn: Mutex::default(),
        })
    }

    /// Whose cosignatures it gives.
    pub(crate) fn key(&self) -> &VerifyingKey {
        self.cosigner.verifying_key()
    }

    /// Answers the body of an `add-checkpoint` request with a signature line. It blocks.
    pub(crate) fn add_checkpoint(&self, body: &str) -> Result<String, Failure> {
        let refused = |refusal| Failure::Refused(refusal);
        let request = AddCheckpoint::parse(body).map_err(|fault| refused(fault.into()))?;
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let log = self.known(request.origin())?;
        decide(&request, log.as_ref()).map_err(refused)?;
        let text = request.note().text();
        let now = SystemClock.now().as_micros() / 1_000_000;
        let unsigned = |fault| Failure::Unkept(io::Error::other(fault));
        let line = self
            .cosigner
            .cosign(text, now.unsigned_abs())
            .map_err(unsigned)?;
        let mut kept = request.note().clone();
        kept.replace(line.clone()).map_err(unsigned)?;
        // Before anybody has the cosignature: one that is forgotten could be followed by another head.
        self.keep(request.origin(), &kept.encode())?;
        Ok(line.encode())
    }

    /// What is known of the log of this name; nothing when it isn't one of those.
    fn known(&self, origin: &str) -> io::Result<Option<WitnessedLog>> {
        let keys = self.logs.iter().filter(|key| key.name() == origin);
        let keys: Vec<_> = keys.cloned().collect();
        if keys.is_empty() {
            return Ok(None);
        }
        let mut log = WitnessedLog::new(origin, keys);
        if let Some(last) = self.last(origin)? {
            let note = Note::parse(&last).map_err(io::Error::other)?;
            let head = Checkpoint::parse(note.text()).map_err(io::Error::other)?;
            (log.size, log.root) = (head.size(), head.root());
        }
        Ok(Some(log))
    }

    /// The last checkpoint of a log that was cosigned.
    fn last(&self, origin: &str) -> io::Result<Option<String>> {
        match fs::read_to_string(self.folder.join(monitoring_path(origin))) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts a checkpoint in the last one's place. A crash leaves the one or the other, whole.
    fn keep(&self, origin: &str, note: &str) -> io::Result<()> {
        let path = self.folder.join(monitoring_path(origin));
        let folder = path.parent().unwrap_or(&self.folder);
        fs::create_dir_all(folder)?;
        let next = path.with_extension("next");
        let mut file = File::create(&next)?;
        file.write_all(note.as_bytes())?;
        file.sync_all()?;
        fs::rename(&next, &path)?;
        for changed in [folder, &*self.folder] {
            File::open(changed)?.sync_all()?;
        }
        Ok(())
    }

    /// The routes that the page names: `/add-checkpoint` for logs, `/<hash>/checkpoint` for monitors.
    pub(crate) fn routes(self: &Arc<Self>) -> impl Endpoint + use<> {
        Route::new()
            .at("/add-checkpoint", post(add_checkpoint))
            .at("/:log/checkpoint", get(checkpoint))
            .data(Arc::clone(self))
    }
}

/// The longest request that is read, in bytes.
const MAX_BODY: usize = 64 * 1024;

#[handler]
async fn add_checkpoint(Data(witness): Data<&Arc<Witness>>, body: Body) -> Response {
    let body = body.into_bytes_limit(MAX_BODY).await.ok();
    let Some(body) = body.and_then(|body| String::from_utf8(body.to_vec()).ok()) else {
        return StatusCode::BAD_REQUEST.into();
    };
    let witness = Arc::clone(witness);
    let answer = tokio::task::spawn_blocking(move || witness.add_checkpoint(&body)).await;
    let answer = answer.unwrap_or_else(|panic| Err(io::Error::other(panic).into()));
    match answer {
        Ok(line) => line.into(),
        Err(Failure::Refused(refusal)) => {
            let status = StatusCode::from_u16(refusal.status());
            let response = Response::builder().status(status.unwrap_or(StatusCode::BAD_REQUEST));
            match refusal {
                Refusal::Conflict(_) => response.content_type(SIZE_CONTENT_TYPE),
                _ => response,
            }
            .body(refusal.body())
        }
        Err(Failure::Unkept(error)) => Response::builder()
            .status(StatusCode::INTERNAL_SERVER_ERROR)
            .body(error.to_string()),
    }
}

#[handler]
async fn checkpoint(Data(witness): Data<&Arc<Witness>>, Path(log): Path<String>) -> Response {
    let mut origins = witness.logs.iter().map(VerifyingKey::name);
    let origin = origins.find(|origin| monitoring_path(origin) == format!("{log}/checkpoint"));
    match origin.map(|origin| witness.last(origin)) {
        Some(Ok(Some(text))) => text.into(),
        Some(Err(_)) => StatusCode::INTERNAL_SERVER_ERROR.into(),
        _ => StatusCode::NOT_FOUND.into(),
    }
}
