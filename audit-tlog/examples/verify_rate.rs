//! How many entries a second are verified: `cargo run --release -p audit-tlog --example verify_rate
//! [entries] [workers]`. Entries have three groups of about the size that real ones have; a tenth of
//! them is erased.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a measurement")]

use std::convert::Infallible;
use std::time::Instant;

use audit_tlog::evidence::{Composer, EvidenceLine, Manifest};
use audit_tlog::leaf::{disclosure, disclosure_digest, leaf_hash, salts};
use audit_tlog::verify::{Options, verify_blocks};
use audit_tlog::{
    Basis, Checkpoint, Control, Group, Kind, Leaf, Origin, Seed, SigningKey, Timestamp, Tree,
};
use uuid::Uuid;

const BLOCK: usize = 256 * 1024;

fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .map(|text| text.parse::<u64>().unwrap());
    let entries = arguments.next().unwrap_or(200_000).max(2_000);
    let workers = arguments.next().unwrap_or(2) as usize;
    let tenant = Uuid::from_u128(1);
    let origin = Origin::parse("logs.example.com").unwrap();
    let key = SigningKey::from_seed(&origin.for_tenant(tenant, 1), &[1; 32]).unwrap();
    let erased = |seq: u64| seq < entries / 10;

    let mut tree = Tree::new();
    let stored: Vec<_> = (0..entries)
        .map(|seq| {
            let (leaf, disclosures) = entry(seq, entries, tenant);
            tree.push(leaf_hash(leaf.as_bytes()));
            (leaf, disclosures)
        })
        .collect();
    let manifest = Manifest {
        tenant_id: tenant,
        origin,
        created_at: Timestamp::MAX,
        size: entries,
        root: tree.root(),
        filter: None,
        withheld: Vec::new(),
    };
    let head = Checkpoint::new(key.name(), entries, tree.root()).unwrap();
    let mut blocks = Vec::new();
    let mut out = String::new();
    let mut composer = Composer::new(&manifest, &mut out);
    let note = head.sign(&[&key]).unwrap().encode();
    composer.checkpoint(&note, &mut out).unwrap();
    composer
        .vkey(&key.verifying_key().encode(), &mut out)
        .unwrap();
    for (seq, (leaf, disclosures)) in (0..).zip(&stored) {
        let line = EvidenceLine {
            seq,
            leaf: leaf.into(),
            disclosures: disclosures
                .each_ref()
                .map(|one| one.as_deref().filter(|_| !erased(seq)).map(Into::into)),
        };
        composer.entry(line, &mut out).unwrap();
        if out.len() >= BLOCK {
            blocks.push(Ok::<_, Infallible>(std::mem::take(&mut out).into_bytes()));
        }
    }
    composer.finish(&mut out).unwrap();
    blocks.push(Ok(out.into_bytes()));
    drop(stored);
    let bytes: usize = blocks.iter().flatten().map(Vec::len).sum();

    let (started, busy) = (Instant::now(), cpu_seconds());
    let report = verify_blocks(blocks.into_iter(), Options::default(), workers, |_| ()).unwrap();
    let seconds = started.elapsed().as_secs_f64();
    let busy = cpu_seconds()
        .zip(busy)
        .map(|(after, before)| after - before);
    assert!(report.is_verified(), "{:?}", report.findings);
    println!(
        "{entries} entries of {} bytes in {seconds:.2} s with {workers} workers: {:.0} entries/s",
        bytes as u64 / entries,
        entries as f64 / seconds
    );
    if let Some(busy) = busy {
        let each = busy / entries as f64 * 1e6;
        println!("{busy:.2} s of processor time, {each:.2} microseconds an entry");
    }
}

/// The processor time of all threads so far, where Linux tells it in ticks of 10 ms.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The command's name, in brackets, may have spaces in it.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / 100.0)
}

fn entry(seq: u64, entries: u64, tenant: Uuid) -> (String, [Option<String>; 7]) {
    let last = seq + 1 == entries;
    let control = Control::Erase {
        groups: Group::ALL.to_vec(),
        entries: vec![(0, entries / 10 - 1)],
        basis: Basis::parse("gdpr-17").unwrap(),
    };
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&seq.to_be_bytes());
    let salts = salts(&Seed::new(seed));
    let actor = format!(
        "{{\"user_id\":\"user-{}\",\"actor_type\":\"user\"}}",
        seq % 977
    );
    let resource = format!("{{\"resource_type\":\"invoice\",\"resource_id\":\"inv-{seq}\"}}");
    let context = format!(
        "{{\"session_id\":\"s-{seq}\",\"user_agent\":\"Mozilla/5.0 (X11; Linux x86_64)\",\
         \"ip_address\":\"192.0.2.{}\"}}",
        seq % 256
    );
    let after = format!("{{\"amount\": {seq}, \"currency\": \"EUR\", \"approved\": true}}");
    let mut disclosures = [const { None }; 7];
    let mut digests = [None; 7];
    for (group, value) in [
        (Group::Actor, actor),
        (Group::Resource, resource),
        (Group::Context, context),
        (Group::AfterState, after),
    ] {
        let i = group.index();
        disclosures[i] = Some(disclosure(&salts[i], group, &value));
        digests[i] = Some(disclosure_digest(&salts[i], group, &value));
    }
    let at = Timestamp::from_micros(1_764_000_000_000_000 + seq as i64).unwrap();
    let ctl = control.to_json();
    let leaf = Leaf {
        kind: if last { Kind::Erase } else { Kind::Event },
        tenant_id: tenant,
        id: Uuid::from_u128(
            u128::from(seq).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835),
        ),
        created_at: at,
        occurred_at: at,
        action_type: if last { "OTHER" } else { "UPDATE" },
        action: if last { "log.erase" } else { "invoice.approve" },
        outcome: "success",
        severity: "INFO",
        ctl: last.then_some(ctl.as_str()),
        digests: &digests,
    };
    (leaf.encode(), disclosures)
}
