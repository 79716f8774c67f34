//! One file server by itself: puts a file's plain bytes there, or gets them back. For the
//! benchmark, which compares a file server of ours with other programs' transfers; knows no
//! catalog and encrypts nothing but the two slots that every object has.
//!
//! `file_server CONFIG NAME attach | put FILE… | get ID FILE`; `put` prints the ids.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, bail};
use vault::config::Config;
use vault::storage::envelope::{BODY, Record, Sealer, seal_slot};
use vault::storage::file_server::{FileServer, FileServerError, Replica};
use vault::storage::{Metadata, ObjectId, file_server_alone};

const PIECE: usize = 1 << 20;

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [config, name, verb, rest @ ..] = &words[..] else {
        bail!("write: file_server CONFIG NAME attach | put FILE… | get ID FILE");
    };
    let config = Config::read(Path::new(config))?;
    let settings = config.storage.file_servers.iter().find(|settings| settings.name == *name);
    let server = file_server_alone(settings.context("no such [[file_server]]")?, &config.name);
    match (*verb, rest) {
        ("attach", []) => server.attach(None, true).map(drop)?,
        ("put", files) => {
            server.attach(None, true)?;
            for file in files {
                writeln!(std::io::stdout(), "{}", put(server.as_ref(), Path::new(file))?)?;
            }
        }
        ("get", [id, file]) => {
            server.attach(None, false)?;
            get(server.as_ref(), id, Path::new(file))?;
        }
        _ => bail!("{verb}: no such verb, or other words than it takes"),
    }
    Ok(())
}

fn put(server: &dyn FileServer, path: &Path) -> anyhow::Result<ObjectId> {
    let mut file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece)? {
            0 => break,
            count => drop(hasher.update(&piece[..count])),
        }
    }
    let id = ObjectId::new(*hasher.finalize().as_bytes());
    let slots = slots()?;
    let length = BODY + file.metadata()?.len();
    let bad = move |error: std::io::Error| FileServerError::BadSource {
        server: "source".to_owned(),
        object: id.to_string(),
        why: error.to_string(),
    };
    let read_at = move |buffer: &mut [u8], at: u64| match at.checked_sub(BODY) {
        Some(at) => file.read_at(buffer, at).map_err(&bad),
        None => {
            let rest = usize::try_from(at).ok().and_then(|at| slots.get(at..)).unwrap_or_default();
            let count = rest.len().min(buffer.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            Ok(count)
        }
    };
    server.put(&id, &mut Replica::new(length, Box::new(read_at)))?;
    Ok(id)
}

/// Two slots as every object has them, for keys that nobody keeps.
fn slots() -> anyhow::Result<Vec<u8>> {
    let sealed = Sealer::new(std::io::sink())?.finish()?;
    let key = age::x25519::Identity::generate().to_public();
    let metadata = Metadata {
        owner: "bench".to_owned(),
        key: String::new(),
        label: String::new(),
        media_type: String::new(),
        size: 0,
        created: String::new(),
        digest: sealed.digest,
    };
    let slot = seal_slot(&Record { metadata, identity: sealed.identity }, [&key, &key], 0)?;
    Ok([&slot[..], &slot[..]].concat())
}

fn get(server: &dyn FileServer, id: &str, path: &Path) -> anyhow::Result<()> {
    let id: ObjectId = id.parse().map_err(anyhow::Error::msg)?;
    let mut replica = server.open(&id)?;
    replica.seek(SeekFrom::Start(BODY))?;
    let mut file = File::create(path)?;
    let mut piece = vec![0; PIECE];
    loop {
        match replica.read(&mut piece)? {
            0 => return Ok(()),
            count => file.write_all(&piece[..count])?,
        }
    }
}
