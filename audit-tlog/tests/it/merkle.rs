//! The tree and its proofs, against RFC 6962's known roots and another implementation.

use std::convert::Infallible;
use std::ops::Range;

use audit_tlog::leaf::{leaf_hash, node_hash};
use audit_tlog::merkle::{
    consistency_nodes, consistency_proof, inclusion_nodes, inclusion_proof, join_peaks, peak_runs,
    range_peaks, root, root_ranges, subtree_root, verify_consistency, verify_inclusion,
};
use audit_tlog::{Hash, ProofFault, Tree};
use ct_merkle::mem_backed_tree::MemoryBackedTree;
use proptest::prelude::*;
use sha2::Sha256;

const SIZES: u64 = 131;

fn leaf_data(i: u64) -> Vec<u8> {
    format!("leaf {i}").into_bytes()
}

fn leaves(size: u64) -> Vec<Hash> {
    (0..size).map(|i| leaf_hash(&leaf_data(i))).collect()
}

fn ask(leaves: &[Hash]) -> impl FnMut(Range<u64>) -> Result<Hash, Infallible> {
    |range| {
        Ok(subtree_root(
            &leaves[range.start as usize..range.end as usize],
        ))
    }
}

fn include(index: u64, leaves: &[Hash]) -> Vec<Hash> {
    inclusion_proof(index, leaves.len() as u64, ask(leaves)).unwrap()
}

fn consist(old: u64, leaves: &[Hash]) -> Vec<Hash> {
    consistency_proof(old, leaves.len() as u64, ask(leaves)).unwrap()
}

fn concat(proof: &[Hash]) -> Vec<u8> {
    proof.iter().flat_map(|hash| hash.0).collect()
}

#[test]
fn roots_are_those_of_the_reference_implementation_of_rfc_6962() {
    let data: [&[u8]; 8] = [
        b"",
        b"\x00",
        b"\x10",
        b"\x20\x21",
        b"\x30\x31",
        b"\x40\x41\x42\x43",
        b"\x50\x51\x52\x53\x54\x55\x56\x57",
        b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
    ];
    let roots = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];
    let mut tree = Tree::new();
    for (size, expected) in roots.iter().enumerate() {
        assert_eq!(tree.root().to_hex(), *expected, "size {size}");
        if let Some(data) = data.get(size) {
            tree.push(leaf_hash(data));
        }
    }
}

#[test]
fn every_tree_and_proof_is_that_of_another_implementation() {
    let all = leaves(SIZES);
    let mut other = MemoryBackedTree::<Sha256, Vec<u8>>::new();
    let mut tree = Tree::new();
    let mut older = vec![other.root()];
    for size in 0..=SIZES {
        let here = &all[..size as usize];
        assert_eq!(other.root().as_bytes().as_slice(), tree.root().as_bytes());
        assert_eq!(root(here), tree.root());
        assert_eq!(tree.size(), size);
        assert_eq!(
            Tree::from_parts(size, tree.peaks().to_vec()).as_ref(),
            Some(&tree)
        );
        assert_eq!(
            Tree::from_bytes(size, &tree.to_bytes()).as_ref(),
            Some(&tree)
        );
        let peaks: Vec<_> = root_ranges(size)
            .into_iter()
            .map(|range| ask(here)(range).unwrap())
            .collect();
        assert_eq!(peaks, tree.peaks());

        for index in 0..size {
            let proof = include(index, here);
            assert_eq!(
                concat(&proof),
                other.prove_inclusion(index as usize).as_bytes()
            );
            assert_eq!(
                verify_inclusion(&all[index as usize], index, size, &proof, &tree.root()),
                Ok(())
            );
        }
        for old in 0..size {
            let proof = consist(old, here);
            if old > 0 {
                let theirs = other.prove_consistency((size - old) as usize);
                assert_eq!(concat(&proof), theirs.as_bytes(), "{old} to {size}");
            }
            let old_root = Hash::from_slice(older[old as usize].as_bytes()).unwrap();
            assert_eq!(
                verify_consistency(old, &old_root, size, &tree.root(), &proof),
                Ok(())
            );
        }
        if size < SIZES {
            other.push(leaf_data(size));
            tree.push(all[size as usize]);
            older.push(other.root());
        }
    }
}

#[test]
fn every_range_of_a_proof_is_joined_from_perfect_subtrees() {
    let all = leaves(SIZES);
    for size in 1..=SIZES {
        let nodes = (0..size)
            .flat_map(|index| inclusion_nodes(index, size).unwrap())
            .chain((0..size).flat_map(|old| consistency_nodes(old, size).unwrap()));
        for range in nodes {
            let mut peaks = Vec::new();
            for peak in range_peaks(range.clone()) {
                let len = peak.end - peak.start;
                assert!(len.is_power_of_two() && peak.start % len == 0, "{peak:?}");
                peaks.push(ask(&all)(peak).unwrap());
            }
            assert!(peaks.len() == 1 || range.end == size);
            assert_eq!(join_peaks(&peaks), ask(&all)(range).unwrap());
        }
    }
}

#[test]
fn a_proof_of_what_is_not_in_the_tree_is_refused() {
    let all = leaves(3);
    let fault = |index, size| verify_inclusion(&all[0], index, size, &[], &root(&all[..1]));
    assert_eq!(fault(0, 1), Ok(()));
    assert_eq!(fault(0, 0), Err(ProofFault::BadIndex));
    assert_eq!(fault(1, 1), Err(ProofFault::BadIndex));
    assert_eq!(fault(u64::MAX, 1), Err(ProofFault::BadIndex));
    assert_eq!(fault(0, 2), Err(ProofFault::BadLength));
    assert_eq!(fault(0, u64::MAX), Err(ProofFault::BadLength));
    assert_eq!(inclusion_nodes(0, 0), None);
    assert_eq!(inclusion_nodes(3, 3), None);
    assert_eq!(consistency_nodes(4, 3), None);
    assert_eq!(include(3, &all), []);
    assert_eq!(consist(4, &all), []);
}

#[test]
fn consistency_with_the_empty_and_with_the_same_tree_is_decided_by_the_roots() {
    let all = leaves(3);
    let (empty, new, other) = (root(&[]), root(&all), root(&all[..2]));
    assert_eq!(verify_consistency(0, &empty, 3, &new, &[]), Ok(()));
    assert_eq!(verify_consistency(0, &empty, 0, &empty, &[]), Ok(()));
    assert_eq!(verify_consistency(3, &new, 3, &new, &[]), Ok(()));
    for (old_size, old, new_size, new, proof, fault) in [
        (0, other, 3, new, &[][..], ProofFault::RootMismatch),
        (0, empty, 3, new, &[new][..], ProofFault::BadLength),
        (0, empty, 0, other, &[][..], ProofFault::RootMismatch),
        (3, new, 3, other, &[][..], ProofFault::RootMismatch),
        (3, new, 3, new, &[new][..], ProofFault::BadLength),
        (4, new, 3, new, &[][..], ProofFault::BadSize),
        (2, other, 3, new, &[][..], ProofFault::BadLength),
        (3, new, 4, new, &[][..], ProofFault::BadLength),
    ] {
        assert_eq!(
            verify_consistency(old_size, &old, new_size, &new, proof),
            Err(fault)
        );
    }
}

#[test]
fn parts_that_do_not_fit_the_size_make_no_tree() {
    let tree: Tree = leaves(5).into_iter().collect();
    assert_eq!(tree.peaks().len(), 2);
    assert_eq!(Tree::from_parts(4, tree.peaks().to_vec()), None);
    assert_eq!(Tree::from_parts(7, tree.peaks().to_vec()), None);
    assert_eq!(Tree::from_parts(0, vec![]), Some(Tree::new()));
    assert_eq!(Tree::from_parts(1 << 63, vec![tree.root()]), None);
    assert_eq!(Tree::from_bytes(5, &tree.to_bytes()[1..]), None);
    assert_eq!(Tree::from_bytes(0, &[]), Some(Tree::new()));
}

#[test]
fn proofs_of_the_largest_trees_are_listed() {
    let size = u64::MAX;
    assert_eq!(inclusion_nodes(size - 1, size).unwrap().len(), 63);
    assert_eq!(inclusion_nodes(0, size).unwrap().len(), 64);
    assert_eq!(root_ranges(size).len(), 64);
    assert!(consistency_nodes(size - 1, size).is_some());
}

/// A change to one bit of one hash, or to the number of hashes.
fn tamper(proof: &[Hash], how: usize, bit: usize) -> Vec<Hash> {
    let mut proof = proof.to_vec();
    match how % 4 {
        0 => proof.push(Hash([0; 32])),
        1 if !proof.is_empty() => drop(proof.remove(bit % proof.len())),
        2 if proof.len() > 1 => {
            let at = bit % (proof.len() - 1);
            proof.swap(at, at + 1);
        }
        _ if !proof.is_empty() => {
            let at = bit % proof.len();
            proof[at].0[bit / 8 % 32] ^= 1 << (bit % 8);
        }
        _ => proof.push(Hash([0; 32])),
    }
    proof
}

proptest! {
    #[test]
    fn tampered_inclusion_proofs_are_refused(
        (size, index) in (1..200_u64).prop_flat_map(|size| (Just(size), 0..size)),
        how in 0..4_usize, bit in 0..4096_usize, elsewhere in 0..300_u64,
    ) {
        let all = leaves(size);
        let (leaf, root) = (all[index as usize], root(&all));
        let proof = include(index, &all);
        prop_assert_eq!(verify_inclusion(&leaf, index, size, &proof, &root), Ok(()));
        prop_assert!(verify_inclusion(&leaf, index, size, &tamper(&proof, how, bit), &root).is_err());
        if elsewhere != index {
            prop_assert!(verify_inclusion(&leaf, elsewhere, size, &proof, &root).is_err());
        }
        let wrong = node_hash(&leaf, &leaf);
        prop_assert!(verify_inclusion(&wrong, index, size, &proof, &root).is_err());
        prop_assert!(verify_inclusion(&leaf, index, size, &proof, &wrong).is_err());
    }

    #[test]
    fn tampered_consistency_proofs_are_refused(
        (new, old) in (2..200_u64).prop_flat_map(|new| (Just(new), 1..new)),
        how in 0..4_usize, bit in 0..4096_usize,
    ) {
        let all = leaves(new);
        let (old_root, new_root) = (root(&all[..old as usize]), root(&all));
        let proof = consist(old, &all);
        prop_assert_eq!(verify_consistency(old, &old_root, new, &new_root, &proof), Ok(()));
        let tampered = tamper(&proof, how, bit);
        prop_assert!(verify_consistency(old, &old_root, new, &new_root, &tampered).is_err());
        prop_assert!(verify_consistency(old, &new_root, new, &new_root, &proof).is_err());
        prop_assert!(verify_consistency(old, &old_root, new, &old_root, &proof).is_err());
    }

    #[test]
    fn any_numbers_are_answered(
        index in any::<u64>(), size in any::<u64>(), count in 0..70_usize,
    ) {
        let proof = vec![Hash([7; 32]); count];
        prop_assert!(verify_inclusion(&Hash([1; 32]), index, size, &proof, &Hash([2; 32])).is_err());
        prop_assert!(
            verify_consistency(index, &Hash([1; 32]), size, &Hash([2; 32]), &proof).is_err()
        );
    }
}

#[test]
fn runs_of_tile_roots_are_the_peaks() {
    assert_eq!(peak_runs(0), []);
    assert_eq!(
        peak_runs(5 * 65_536 + 2 * 256 + 3),
        [
            (2, 0..4),
            (2, 4..5),
            (1, 1_280..1_282),
            (0, 328_192..328_194),
            (0, 328_194..328_195)
        ]
    );
    for size in 0..700 {
        let leaves = peak_runs(size).into_iter().map(|(level, run)| {
            let below = 8 * u32::from(level);
            run.start << below..run.end << below
        });
        assert_eq!(leaves.collect::<Vec<_>>(), root_ranges(size));
    }
}
