//! Hashes that must agree between processes and releases; frozen by golden values.
//!
//! Everything that moves users or data is decided by these: a change of one bit would move everybody.

use xxhash_rust::xxh3::xxh3_128;

/// Says whether two documents are the same, as 32 hexadecimal digits of XXH3-128 over their canonical bytes.
/// It tells equal from different between peers that trust each other; it is no signature.
#[must_use]
pub fn content_hash(bytes: &[u8]) -> String {
    format!("{:032x}", xxh3_128(bytes))
}

/// MurmurHash3, x86, 32 bits, seed 0, over pieces as if they were one text (Austin Appleby, public domain).
#[derive(Clone, Copy, Debug, Default)]
pub struct Murmur3 {
    hash: u32,
    length: u32,
    /// Up to three bytes that make no block yet, the first one lowest.
    tail: u32,
    waiting: u32,
}

impl Murmur3 {
    /// Goes on with these bytes.
    #[must_use]
    pub fn with(mut self, bytes: &[u8]) -> Self {
        // What is longer than 4 GiB does not come in a request.
        self.length = self.length.wrapping_add(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        let mut rest = bytes;
        while self.waiting > 0
            && let Some((byte, after)) = rest.split_first()
        {
            self.push(*byte);
            rest = after;
        }
        let (blocks, rest) = rest.as_chunks::<4>();
        for block in blocks {
            self.block(u32::from_le_bytes(*block));
        }
        for byte in rest {
            self.push(*byte);
        }
        self
    }

    fn push(&mut self, byte: u8) {
        self.tail |= u32::from(byte) << (8 * self.waiting);
        self.waiting += 1;
        if self.waiting == 4 {
            let block = std::mem::take(&mut self.tail);
            self.waiting = 0;
            self.block(block);
        }
    }

    fn block(&mut self, block: u32) {
        self.hash ^= scrambled(block);
        self.hash = self.hash.rotate_left(13).wrapping_mul(5).wrapping_add(0xE654_6B64);
    }

    /// The hash of all that came.
    #[must_use]
    pub fn finish(self) -> u32 {
        // The tail of a whole number of blocks is 0, which scrambles to 0.
        let mut hash = self.hash ^ scrambled(self.tail) ^ self.length;
        hash = (hash ^ hash >> 16).wrapping_mul(0x85EB_CA6B);
        hash = (hash ^ hash >> 13).wrapping_mul(0xC2B2_AE35);
        hash ^ hash >> 16
    }
}

fn scrambled(block: u32) -> u32 {
    block.wrapping_mul(0xCC9E_2D51).rotate_left(15).wrapping_mul(0x1B87_3593)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur3_is_the_one_that_others_know() {
        // Values of mmh3 5.3.1, seed 0, unsigned.
        for (text, expected) in [
            ("", 0),
            ("a", 0x3C25_69B2),
            ("ab", 0x9BBF_D75F),
            ("abc", 0xB3DD_93FA),
            ("abcd", 0x43ED_676A),
            ("hello", 0x248B_FA47),
            ("hello, world", 0x149B_BB7F),
            ("The quick brown fox jumps over the lazy dog", 0x2E4F_F723),
        ] {
            let whole = Murmur3::default().with(text.as_bytes());
            assert_eq!(whole.finish(), expected, "{text}");
            for cut in 0..=text.len() {
                let (first, second) = text.as_bytes().split_at(cut);
                let pieces = Murmur3::default().with(first).with(second);
                assert_eq!(pieces.finish(), expected, "{text} cut at {cut}");
            }
        }
    }

    #[test]
    fn content_hashes_are_frozen() {
        // Values of the reference implementation, xxhsum 0.8 -H2.
        assert_eq!(content_hash(b""), "99aa06d3014798d86001c324468d497f");
        assert_eq!(content_hash(b"gilmok").len(), 32);
    }
}
