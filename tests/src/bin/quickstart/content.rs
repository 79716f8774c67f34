//! Documents to store: different for every number, the same for the same number, with a
//! marker in the clear that no file server may ever hold.

/// What stands in every document.
pub(crate) const MARKER: &[u8] = b"CONFIDENTIAL-INVOICE-TO-ACME";

/// The document of that number, of that many bytes. Half text, half noise: it compresses a
/// little, as real documents do.
pub(crate) fn document(number: u64, size: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(size + 256);
    while bytes.len() < size {
        bytes.extend(MARKER);
        bytes.extend(format!(" no. {number}, {} bytes so far\n", bytes.len()).bytes());
        for _ in 0..16 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend(state.to_le_bytes());
        }
    }
    bytes.truncate(size);
    bytes
}
