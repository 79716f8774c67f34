//! Stories of uploads that are odd, wrong or huge, through a vault pair onto SFTP servers: what is
//! rightful is kept whole, what is not leaves nothing behind, anywhere.
#![expect(clippy::unwrap_used, reason = "a story's own steps fail the story when they fail")]

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use harness::curl::Curl;
use harness::receipts::{Dice, noise};
use harness::sftp_pair::{SftpPair, replicas};
use harness::sftp_server::SftpServer;
use harness::vault_host::PairPlan;
use harness::{extent, wait};

const SOON: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;
const GIB: u64 = 1 << 30;

fn house(storage: &str) -> SftpPair {
    let plan = PairPlan { storage: format!("{storage}\n"), ..PairPlan::default() };
    SftpPair::start_with(plan, SftpServer::start).unwrap()
}

fn nothing_is_left(house: &SftpPair) {
    wait::until("nothing is left", SOON, || {
        let left = house.leftovers()?;
        anyhow::ensure!(left.is_empty(), "{left:?}");
        for server in &house.servers {
            let there = replicas(server)?;
            anyhow::ensure!(there.is_empty(), "{there:?}");
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn uploads_that_break_off_lie_or_are_too_large_leave_nothing_on_spools_and_servers() {
    let house = house("max_file = \"8MiB\"");
    // The one says how long it is, the other does not.
    let transfers = [("Accept", "*/*"), ("Transfer-Encoding", "chunked")];
    for (vault, (name, value)) in transfers.iter().enumerate() {
        let call = house.files(vault).key("broken").header(name, value);
        let call = call.arg("--limit-rate").arg("1M").within(Duration::from_millis(1500));
        let broken = call.body(noise(1, 4 * MIB)).send();
        assert!(broken.is_err(), "the upload was to break off: {broken:?}");
    }
    let digest = "sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:";
    let lying = house.files(0).key("lying").header("Content-Digest", digest).body(noise(2, 3 * MIB));
    let answer = lying.send().unwrap();
    assert_eq!((answer.status, answer.word("code").unwrap().as_str()), (422, "digest_mismatch"));

    // Nobody has these bytes: only a server that reads them all would notice the end.
    let sparse = house.folder.path().join("sparse");
    File::create(&sparse).unwrap().set_len(5 * GIB).unwrap();
    let told = house.folder.path().join("told");
    for (vault, (name, value)) in transfers.iter().enumerate() {
        let call = house.files(vault).key("huge").header(name, value).upload(&sparse);
        let call = call.arg("--output").arg(&told).arg("--write-out").arg("%{http_code} %{size_upload}");
        let said = call.within(SOON).told();
        let (status, sent) = said.split_once(' ').unwrap();
        assert_eq!(status, "413", "{name}: {said} {}", std::fs::read_to_string(&told).unwrap_or_default());
        assert!(sent.parse::<u64>().unwrap() < 256 << 20, "{name}: {sent} bytes were taken");
        assert!(std::fs::read_to_string(&told).unwrap().contains("too_large"));
    }
    nothing_is_left(&house);
    // The keys are still free.
    for key in ["broken", "lying", "huge"] {
        house.files(1).key(key).body("whole this time").send().unwrap().expect(&[201]).unwrap();
    }
}

#[test]
fn empty_files_and_labels_of_any_letters_are_kept_and_stand_in_clear_nowhere() {
    let house = house("");
    // 4,096 bytes: letters of one to four bytes, and those that headers could misread.
    let label: String = "Ünïcode\t\"\u{1F512}, 契約;%00 ".chars().cycle().take(2000).collect();
    let label: String = label.char_indices().take_while(|(at, _)| *at < 4090).map(|(_, one)| one).collect();
    let escaped: String = label.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let upload = |key: &str, body: &[u8]| {
        let call =
            house.files(0).key(key).header("File-Label", &escaped).header("Content-Type", "text/x-secret");
        call.header("Transfer-Encoding", "chunked").body(body).send().unwrap().expect(&[201]).unwrap()
    };
    let bodies = [&b""[..], b"a body of its own"];
    let ids =
        [("none", bodies[0]), ("some", bodies[1])].map(|(key, body)| upload(key, body).word("id").unwrap());
    for (id, body) in ids.iter().zip(bodies) {
        for vault in [0, 1] {
            let read = house.files(vault).to(&format!("/{id}")).send().unwrap().expect(&[200]).unwrap();
            assert_eq!(read.body, body);
            let told = house.files(vault).to(&format!("/{id}/description")).send().unwrap();
            assert_eq!(told.word("label").unwrap(), label);
        }
    }
    wait::until("both replicas", SOON, || {
        anyhow::ensure!(replicas(&house.servers[0])?.len() + replicas(&house.servers[1])?.len() == 4);
        Ok(())
    })
    .unwrap();
    for needle in ["nïcode", "契約", "text/x-secret", "a body of its own", "\"erp\""] {
        let found = house.pair.replicas_with(needle.as_bytes()).unwrap();
        assert!(found.is_empty(), "{needle} stands in clear in {found:?}");
    }
}

/// Writes noise to a file piece by piece: nobody has so much memory.
fn write_noise(file: &Path, length: u64) {
    let mut file = File::create(file).unwrap();
    let mut dice = Dice::new(7);
    let mut left = length;
    while left > 0 {
        let piece = noise(dice.next(), usize::try_from(left.min(8 << 20)).unwrap());
        file.write_all(&piece).unwrap();
        left -= piece.len() as u64;
    }
}

fn part(file: &Path, from: u64, length: u64) -> Vec<u8> {
    use std::io::Seek;
    let mut file = File::open(file).unwrap();
    file.seek(std::io::SeekFrom::Start(from)).unwrap();
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes).unwrap();
    bytes
}

/// Takes minutes and some twenty gibibytes of disk: in the full run alone.
#[test]
fn a_body_of_more_than_four_gibibytes_comes_back_whole_and_in_parts_across_that_mark() {
    if !extent::is_full() {
        return;
    }
    let house = house("max_file = \"5GiB\"");
    let (sent, read) = (house.folder.path().join("sent"), house.folder.path().join("read"));
    let length = 4 * GIB + 300 * (MIB as u64) + 17;
    write_noise(&sent, length);
    let long = Duration::from_secs(1800);
    let upload = |call: Curl| call.key("huge").upload(&sent).within(long);
    let answer = upload(house.files(0)).send().unwrap().expect(&[201]).unwrap();
    let id = answer.word("id").unwrap();
    let mark = 4 * GIB;
    for (vault, from, to) in [
        (0, mark - 3, mark + 2),
        (1, mark - (MIB as u64), mark + (MIB as u64)),
        (1, mark, mark),
        (0, length - 9, length - 1),
    ] {
        let call = house.files(vault).to(&format!("/{id}")).header("Range", format!("bytes={from}-{to}"));
        let answer = call.send().unwrap().expect(&[206]).unwrap();
        assert_eq!(answer.header("content-range"), Some(format!("bytes {from}-{to}/{length}").as_str()));
        assert!(answer.body == part(&sent, from, to - from + 1), "bytes {from} to {to}");
    }
    let whole = house.files(1).to(&format!("/{id}")).arg("--output").arg(&read).within(long);
    whole.output().unwrap();
    let same = std::process::Command::new("cmp").arg(&sent).arg(&read).status().unwrap();
    assert!(same.success(), "what came back is not what was sent");
    wait::until("both replicas", SOON, || {
        let size = |at: usize| house.servers[at].replica(&id).metadata().map(|known| known.len());
        anyhow::ensure!(size(0)? == size(1)? && size(0)? > length);
        Ok(())
    })
    .unwrap();
}
