//! Promises of the envelope: round trips, refusal of every damage, recovery by stock tools.

use std::io::Cursor;

use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::{prop_assert, prop_assert_eq, proptest};

use super::*;
use crate::storage::object::Metadata;

struct Keys {
    active: age::x25519::Identity,
    escrow: age::x25519::Identity,
}

fn keys() -> Keys {
    Keys { active: age::x25519::Identity::generate(), escrow: age::x25519::Identity::generate() }
}

fn seal(plaintext: &[u8], keys: &Keys) -> (Vec<u8>, Record, ObjectId) {
    seal_labelled(plaintext, keys, "Rechnung \"Ä\" 7.pdf")
}

fn seal_labelled(plaintext: &[u8], keys: &Keys, label: &str) -> (Vec<u8>, Record, ObjectId) {
    let mut sealer = Sealer::labelled(Vec::new(), label).unwrap();
    for piece in plaintext.chunks(300_001) {
        sealer.write(piece).unwrap();
    }
    let sealed = sealer.finish().unwrap();
    let metadata = Metadata {
        owner: "erp".to_owned(),
        key: "k-1".to_owned(),
        label: label.to_owned(),
        media_type: "application/pdf".to_owned(),
        size: sealed.size,
        created: "2026-01-01T00:00:00Z".to_owned(),
        digest: sealed.digest.clone(),
    };
    let record = Record { metadata, identity: sealed.identity.clone() };
    let slot = seal_slot(&record, [&keys.active.to_public(), &keys.escrow.to_public()], 0).unwrap();
    let object = [&slot[..], &slot[..], &sealed.out[..]].concat();
    (object, record, sealed.id)
}

/// What a reader gets out before it is refused, and the refusal.
fn unseal(object: &[u8], record: &Record) -> (Vec<u8>, Option<EnvelopeError>) {
    let mut out = Vec::new();
    let mut opened = match Opened::new(Cursor::new(object), &record.identity, record.metadata.size) {
        Ok(opened) => opened,
        Err(error) => return (out, Some(error)),
    };
    for index in 0..opened.frames() {
        match opened.frame(index) {
            Ok(frame) => out.extend(frame),
            Err(error) => return (out, Some(error)),
        }
    }
    (out, None)
}

/// Compressible and not, in proportions that a seed decides.
fn plaintext(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..length)
        .map(|at| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            if seed.is_multiple_of(2) || at % 3 == 0 { state.to_le_bytes()[0] } else { b'a' }
        })
        .collect()
}

fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(65_536),
        Just(FRAME - 1),
        Just(FRAME),
        Just(FRAME + 1),
        Just(2 * FRAME),
        0..5_000_usize,
        0..3_000_000_usize,
    ]
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(24))]

    #[test]
    fn what_is_sealed_opens_again_whole_and_in_any_order(length in lengths(), seed in any::<u64>()) {
        let keys = keys();
        let text = plaintext(length, seed);
        let (object, record, id) = seal(&text, &keys);
        prop_assert!(verify(&object[..], &id).is_ok());
        for key in [&keys.active, &keys.escrow] {
            prop_assert_eq!(&read_slots(&object[..2 * SLOT], std::slice::from_ref(key)).unwrap(), &record);
        }
        let (out, refused) = unseal(&object, &record);
        prop_assert!(refused.is_none(), "{refused:?}");
        prop_assert!(out == text);
        let mut opened = Opened::new(Cursor::new(&object), &record.identity, record.metadata.size).unwrap();
        for index in (0..opened.frames()).rev() {
            let start = index * FRAME;
            prop_assert!(opened.frame(index).unwrap() == text[start..text.len().min(start + FRAME)]);
        }
    }

    #[test]
    fn damage_of_any_kind_is_refused_and_only_a_correct_prefix_released(
        length in lengths(),
        seed in any::<u64>(),
        at in any::<proptest::sample::Index>(),
        bit in 0_u8..8,
        kind in 0_u8..4,
    ) {
        let keys = keys();
        let text = plaintext(length, seed);
        let (mut object, record, id) = seal(&text, &keys);
        let body = usize::try_from(BODY).unwrap();
        let place = body + at.index(object.len() - body);
        match kind {
            0 => object[place] ^= 1 << bit,
            1 => object.truncate(place),
            2 => object.extend(std::iter::repeat_n(bit, 1 + at.index(70_000))),
            _ => {
                let other = seal(&plaintext(length, !seed), &keys).0;
                object.splice(body.., other[body..].iter().copied());
            }
        }
        prop_assert!(verify(&object[..], &id).is_err());
        let (out, refused) = unseal(&object, &record);
        prop_assert!(text.starts_with(&out), "released {} bytes that were never written", out.len());
        prop_assert!(refused.is_some(), "damage of kind {kind} at {place} went through");
    }

    #[test]
    fn one_damaged_slot_is_survived_by_the_other_and_two_are_refused(
        at in 0..SLOT, bit in 0_u8..8, second in any::<bool>(),
    ) {
        let keys = keys();
        let (mut object, record, id) = seal(b"text", &keys);
        object[at + if second { SLOT } else { 0 }] ^= 1 << bit;
        prop_assert_eq!(read_slots(&object[..2 * SLOT], std::slice::from_ref(&keys.active)).unwrap(), record);
        prop_assert!(verify(&object[..], &id).is_ok());
        object[at + if second { 0 } else { SLOT }] ^= 1 << bit;
        prop_assert!(read_slots(&object[..2 * SLOT], std::slice::from_ref(&keys.active)).is_err());
        prop_assert!(verify(&object[..], &id).is_err());
    }

    #[test]
    fn no_bytes_make_a_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..5_000), total in any::<u64>()) {
        let _ = parse_slot(&bytes);
        let _ = parse_record(&bytes);
        let _ = parse_seek_table(&bytes, total);
        let identity = age::x25519::Identity::generate();
        let _ = read_slots(&bytes, &[identity]);
        prop_assert!(verify(&bytes[..], &ObjectId::new([0; 32])).is_err());
    }

    #[test]
    fn a_changed_seek_table_is_refused(frames in 0_usize..6, at in any::<proptest::sample::Index>(), bit in 0_u8..8) {
        let lengths: Vec<_> = (0..frames).map(|index| {
            (1000 + u32::try_from(index).unwrap(), if index + 1 == frames { 7 } else { 1 << 20 })
        }).collect();
        let mut bytes = seek_table::write_seek_table(&lengths).unwrap();
        let total = lengths.iter().map(|(short, _)| u64::from(*short)).sum::<u64>() + bytes.len() as u64;
        let table = parse_seek_table(&bytes, total).unwrap();
        prop_assert_eq!(table.frames(), frames);
        let place = at.index(bytes.len());
        bytes[place] ^= 1 << bit;
        prop_assert!(parse_seek_table(&bytes, total).map_or(true, |changed| changed != table));
    }
}

#[test]
fn the_longest_metadata_the_api_lets_through_fits_a_record() {
    let keys = keys();
    let (_, mut record, _) = seal(b"", &keys);
    record.metadata.owner = "o".repeat(64);
    record.metadata.key = "\"".repeat(shared::api::MAX_KEY);
    record.metadata.label = "\u{1}".repeat(shared::api::MAX_LABEL);
    record.metadata.media_type = "\"".repeat(127);
    record.metadata.size = u64::MAX;
    for _ in 0..50 {
        let slot = seal_slot(&record, [&keys.active.to_public(), &keys.escrow.to_public()], 0).unwrap();
        assert_eq!(slot.len(), SLOT);
    }
    record.metadata.media_type = "\u{1}".repeat(2000);
    let refused = seal_slot(&record, [&keys.active.to_public(), &keys.escrow.to_public()], 0);
    assert!(matches!(refused, Err(EnvelopeError::TooLong)));
}

#[test]
fn a_label_too_long_for_a_record_stands_whole_in_the_body() {
    let keys = keys();
    let (most, cut) = (shared::api::MAX_LABEL, RECORD_LABEL);
    let fitting = [String::new(), "a".repeat(cut), "ä".repeat(cut / 2)];
    let long = [format!("{}ä", "a".repeat(cut - 1)), "\u{1f5c4}".repeat(most / 4), "\0".repeat(most)];
    for (label, is_long) in
        fitting.iter().map(|label| (label, false)).chain(long.iter().map(|label| (label, true)))
    {
        for length in [0, 5, FRAME + 5] {
            let text = plaintext(length, 3);
            let (object, record, _) = seal_labelled(&text, &keys, label);
            let read = read_slots(&object[..2 * SLOT], std::slice::from_ref(&keys.active)).unwrap();
            assert_eq!(read.metadata.label.len() > cut, is_long);
            assert_eq!(read.metadata.label == *label, !is_long);
            let again = seal_slot(&read, [&keys.active.to_public(), &keys.escrow.to_public()], 1).unwrap();
            assert_eq!(
                read_slots(&again, std::slice::from_ref(&keys.active)).unwrap(),
                read,
                "a record written again stays as it is"
            );
            let mut opened =
                Opened::new(Cursor::new(&object), &record.identity, record.metadata.size).unwrap();
            assert_eq!(opened.label().unwrap().as_ref(), is_long.then_some(label));
            let (out, refused) = unseal(&object, &record);
            assert!(refused.is_none() && out == text);
        }
    }
    assert!(matches!(Sealer::labelled(Vec::new(), &"a".repeat(most + 1)), Err(EnvelopeError::TooLong)));
}

#[test]
fn a_record_for_another_key_says_so() {
    let (object, _, _) = seal(b"text", &keys());
    let refused = read_slots(&object[..2 * SLOT], &[age::x25519::Identity::generate()]);
    assert!(matches!(refused, Err(EnvelopeError::ForeignKey)));
}

/// Debian's `age` and `zstd`, with the commands that the manual gives an operator.
#[test]
fn stock_age_and_zstd_recover_an_object_with_either_key() {
    use age::secrecy::ExposeSecret;
    let keys = keys();
    let folder = tempfile::tempdir().unwrap();
    for (round, length) in [0, 1, 65_536, FRAME, 2 * FRAME + 12_345].into_iter().enumerate() {
        let text = plaintext(length, 7);
        let long = "a long label, ".repeat(if round == 0 || round == 4 { 100 } else { 0 });
        let (object, record, _) = seal_labelled(&text, &keys, &long);
        std::fs::write(folder.path().join("f"), &object).unwrap();
        for (name, key) in [("active", &keys.active), ("escrow", &keys.escrow)] {
            std::fs::write(folder.path().join(name), key.to_string().expose_secret()).unwrap();
            for start in [65, 4161] {
                let script = format!(
                    "set -e; tail -c +{start} f | head -c 4032 | age -d -i {name} >id; \
                     set -o pipefail; tail -c +8193 f | age -d -i id | zstd -dq >out; head -n 1 id"
                );
                let run = std::process::Command::new("bash")
                    .args(["-c", &script])
                    .current_dir(folder.path())
                    .output()
                    .unwrap();
                assert!(run.status.success(), "age and zstd must be installed: {run:?}");
                assert!(std::fs::read(folder.path().join("out")).unwrap() == text, "round {round}");
                let head = String::from_utf8(run.stdout).unwrap();
                assert!(head.contains(&record.metadata.digest), "{head}");
            }
        }
    }
}

#[test]
fn no_object_is_longer_than_is_said_of_its_size() {
    let label = "x".repeat(4096);
    for size in [0, 1, 1000, 65_536, FRAME - 1, FRAME, 3 * FRAME + 5] {
        let mut noise = vec![0; size];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let mut sealer = Sealer::labelled(Vec::new(), &label).unwrap();
        sealer.write(&noise).unwrap();
        let length = BODY + sealer.finish().unwrap().out.len() as u64;
        assert!(length <= longest(size as u64), "{size}: {length}");
    }
}
