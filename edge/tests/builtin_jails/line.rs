//! A request as the line that filters see, escaped as edge's access log escapes it, and seeded
//! chance. Knows nothing of filters.

/// Escapes as the access log does: no quote, backslash or control byte stands as itself, and
/// within the request no space.
pub(crate) fn escaped(field: &[u8], in_request: bool) -> String {
    if field.is_empty() {
        return "-".to_owned();
    }
    let mut out = String::new();
    for byte in field {
        match byte {
            b' ' if in_request => out.push_str("\\x20"),
            b'"' | b'\\' => out.push_str(&format!("\\x{byte:02X}")),
            b' '..=b'~' => out.push(char::from(*byte)),
            other => out.push_str(&format!("\\x{other:02X}")),
        }
    }
    out
}

pub(crate) struct Request<'r> {
    pub(crate) client: &'r str,
    pub(crate) method: &'r str,
    pub(crate) target: &'r [u8],
    pub(crate) status: u16,
    pub(crate) bytes: usize,
    pub(crate) referer: &'r [u8],
    pub(crate) user_agent: &'r [u8],
}

impl Request<'_> {
    pub(crate) fn line(&self) -> String {
        format!(
            "{} - - [] \"{} {} HTTP/1.1\" {:03} {} \"{}\" \"{}\"",
            self.client,
            escaped(self.method.as_bytes(), true),
            escaped(self.target, true),
            self.status,
            self.bytes,
            escaped(self.referer, false),
            escaped(self.user_agent, false),
        )
    }
}

/// SplitMix64: the same lines on every run, so that a failure can be looked at.
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % u64::try_from(bound).unwrap()).unwrap()
    }

    pub(crate) fn pick<'t>(&mut self, from: &[&'t str]) -> &'t str {
        from[self.below(from.len())]
    }

    pub(crate) fn letters(&mut self, from: &str, count: usize) -> String {
        let from = from.as_bytes();
        (0..count).map(|_| char::from(from[self.below(from.len())])).collect()
    }
}
