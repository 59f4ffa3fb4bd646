//! Verifying evidence, without a server.

use std::process::Output;

use audit_tlog::evidence::{Composer, EvidenceLine, FolderManifest, ListedFile, Manifest};
use audit_tlog::leaf::{disclosure, disclosure_digest, leaf_hash};
use audit_tlog::{
    Basis, Checkpoint, Control, Cosigner, Group, Hash, Kind, Leaf, Note, Origin, Salt, SigningKey,
    Timestamp, Tree,
};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use uuid::Uuid;

use crate::server::audit;
use crate::{json_lines, text};

/// A log of `size` entries: the third is an erasure of the first one's actor.
struct Log {
    key: SigningKey,
    entries: Vec<(String, Option<String>)>,
    notes: Vec<Note>,
    manifest: Manifest,
}

impl Log {
    fn new(size: u64) -> Self {
        Self::restored(size, None)
    }

    /// One that was continued in a second epoch, whose entry stands at a position.
    fn restored(size: u64, epoch_at: Option<u64>) -> Self {
        let tenant = Uuid::from_u128(7);
        let origin = Origin::parse("logs.example.com").unwrap();
        let mut key = SigningKey::from_seed(&origin.for_tenant(tenant, 1), &[1; 32]).unwrap();
        let mut tree = Tree::new();
        let mut notes = Vec::new();
        let mut entries = Vec::new();
        for seq in 0..size {
            let salt = Salt([seq as u8; 16]);
            let actor = format!("{{\"user_id\":\"user-{seq}\"}}");
            let erase = (seq == 2).then(|| Control::Erase {
                groups: vec![Group::Actor],
                entries: vec![(0, 0)],
                basis: Basis::parse("gdpr-17").unwrap(),
            });
            let epoch = (Some(seq) == epoch_at).then(|| Control::Epoch {
                epoch: 2,
                size: seq,
                root: tree.root(),
                basis: Basis::parse("restore").unwrap(),
            });
            if epoch.is_some() {
                key = key.renamed(&origin.for_tenant(tenant, 2)).unwrap();
            }
            let control = erase.or(epoch);
            let kind = control.as_ref().map_or(Kind::Event, Control::kind);
            let ctl = control.as_ref().map(Control::to_json);
            let action = match kind {
                Kind::Event => "page.view".to_owned(),
                kind => format!("log.{kind}"),
            };
            let mut digests = [None; 7];
            digests[0] = Some(disclosure_digest(&salt, Group::Actor, &actor));
            let at = Timestamp::from_micros(1_764_000_000_000_000 + seq as i64).unwrap();
            let leaf = Leaf {
                kind,
                tenant_id: tenant,
                id: Uuid::from_u128(seq.into()),
                created_at: at,
                occurred_at: at,
                action_type: if ctl.is_some() { "OTHER" } else { "VIEW" },
                action: &action,
                outcome: "success",
                severity: "INFO",
                ctl: ctl.as_deref(),
                digests: &digests,
            }
            .encode();
            tree.push(leaf_hash(leaf.as_bytes()));
            let head = Checkpoint::new(key.name(), tree.size(), tree.root()).unwrap();
            notes.push(head.sign(&[&key]).unwrap());
            let shown = (seq != 0).then(|| disclosure(&salt, Group::Actor, &actor));
            entries.push((leaf, shown));
        }
        let manifest = Manifest {
            tenant_id: tenant,
            origin,
            created_at: Timestamp::MAX,
            size,
            root: tree.root(),
            filter: None,
            withheld: Vec::new(),
        };
        Self {
            key,
            entries,
            notes,
            manifest,
        }
    }

    fn stream(&self) -> String {
        let mut out = String::new();
        let mut composer = Composer::new(&self.manifest, &mut out);
        let last = self.notes.last().unwrap().encode();
        composer.checkpoint(&last, &mut out).unwrap();
        let vkey = self.key.verifying_key().encode();
        composer.vkey(&vkey, &mut out).unwrap();
        for (seq, (leaf, actor)) in (0..).zip(&self.entries) {
            let mut disclosures = [const { None }; 7];
            disclosures[0] = actor.as_deref().map(Into::into);
            let leaf = leaf.into();
            let line = EvidenceLine {
                seq,
                leaf,
                disclosures,
            };
            composer.entry(line, &mut out).unwrap();
        }
        composer.finish(&mut out).unwrap();
        out
    }

    /// The folder `bundle` within another.
    fn folder(&self) -> TempDir {
        let within = TempDir::new().unwrap();
        let at = within.path().join("bundle");
        std::fs::create_dir(&at).unwrap();
        let stream = self.stream();
        let positions = stream.lines().skip(3).map(|line| format!("{line}\n"));
        let mut files = Vec::new();
        for (name, text) in [
            ("checkpoint", self.notes.last().unwrap().encode()),
            ("keys", format!("{}\n", self.key.verifying_key())),
            ("log.ndjson", positions.collect()),
        ] {
            std::fs::write(at.join(name), &text).unwrap();
            files.push(ListedFile {
                name: name.into(),
                bytes: text.len() as u64,
                sha256: Hash(Sha256::digest(text.as_bytes()).into()),
            });
        }
        let manifest = self.manifest.clone();
        let listing = FolderManifest { manifest, files }.encode();
        std::fs::write(at.join("manifest.json"), listing).unwrap();
        within
    }
}

fn verify(within: &TempDir, arguments: &[&str], code: i32) -> Output {
    audit(&[&["verify"], arguments].concat())
        .current_dir(within)
        // Settings of a server that can't be meant so don't matter.
        .env("AUDIT_URL", "ftp://nowhere")
        .assert()
        .code(code)
        .get_output()
        .clone()
}

#[test]
fn an_untouched_bundle_is_0_and_says_up_to_where_it_reaches() {
    let log = Log::new(5);
    let within = log.folder();
    let output = verify(&within, &["bundle"], 0);
    let report = text(&output.stdout);
    let first = report.lines().next().unwrap();
    assert!(first.starts_with("Verified up to size 5, accepted 2025-11-24T16:00:00.000004Z"));
    assert!(first.contains("; signed by a key that only the bundle names; a tail"));
    assert!(first.contains("can't be seen"), "{first}");
    assert!(
        report.contains("position 0: actor: erased by seq 2"),
        "{report}"
    );
    assert!(output.stderr.is_empty());

    let stream = within.path().join("stream");
    std::fs::write(&stream, log.stream()).unwrap();
    let packed = zstd::encode_all(log.stream().as_bytes(), 3).unwrap();
    std::fs::write(within.path().join("stream.zst"), packed).unwrap();
    for source in ["bundle", "stream", "stream.zst"] {
        let vkey = log.key.verifying_key().encode();
        let output = verify(&within, &["--json", "--key", &vkey, source], 0);
        let report = &json_lines(&output)[0];
        assert_eq!(report["verified"], true);
        assert_eq!(report["key_trusted"], true);
        assert!(report["known_size"].is_null() && report["cosigned_at"].is_null());
        assert_eq!(report["holes"][0]["by"], 2);
        assert_eq!(report["warnings"].as_array().unwrap().len(), 0);
    }
    let mut piped = audit(&["verify", "-"]);
    piped.write_stdin(log.stream()).assert().code(0);
}

#[test]
fn an_epoch_is_named_and_what_it_took_from_a_known_checkpoint_is_a_finding() {
    let log = Log::restored(6, Some(4));
    let within = log.folder();
    let known = |name: &str, note: &Note| {
        std::fs::write(within.path().join(name), note.encode()).unwrap();
    };
    known("kept", &log.notes[3]);
    // Of the entries that the restore took.
    known("lost", Log::new(9).notes.last().unwrap());
    let output = verify(&within, &["--known", "kept", "bundle"], 0);
    let report = text(&output.stdout);
    for line in [
        "Epoch 2 since position 4, where the log was continued (restore)",
        "Continues the known head of size 4",
    ] {
        assert!(report.contains(line), "{report}");
    }
    let output = verify(&within, &["--json", "--known", "lost", "bundle"], 1);
    let report = &json_lines(&output)[0];
    assert_eq!(report["epochs"][0]["seq"], 4);
    let finding = &report["findings"][0];
    assert_eq!(finding["code"], "rollback");
    let positions = (finding["from"].as_u64(), finding["to"].as_u64());
    assert_eq!(positions, (Some(4), Some(8)));
}

#[test]
fn a_changed_bundle_is_1_and_names_the_position_or_file() {
    let within = Log::new(5).folder();
    let path = within.path().join("bundle/log.ndjson");
    let before = std::fs::read_to_string(&path).unwrap();
    for (from, to, expected) in [
        ("{\"seq\":3", "{\"seq\":4", Some(3)),
        ("{\"seq\":3", "\"seq\":3", Some(3)),
        ("VIEW", "EDIT", Some(0)),
    ] {
        std::fs::write(&path, before.replacen(from, to, 1)).unwrap();
        let report = &json_lines(&verify(&within, &["--json", "bundle"], 1))[0];
        assert_eq!(report["findings"][0]["from"].as_u64(), expected, "{report}");
        let output = verify(&within, &["bundle"], 1);
        assert!(text(&output.stdout).starts_with("NOT VERIFIED"));
    }
    // Another spelling of the same strings.
    std::fs::write(&path, before.replace("\"leaf\":", " \"leaf\" : ")).unwrap();
    let output = verify(&within, &["bundle"], 0);
    assert!(text(&output.stdout).contains("written again"));

    std::fs::write(&path, before).unwrap();
    let keys = within.path().join("bundle/keys");
    std::fs::write(keys, "x\n").unwrap();
    let output = verify(&within, &["bundle"], 1);
    assert!(text(&output.stdout).contains("keys: not the file that the manifest lists"));
}

#[test]
fn quiet_prints_nothing_but_what_was_found() {
    let within = Log::new(5).folder();
    let output = verify(&within, &["--quiet", "bundle"], 0);
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("", ""));
    let path = within.path().join("bundle/log.ndjson");
    let changed = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, changed.replacen("VIEW", "EDIT", 1)).unwrap();
    let report = &json_lines(&verify(&within, &["--json", "--quiet", "bundle"], 1))[0];
    let output = verify(&within, &["--quiet", "bundle"], 1);
    let lines: Vec<&str> = text(&output.stdout).lines().collect();
    assert_eq!(report["findings_total"], lines.len(), "{lines:#?}");
    assert!(
        lines.iter().any(|line| line.starts_with("position 0")),
        "{lines:#?}"
    );
    assert!(
        lines
            .iter()
            .all(|line| !line.to_lowercase().contains("verified"))
    );
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn what_can_not_be_read_is_2_with_one_line() {
    let within = Log::new(5).folder();
    std::fs::create_dir(within.path().join("empty")).unwrap();
    std::fs::write(within.path().join("note"), "x").unwrap();
    std::fs::write(within.path().join("bad.zst"), "x").unwrap();
    let manifest = within.path().join("bundle/manifest.json");
    let text_of = std::fs::read_to_string(&manifest).unwrap();
    let mut attempts = vec![
        vec!["nowhere"],
        vec!["empty"],
        vec!["bad.zst"],
        vec!["bundle", "--known", "nowhere"],
        vec!["bundle", "--known", "note"],
    ];
    for arguments in attempts.drain(..) {
        let output = verify(&within, &arguments, 2);
        assert_eq!(text(&output.stderr).lines().count(), 1, "{arguments:?}");
    }
    verify(&within, &["bundle", "--key", "x"], 2);
    std::fs::write(&manifest, text_of.replacen("\"size\":5", "\"size\":6", 1)).unwrap();
    let output = verify(&within, &["bundle"], 2);
    assert!(text(&output.stderr).contains("manifest.json"));
}

#[test]
fn a_known_checkpoint_or_a_witness_finds_a_tail_that_was_cut() {
    let (old, new) = (Log::new(5), Log::new(9));
    let within = old.folder();
    std::fs::write(within.path().join("later"), new.notes[8].encode()).unwrap();
    let report = &json_lines(&verify(
        &within,
        &["--json", "bundle", "--known", "later"],
        1,
    ))[0];
    assert_eq!(report["findings"][0]["code"], "rollback");

    let witness = SigningKey::from_seed("witness.example", &[9; 32]).unwrap();
    let witness = Cosigner::from(witness);
    let vkey = witness.verifying_key().encode();
    verify(&within, &["bundle", "--witness", &vkey], 1);
    let mut cosigned = Log::new(5);
    let note = cosigned.notes.last_mut().unwrap();
    let line = witness.cosign(note.text(), 1_764_000_000).unwrap();
    note.add(line).unwrap();
    let output = verify(&cosigned.folder(), &["bundle", "--witness", &vkey], 0);
    let report = text(&output.stdout);
    assert!(
        report.contains("Cosigned by witness.example at 2025-11-24T16:00:00Z, up to size 5"),
        "{report}"
    );
}

#[test]
fn the_first_line_promises_what_was_shown_and_no_more() {
    let witness = Cosigner::from(SigningKey::from_seed("witness.example", &[9; 32]).unwrap());
    let mut log = Log::new(5);
    let note = log.notes.last_mut().unwrap();
    let line = witness.cosign(note.text(), 1_764_000_000).unwrap();
    note.add(line).unwrap();
    let within = log.folder();
    let notes: Vec<_> = log.notes.iter().map(Note::encode).collect();
    for (size, note) in (1..).zip(&notes) {
        std::fs::write(within.path().join(format!("known{size}")), note).unwrap();
    }
    let (key, witness) = (
        log.key.verifying_key().encode(),
        witness.verifying_key().encode(),
    );
    let first = |arguments: &[&str]| {
        let output = verify(&within, &[&["bundle"], arguments].concat(), 0);
        let line = text(&output.stdout).lines().next().unwrap().to_owned();
        line.split_once("000004Z").unwrap().1.to_owned()
    };
    let unknown = "; signed by a key that only the bundle names";
    assert_eq!(
        first(&["--known", "known5"]),
        format!("{unknown}; complete at least up to size 5")
    );
    assert_eq!(
        first(&["--known", "known2", "--known", "known3", "--key", &key]),
        "; complete at least up to size 3"
    );
    assert_eq!(
        first(&["--witness", &witness]),
        format!("{unknown}; as of 2025-11-24T16:00:00Z")
    );
    assert_eq!(
        first(&[
            "--partial",
            "--known",
            "known2",
            "--witness",
            &witness,
            "--key",
            &key
        ]),
        ", not necessarily the whole log; of a log that reaches at least up to size 2; \
         as of 2025-11-24T16:00:00Z"
    );
    let arguments = [
        "--json",
        "bundle",
        "--known",
        "known2",
        "--witness",
        &witness,
    ];
    let report = &json_lines(&verify(&within, &arguments, 0))[0];
    assert_eq!(report["known_size"], 2);
    assert_eq!(report["cosigned_at"], 1_764_000_000);
}

#[test]
fn a_closed_pipe_does_not_change_the_verdict() {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    let stream = Log::new(5).stream();
    for (text, code) in [(stream.replacen("VIEW", "EDIT", 1), 1), (stream, 0)] {
        for format in [&["--json"][..], &[]] {
            let mut child = Command::new(env!("CARGO_BIN_EXE_audit"))
                .args([&["verify", "-"], format].concat())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            // Before there is anything to be read.
            drop(child.stdout.take());
            let mut stdin = child.stdin.take().unwrap();
            stdin.write_all(text.as_bytes()).unwrap();
            drop(stdin);
            let output = child.wait_with_output().unwrap();
            let told = crate::text(&output.stderr);
            assert_eq!((output.status.code(), told), (Some(code), ""));
        }
    }
}

#[test]
fn an_export_that_is_not_the_whole_log_needs_partial() {
    let mut log = Log::new(5);
    log.manifest.withheld = vec![Group::Actor];
    log.entries.iter_mut().for_each(|entry| entry.1 = None);
    let within = log.folder();
    let output = verify(&within, &["bundle"], 1);
    assert!(text(&output.stdout).contains("UNEXPLAINED"));
    let output = verify(&within, &["bundle", "--partial"], 0);
    let report = text(&output.stdout);
    assert!(
        report
            .lines()
            .next()
            .unwrap()
            .contains("not necessarily the whole log")
    );
    assert!(
        report.contains("positions 1 to 4: actor: withheld by this export"),
        "{report}"
    );
}
