//! What tells one map of a service from others, as `Gilmok-Shard-Map` says it: `EPOCH-HASH`, e.g. `7-0123456789abcdef`.

use std::fmt;

/// The epoch in decimal digits, then the hash in 16 hexadecimal ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapTag {
    /// Counts up with each batch that has moved: of two maps of one service in one store the higher one is newer.
    pub epoch: u64,
    /// A hash of all that the shard of a key depends on, equal in every process: tells maps of one epoch apart, which files
    /// may have.
    pub hash: u64,
}

impl MapTag {
    /// Reads a tag; `None` where it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        const HASH_DIGITS: usize = 16;
        let (epoch, hash) = text.split_once('-')?;
        // A number may begin with a plus where Rust reads it.
        let is_plain = epoch.bytes().all(|byte| byte.is_ascii_digit())
            && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
            && hash.len() == HASH_DIGITS;
        if !is_plain {
            return None;
        }
        Some(Self { epoch: epoch.parse().ok()?, hash: u64::from_str_radix(hash, 16).ok()? })
    }
}

impl fmt::Display for MapTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.epoch, self.hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_read_back_as_it_was_written_and_nothing_else_is_one() {
        for (epoch, hash) in [(0, 0), (7, 0x0123_4567_89ab_cdef), (u64::MAX, u64::MAX)] {
            let tag = MapTag { epoch, hash };
            assert_eq!(MapTag::parse(&tag.to_string()), Some(tag));
        }
        assert_eq!(MapTag { epoch: 7, hash: 0xabc }.to_string(), "7-0000000000000abc");
        for text in [
            "",
            "7",
            "0123456789abcdef",
            "7-abc",
            "7-0123456789abcdeg",
            "7-+123456789abcdef",
            "+7-0123456789abcdef",
            "-0123456789abcdef",
            "7-0123456789abcdef0",
            "18446744073709551616-0123456789abcdef",
        ] {
            assert_eq!(MapTag::parse(text), None, "{text}");
        }
    }
}
