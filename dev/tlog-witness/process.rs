//! The Go witness of this folder as a child process, for the tests of several crates.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock, Mutex};

/// The program, built once for all tests. Go keeps its modules and builds in its own folders.
static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dev/tlog-witness");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tlog-witness");
    let built = Command::new("go")
        .args(["build", "-buildvcs=false", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(source)
        .output()
        .unwrap_or_else(|error| panic!("go is needed to build dev/tlog-witness: {error}"));
    let errors = String::from_utf8_lossy(&built.stderr);
    assert!(
        built.status.success(),
        "go build dev/tlog-witness: {errors}"
    );
    program
});

/// A running witness, which remembers in a folder what it cosigned. It ends when it is dropped.
pub(crate) struct GoWitness {
    child: Child,
    /// Its vkey and its URL, as `AUDIT_WITNESSES` takes them.
    pub(crate) address: String,
    answers: Arc<Mutex<Vec<String>>>,
}

impl GoWitness {
    /// Starts one for the logs of these vkeys.
    pub(crate) fn start(folder: &Path, vkeys: &[&str]) -> Self {
        let mut child = Command::new(&*PROGRAM)
            .arg("witness.example.com/go")
            .arg(folder)
            .arg("127.0.0.1:0")
            .args(vkeys)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Why it doesn't, it says on the standard error, which is the test's.
        let address = lines.next();
        let address = address.unwrap_or_else(|| panic!("the witness doesn't serve"));
        let answers = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&answers);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                kept.lock().unwrap().push(line);
            }
        });
        Self {
            child,
            address: address.unwrap(),
            answers,
        }
    }

    /// The key of its cosignatures.
    pub(crate) fn vkey(&self) -> &str {
        self.address.split_once(' ').unwrap().0
    }

    /// What it answered so far: status, origin and size, a line each.
    pub(crate) fn answers(&self) -> Vec<String> {
        self.answers.lock().unwrap().clone()
    }
}

impl Drop for GoWitness {
    fn drop(&mut self) {
        // Already ended, where it failed.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
