//! What can be wrong with bytes, and with a command that is to become bytes. Knows no field.

/// Bytes that are no command. The connection cannot go on: where the next frame's meaning lies
/// is not known any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The frame as a whole.
    #[error("a frame that is no OpenWire command: {0}")]
    Frame(#[source] Fault),
    /// One field of it.
    #[error("a frame that is no OpenWire command: {structure}.{field}: {fault}")]
    Field {
        /// The structure's name in the protocol.
        structure: &'static str,
        /// The field's name here.
        field: &'static str,
        /// What is wrong with it.
        #[source]
        fault: Fault,
    },
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The bytes end before the structure does.
    #[error("it ends in the middle")]
    Truncated,
    /// The structure ends before the bytes do.
    #[error("{0} bytes follow its end")]
    Trailing(usize),
    /// A truth value that is neither 0 nor 1.
    #[error("{0} is no truth value")]
    Boolean(u8),
    /// A negative length or number.
    #[error("{0} is no length")]
    Length(i32),
    /// What must be there is null.
    #[error("it is null, and must not be")]
    Null,
    /// A number that no type has.
    #[error("no type has the number {0}")]
    UnknownType(u8),
    /// A type that is known and not spoken here.
    #[error("{0} is not spoken here")]
    Unsupported(&'static str),
    /// A known type where another must stand.
    #[error("{found} stands where {wanted} belongs")]
    WrongType {
        /// What belongs there.
        wanted: &'static str,
        /// What stands there.
        found: &'static str,
    },
    /// A number that the field does not know.
    #[error("{0} is not among its values")]
    UnknownValue(u8),
    /// Structures in structures, too many levels.
    #[error("its structures lie too deep in each other")]
    TooDeep,
    /// More elements than anything real has.
    #[error("{number} are more than the {most} that are taken")]
    TooMany {
        /// How many there are.
        number: usize,
        /// How many may be.
        most: usize,
    },
    /// A frame longer than was agreed.
    #[error("a frame of {length} bytes is over the limit of {limit}")]
    TooLong {
        /// The length that the frame gives, in bytes.
        length: usize,
        /// The limit in force, in bytes.
        limit: usize,
    },
    /// The peer did not open with OpenWire's greeting.
    #[error("the first frame is no WireFormatInfo: the peer speaks another protocol")]
    NotOpenWire,
    /// The peer's newest version is older than ours.
    #[error("the peer speaks version {0}, and 10 is the oldest spoken here")]
    Version(i32),
}

/// A command that cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// Over the frame limit that the peer gave.
    #[error("a frame of {length} bytes is over the peer's limit of {limit}")]
    TooLong {
        /// The frame's length in bytes.
        length: usize,
        /// The peer's limit in bytes.
        limit: usize,
    },
    /// An array of more elements than two bytes count.
    #[error("an array of {0} elements is over the protocol's 32767")]
    TooMany(usize),
}

impl From<Fault> for DecodeError {
    fn from(fault: Fault) -> Self {
        DecodeError::Frame(fault)
    }
}

impl DecodeError {
    /// Names the field, unless a field deeper inside is named already.
    pub(super) fn within(self, structure: &'static str, field: &'static str) -> Self {
        match self {
            DecodeError::Frame(fault) => DecodeError::Field { structure, field, fault },
            named => named,
        }
    }
}
