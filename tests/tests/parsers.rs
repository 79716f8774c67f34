//! Every parser of outside bytes, fed bounded: the same bodies as the fuzz targets in
//! `tests/fuzz`, with random bytes and with valid texts that were bent. None may panic, and
//! the bodies' own assertions must hold. `PROPTEST_CASES` makes it longer.

use proptest::prelude::*;

/// A target's name and its body.
type Body = (&'static str, fn(&[u8]));

const BODIES: &[Body] = &[
    ("edge_head", edge::listen::head::fuzz),
    ("edge_body", edge::listen::body::fuzz),
    ("edge_gate", edge::listen::gate::fuzz),
    ("edge_frames", edge::listen::frames::fuzz),
    ("edge_proxy_header", edge::listen::proxy_header::fuzz),
    ("edge_host", edge::route::fuzz_host),
    ("edge_path", edge::route::fuzz_path),
    ("edge_forwarded_for", edge::client::fuzz_forwarded_for),
    ("edge_fail2ban_ini", edge::ban::fail2ban::fuzz_ini),
    ("edge_filter_pattern", edge::ban::filter::fuzz_pattern),
    ("edge_filter_line", edge::ban::filter::fuzz_line),
    ("edge_filter_date", edge::ban::filter::fuzz_date),
    ("edge_firewall_message", edge::firewall::message::fuzz_message),
    ("edge_log_split", edge::log_watch::tail::fuzz_split),
    ("edge_log_glob", edge::log_watch::tail::fuzz_matches),
    ("edge_ban_rows", edge::log_watch::ban_store::fuzz_rows),
    ("vault_openwire", vault::openwire::fuzz),
    ("vault_pair_frame", vault::pair::frame::fuzz),
    ("vault_slot", |data| drop(vault::storage::envelope::parse_slot(data))),
    ("vault_record", |data| drop(vault::storage::envelope::parse_record(data))),
    ("vault_seek_table", seek_table),
    ("vault_sftp_listing", vault::storage::file_server::fuzz_listing),
    ("vault_audit", vault::sequence::audit::fuzz),
    ("vault_export", vault::sequence::export::fuzz),
    ("vault_idempotency_key", |data| drop(vault::api::key::IdempotencyKey::read(data))),
    ("vault_condition", vault::api::records::fuzz_condition),
    ("vault_record_name", record_name),
    ("vault_content_digest", vault::api::files::fuzz_digests),
    ("vault_message_headers", vault::api::messages::fuzz_headers),
    ("vault_certificate_request", vault::pki::read_request),
    ("shared_config", config),
    ("shared_identity", |data| drop(shared::tls::Identity::of(&data.into()))),
];

/// Beginnings that get a parser past its first check.
const SAMPLES: &[&[u8]] = &[
    b"GET /a/b?c=d HTTP/1.1\r\nHost: www.example.org\r\nContent-Length: 5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x08\x06\0\0\0\0\0\0\0\0\0\0\0\0",
    b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\nGET / HTTP/1.1\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0f\xc0\0\x02\x07\xc6\x33\x64\x01\xdc\x04\x01\xbb\x04\0\0GET",
    b"203.0.113.7, [2001:db8::1]:443, 198.51.100.9:80",
    b"OBJ1 s4096 g0000000001 b3 00000000000000000000000000000000       \n",
    b"# {\"owner\":\"erp\",\"label\":\"x\",\"media_type\":\"text/plain\",\"size\":1}\nAGE-SECRET-KEY-1\n#....\n",
    b"sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:, md5=:AAAA:;a=1",
    b"\0\0\0\x0af\0\0\0\x01\0\0\0\x01h\0\0\0\x1dh\0\0\0e\0\0\0\x01\0\0\0\x02ab\0\0\0\x02--\0\0\0\x04\0\0\x81\xa4\0\0\0\x09e\0\0\0f\0\0\0\x01",
    b"\x16\0\0\0\\\0\x01d\x01\0\x01q\0\x01z\x01\0\x04ID:5\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\x01\x04\0\x01n\0\x01{\x01\0\x04ID:5\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0X\0\0\0\x01\0",
    b"\0\0\0\x02\0\x01a\x09\0\x02hi\0\x01b\x0b\0\0\0\x01\0\x01c\x0c\0\0\0\x02\x05\0\0\0\x07\x01\x01",
    b"-----BEGIN CERTIFICATE REQUEST-----\nMIIB\n-----END CERTIFICATE REQUEST-----\n",
    b"[DEFAULT]\na = <b>%(c)s\nc = %%\n[Definition]\nfailregex = ^<a> <HOST>\n  ^%(a)s\n[Init]\nb = <lt_<c>/x>\n",
    b"index,epoch,life,carried,owner,series,number,key,act,text,at,previous,hash\r\n1,1,00000000000000000000000000000009,0,\"erp\",\"INV\",1,\"a\",reserve,\"\",7,0000000000000000000000000000000000000000000000000000000000000000,1111111111111111111111111111111111111111111111111111111111111111\r\n2,,,,,,,,skipped,,,1111111111111111111111111111111111111111111111111111111111111111,2222222222222222222222222222222222222222222222222222222222222222\r\n2,,,,,,,,end,,,,2222222222222222222222222222222222222222222222222222222222222222\r\n",
    b"[{\"index\":1,\"epoch\":1,\"life\":\"00000000000000000000000000000009\",\"carried\":0,\"owner\":\"e\",\"series\":\"I\",\"number\":11,\"key\":\"v\",\"act\":\"lost\",\"text\":\"20 00000000000000000000000000000009\",\"at\":7,\"previous\":\"0000000000000000000000000000000000000000000000000000000000000000\",\"hash\":\"1111111111111111111111111111111111111111111111111111111111111111\"}]",
    b"wait = \"10m\"\nsizes = [\"64MiB\", 5]\n[section]\nlisten = \"127.0.0.1:80\"\n",
];

fn record_name(data: &[u8]) {
    let name = String::from_utf8_lossy(data);
    let _fault = vault::sequence::record::name::checked(vault::sequence::record::Kind::Name, &name);
}

fn seek_table(data: &[u8]) {
    let Some((first, rest)) = data.split_first_chunk() else { return };
    drop(vault::storage::envelope::parse_seek_table(rest, u64::from_le_bytes(*first)));
}

fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let path = std::path::Path::new("bounded.toml");
    let read = shared::config::read_text(path, text, |root| {
        let wait: Option<std::time::Duration> = root.optional("wait");
        let sizes: Vec<shared::config::ByteSize> = root.list("sizes");
        let listen: std::net::SocketAddr = root.section("section").required("listen")?;
        Some((wait, sizes, listen))
    });
    if let Err(faults) = read {
        assert!(!faults.0.is_empty(), "a refusal names its fault");
    }
}

/// Cuts, overwrites and repeats parts of a valid text.
fn bent() -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 0..8);
    (prop::sample::select(SAMPLES), changes).prop_map(|(sample, changes)| {
        let mut bytes = sample.to_vec();
        for (place, byte, kind) in changes {
            if bytes.is_empty() {
                break;
            }
            let at = place.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 => bytes.truncate(at),
                _ => bytes.extend_from_within(at..),
            }
        }
        bytes
    })
}

proptest! {
    #[test]
    fn no_bytes_make_a_parser_panic(data in prop::collection::vec(any::<u8>(), 0..600)) {
        for (_, body) in BODIES {
            body(&data);
        }
    }

    #[test]
    fn no_bent_text_makes_a_parser_panic(data in bent()) {
        for (_, body) in BODIES {
            body(&data);
        }
    }
}

#[test]
fn every_fuzz_target_runs_here_too() {
    let folder = harness::binaries::tree().join("tests/fuzz/fuzz_targets");
    let mut targets: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    targets.sort();
    let mut bodies: Vec<_> = BODIES.iter().map(|(name, _)| (*name).to_owned()).collect();
    bodies.sort();
    assert_eq!(bodies, targets);
}
