//! Hashes that must agree between processes and releases; frozen by golden values.
//!
//! Everything that moves users or data is decided by these: a change of one bit would move everybody.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed, xxh3_128};

/// Says whether two documents are the same, as 32 hexadecimal digits of XXH3-128 over their canonical bytes.
/// It tells equal from different between peers that trust each other; it is no signature.
#[must_use]
pub fn content_hash(bytes: &[u8]) -> String {
    format!("{:032x}", xxh3_128(bytes))
}

/// XXH3, 64 bits, seed 0, of a few bytes whose meaning is the caller's.
#[must_use]
pub fn short_hash(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// XXH3, 64 bits, with a seed.
#[must_use]
pub fn seeded_hash(bytes: &[u8], seed: u64) -> u64 {
    xxh3_64_with_seed(bytes, seed)
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

/// A hash of keys that decides on shards. All are published and exist in many languages, so that an application can
/// compute them too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyHash {
    /// CRC-16/XMODEM: polynomial 0x1021, begins at 0, not reflected. Redis Cluster's.
    Crc16,
    /// CRC-32/ISO-HDLC: zlib's, PHP's, Python's.
    Crc32,
    /// FNV-1a, 32 bits.
    Fnv1a32,
    /// FNV-1a, 64 bits.
    Fnv1a64,
    /// The key is the number itself, in decimal digits.
    Identity,
    /// MurmurHash3, x86, 32 bits, seed 0.
    Murmur3,
    /// XXH3, 64 bits, seed 0.
    Xxh3,
}

/// The words of a document.
pub const KEY_HASHES: [(&str, KeyHash); 7] = [
    ("crc16", KeyHash::Crc16),
    ("crc32", KeyHash::Crc32),
    ("fnv1a_32", KeyHash::Fnv1a32),
    ("fnv1a_64", KeyHash::Fnv1a64),
    ("murmur3_32", KeyHash::Murmur3),
    ("xxh3_64", KeyHash::Xxh3),
    ("identity", KeyHash::Identity),
];

impl KeyHash {
    /// The word that a document uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        KEY_HASHES.iter().find(|(_, hash)| *hash == self).map_or("", |(word, _)| *word)
    }

    /// The hash of these bytes; one of 32 or 16 bits is the number that it is. `None` where the key has to be a number
    /// from 0 to 2^64 - 1 and is none.
    #[must_use]
    pub fn of(self, key: &[u8]) -> Option<u64> {
        Some(match self {
            Self::Crc16 => u64::from(crc16(key)),
            Self::Crc32 => u64::from(crc32(key)),
            Self::Fnv1a32 => u64::from(fnv1a_32(key)),
            Self::Fnv1a64 => fnv1a_64(key),
            Self::Identity => return number(key),
            Self::Murmur3 => u64::from(Murmur3::default().with(key).finish()),
            Self::Xxh3 => xxh3_64(key),
        })
    }
}

/// MurmurHash3's finaliser of 64 bits: every bit of what comes in changes half of what goes out, and no two numbers become
/// one. It makes hashes of 32 bits, and weak ones, fit for choosing among places on a ring.
#[must_use]
pub fn mixed(mut hash: u64) -> u64 {
    hash = (hash ^ hash >> 33).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    hash = (hash ^ hash >> 33).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    hash ^ hash >> 33
}

/// What a byte makes of a CRC after none, one, two and three more bytes: four bytes are one step, because they do not
/// wait for each other.
const CRC16_STEPS: [[u16; 256]; 4] = crc16_steps();
const CRC32_STEPS: [u32; 256] = crc32_steps();

fn crc16(bytes: &[u8]) -> u16 {
    let [last, third, second, first] = &CRC16_STEPS;
    let (fours, rest) = bytes.as_chunks::<4>();
    let crc = fours.iter().fold(0_u16, |crc, [a, b, c, d]| {
        let [high, low] = crc.to_be_bytes();
        first[usize::from(high ^ a)]
            ^ second[usize::from(low ^ b)]
            ^ third[usize::from(*c)]
            ^ last[usize::from(*d)]
    });
    rest.iter().fold(crc, |crc, byte| {
        let [high, low] = crc.to_be_bytes();
        u16::from(low) << 8 ^ last[usize::from(high ^ byte)]
    })
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        let [low, ..] = crc.to_le_bytes();
        crc >> 8 ^ CRC32_STEPS[usize::from(low ^ byte)]
    })
}

const fn crc16_steps() -> [[u16; 256]; 4] {
    let mut steps = [[0; 256]; 4];
    let mut byte: u16 = 0;
    while byte < 256 {
        let (mut crc, mut after) = (byte << 8, 0);
        while after < 4 {
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 };
                bit += 1;
            }
            steps[after][byte as usize] = crc;
            after += 1;
        }
        byte += 1;
    }
    steps
}

const fn crc32_steps() -> [u32; 256] {
    let mut steps = [0; 256];
    let mut byte: u32 = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte, 0);
        while bit < 8 {
            crc = if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ 0xEDB8_8320 };
            bit += 1;
        }
        steps[byte as usize] = crc;
        byte += 1;
    }
    steps
}

fn fnv1a_32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811C_9DC5, |hash: u32, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn fnv1a_64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

/// A number in decimal digits and nothing else.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        number.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_digits_that_fit() {
        assert_eq!(number(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(number(b"007"), Some(7));
        for none in [&b""[..], b"18446744073709551616", b"-1", b"+1", b" 1", b"1.0", b"0x1", b"\xD9\xA1"] {
            assert_eq!(number(none), None, "{none:?}");
        }
    }

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
