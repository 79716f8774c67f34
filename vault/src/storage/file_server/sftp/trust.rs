//! Is this server the one that the operator pinned? Reads a file as OpenSSH's `known_hosts`;
//! knows no user and no file on the server.

use std::path::Path;

use ssh2::{CheckResult, HashType, HostKeyType, KnownHostFileKind, MethodType, Session};

use super::settings::SftpSettings;

/// Key types in the order in which they are asked for where the file does not decide.
const KEY_TYPES: [&str; 6] = [
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
];
/// A `known_hosts` file of more than this is something else.
const MAX_FILE: u64 = 4 << 20;

/// The key types to ask the server for: those that the file has for this host first, so that
/// a server with several keys shows the one that is pinned.
///
/// # Errors
/// The file cannot be read; in words.
pub(super) fn preferred_types(settings: &SftpSettings) -> Result<String, String> {
    let text = read(&settings.known_hosts)?;
    let pinned: Vec<_> = text.lines().filter_map(|line| type_of(line, settings)).collect();
    let is_pinned = |asked: &&&str| {
        pinned.iter().any(|found| *found == **asked || (*found == "ssh-rsa" && asked.starts_with("rsa-")))
    };
    let first = KEY_TYPES.iter().filter(is_pinned);
    let rest = KEY_TYPES.iter().filter(|asked| !is_pinned(asked));
    Ok(first.chain(rest).copied().collect::<Vec<_>>().join(","))
}

/// Asks for the pinned key's type at the handshake.
///
/// # Errors
/// In words.
pub(super) fn prefer(session: &Session, settings: &SftpSettings) -> Result<(), String> {
    let types = preferred_types(settings)?;
    session.method_pref(MethodType::HostKey, &types).map_err(|error| error.message().to_owned())
}

/// Compares the key that the server showed with the file's.
///
/// # Errors
/// It is not there, or another; in words that say how to make sure.
pub(super) fn check(session: &Session, settings: &SftpSettings) -> Result<(), String> {
    let file = settings.known_hosts.display();
    let (key, kind) = session.host_key().ok_or("the server showed no host key")?;
    let mut known = session.known_hosts().map_err(|error| error.message().to_owned())?;
    known
        .read_file(&settings.known_hosts, KnownHostFileKind::OpenSSH)
        .map_err(|error| format!("{file}: is no known_hosts file: {}", error.message()))?;
    let (host, port) = (&settings.host, settings.port);
    let print = fingerprint(session);
    let compare = format!(
        "compare it with what `ssh-keygen -lf /etc/ssh/ssh_host_{}_key.pub` says on the server",
        kind_name(kind)
    );
    match known.check_port(host, port, key) {
        CheckResult::Match => Ok(()),
        CheckResult::NotFound => Err(format!(
            "its host key {print} is not in {file}; {compare}, and if it is the same: \
             ssh-keyscan -p {port} {host} >>{file}"
        )),
        CheckResult::Mismatch => Err(format!(
            "its host key {print} is NOT the one in {file}: another server answers, or it was installed anew; \
             {compare}, and only if it is the same replace the line in {file}"
        )),
        CheckResult::Failure => Err(format!("its host key {print} cannot be compared with {file}")),
    }
}

fn read(file: &Path) -> Result<String, String> {
    use std::io::Read;
    let open = std::fs::File::open(file).and_then(|open| {
        let mut bytes = Vec::new();
        open.take(MAX_FILE).read_to_end(&mut bytes).map(|_| bytes)
    });
    let bytes = open.map_err(|error| {
        format!("{}: cannot be read: {error}; make it with `ssh-keyscan` and compare the key", file.display())
    })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The key type on a line that may be for this host; a hashed name may be.
fn type_of<'line>(line: &'line str, settings: &SftpSettings) -> Option<&'line str> {
    let mut words = line.split_ascii_whitespace();
    let names = words.next().filter(|word| !word.starts_with(['#', '@']))?;
    let with_port = format!("[{}]:{}", settings.host, settings.port);
    let ours = |name: &str| name.starts_with("|1|") || name == settings.host || name == with_port;
    names.split(',').any(ours).then(|| words.next())?
}

/// As `ssh-keygen -l` prints it.
fn fingerprint(session: &Session) -> String {
    session
        .host_key_hash(HashType::Sha256)
        .map_or_else(|| "of unknown fingerprint".to_owned(), |hash| format!("SHA256:{}", base64(hash)))
}

const fn kind_name(kind: HostKeyType) -> &'static str {
    match kind {
        HostKeyType::Ed25519 => "ed25519",
        HostKeyType::Ecdsa256 | HostKeyType::Ecdsa384 | HostKeyType::Ecdsa521 => "ecdsa",
        _ => "rsa",
    }
}

/// RFC 4648 without padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = bytes.chunks(3).flat_map(|chunk| {
        let bits =
            chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        (0..=chunk.len()).map(move |at| char::from(DIGITS[(bits >> (18 - 6 * at)) as usize & 63]))
    });
    digits.collect()
}

#[cfg(test)]
mod tests {
    use super::super::settings::Login;
    use super::*;

    fn settings(known_hosts: &Path) -> SftpSettings {
        SftpSettings {
            host: "files.example".to_owned(),
            port: 2222,
            user: "vault".to_owned(),
            known_hosts: known_hosts.to_owned(),
            login: Login::Agent,
            sessions: 6,
        }
    }

    #[test]
    fn the_pinned_type_is_asked_for_first() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("known_hosts");
        let line =
            "# a comment\nother.example ecdsa-sha2-nistp256 A\n[files.example]:2222,x ssh-rsa AAAA c\n";
        std::fs::write(&file, line).unwrap();
        assert!(
            preferred_types(&settings(&file)).unwrap().starts_with("rsa-sha2-512,rsa-sha2-256,ssh-ed25519")
        );
        let missing = preferred_types(&settings(&folder.path().join("none"))).unwrap_err();
        assert!(missing.contains("ssh-keyscan"), "{missing}");
    }

    #[test]
    fn fingerprints_are_written_as_ssh_keygen_writes_them() {
        let texts = ["", "f", "fo", "foo", "foob"].map(|text| base64(text.as_bytes()));
        assert_eq!(texts, ["", "Zg", "Zm8", "Zm9v", "Zm9vYg"]);
    }
}
