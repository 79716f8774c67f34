//! The greeting: what each side offers in its `WireFormatInfo`, and what both agree on. Pure;
//! knows no frame and no command.
//!
//! Source: ActiveMQ's `OpenWireFormat.renegotiateWireFormat`: the lower version, the smaller
//! sizes and times; what only one side wants is off.

use std::time::Duration;

use bytes::Bytes;

use super::Version;
use super::fault::{DecodeError, Fault};
use super::properties::{Properties, Value};
use super::text::Text;
use super::wire::{Reader, Structure, Wire, Writer};

/// First bytes of a greeting after the type's number.
const MAGIC: &[u8; 8] = b"ActiveMQ";

/// The type's number.
const CODE: u8 = 1;

/// What a side offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Newest version.
    pub version: Version,
    /// Largest frame it takes, in bytes after the length.
    pub max_frame: usize,
    /// Silence after which it gives the peer up; zero turns this off on both sides.
    pub inactivity: Duration,
    /// Grace before the first such silence is looked for.
    pub initial_delay: Duration,
    /// Name under which the peer was addressed; a client's offer only.
    pub host: Option<Text>,
}

/// What both sides agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// The version that both speak.
    pub version: Version,
    /// Largest frame in either direction, in bytes after the length.
    pub max_frame: usize,
    /// Silence after which a peer is given up; none is never.
    pub inactivity: Option<Duration>,
    /// Grace before the first such silence is looked for.
    pub initial_delay: Duration,
}

/// The greeting as it stands on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireFormatInfo {
    /// Newest version that the sender speaks.
    pub version: i32,
    /// Its settings, a marshalled map.
    pub properties: Option<Bytes>,
}

impl Default for Offer {
    /// ActiveMQ's own defaults: 100 MiB, 30 s, 10 s.
    fn default() -> Self {
        Self {
            version: Version::V12,
            max_frame: 100 << 20,
            inactivity: Duration::from_secs(30),
            initial_delay: Duration::from_secs(10),
            host: None,
        }
    }
}

impl Offer {
    /// The greeting that makes this offer. Loose encoding and no caches, which binds both sides.
    #[must_use]
    pub fn greeting(&self) -> WireFormatInfo {
        let milliseconds = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let mut settings = Properties::default();
        let mut set = |name, value| settings.set(Text::shortened(name), value);
        for off in ["TightEncodingEnabled", "CacheEnabled", "StackTraceEnabled", "SizePrefixDisabled"] {
            set(off, Value::Boolean(false));
        }
        set("TcpNoDelayEnabled", Value::Boolean(true));
        set("CacheSize", Value::Integer(0));
        set("MaxInactivityDuration", Value::Long(milliseconds(self.inactivity)));
        // Spelled so in the protocol.
        set("MaxInactivityDurationInitalDelay", Value::Long(milliseconds(self.initial_delay)));
        set("MaxFrameSize", Value::Long(i64::try_from(self.max_frame).unwrap_or(i64::MAX)));
        if let Some(host) = &self.host {
            set("Host", Value::String(host.clone()));
        }
        WireFormatInfo { version: self.version.number(), properties: Some(settings.to_bytes()) }
    }

    /// What this offer and the peer's greeting come to.
    ///
    /// # Errors
    /// A peer of a version before 10, or settings that are no map.
    pub fn settle(&self, peer: &WireFormatInfo) -> Result<Settled, DecodeError> {
        let settings = peer.settings()?;
        // As ActiveMQ reads a peer that does not say: no watch on silence, no limit of its own.
        let time =
            |name| settings.number(name).and_then(|it| u64::try_from(it).ok()).map(Duration::from_millis);
        let inactivity = time("MaxInactivityDuration").unwrap_or_default().min(self.inactivity);
        let max_frame =
            settings.number("MaxFrameSize").and_then(|it| usize::try_from(it).ok()).filter(|it| *it > 0);
        Ok(Settled {
            version: self.version.min(Version::at_most(peer.version).ok_or(Fault::Version(peer.version))?),
            max_frame: max_frame.unwrap_or(self.max_frame).min(self.max_frame),
            inactivity: (!inactivity.is_zero()).then_some(inactivity),
            initial_delay: time("MaxInactivityDurationInitalDelay")
                .unwrap_or_default()
                .min(self.initial_delay),
        })
    }
}

impl WireFormatInfo {
    /// Its settings by name.
    ///
    /// # Errors
    /// Bytes that are no marshalled map.
    pub fn settings(&self) -> Result<Properties, DecodeError> {
        let Some(bytes) = &self.properties else { return Ok(Properties::default()) };
        Properties::read(bytes)
            .map_err(|fault| DecodeError::from(fault).within("WireFormatInfo", "properties"))
    }
}

impl Structure for WireFormatInfo {
    fn code(&self) -> u8 {
        CODE
    }

    fn read_fields(code: u8, reader: &mut Reader) -> Result<Self, DecodeError> {
        if code != CODE || reader.take(MAGIC.len())? != MAGIC[..] {
            return Err(Fault::NotOpenWire.into());
        }
        let within = |field| move |error: DecodeError| error.within("WireFormatInfo", field);
        Ok(Self {
            version: Wire::read(reader).map_err(within("version"))?,
            properties: Wire::read(reader).map_err(within("properties"))?,
        })
    }

    fn write_fields(&self, writer: &mut Writer) {
        writer.put(MAGIC);
        self.version.write(writer);
        self.properties.write(writer);
    }
}
