//! Deterministic CBOR (RFC 8949, 4.2.1), as far as what is hashed for users' places needs it: heads and numbers.

/// The major types that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Major {
    Unsigned = 0,
    Negative = 1,
    Text = 3,
    Array = 4,
    Map = 5,
}

/// What begins an item: a major type and a number in its shortest form, or a number that is no whole one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    bytes: [u8; 9],
    used: u8,
}

pub(crate) const FALSE: u8 = 0xF4;
pub(crate) const TRUE: u8 = 0xF5;
pub(crate) const NULL: u8 = 0xF6;

impl Head {
    /// The head of `major` with this number, length or count.
    pub(crate) fn new(major: Major, number: u64) -> Self {
        let kind = (major as u8) << 5;
        if let Ok(small @ 0..24) = u8::try_from(number) {
            Self::of(&[kind | small])
        } else if let Ok(number) = u8::try_from(number) {
            Self::of(&[kind | 24, number])
        } else if let Ok(number) = u16::try_from(number) {
            Self::of(&[kind | 25]).and(&number.to_be_bytes())
        } else if let Ok(number) = u32::try_from(number) {
            Self::of(&[kind | 26]).and(&number.to_be_bytes())
        } else {
            Self::of(&[kind | 27]).and(&number.to_be_bytes())
        }
    }

    /// A whole number.
    pub(crate) fn whole(number: i64) -> Self {
        match u64::try_from(number) {
            Ok(number) => Self::new(Major::Unsigned, number),
            // -1 - n, which is what all bits flipped say.
            Err(_) => Self::new(Major::Negative, !number.cast_unsigned()),
        }
    }

    /// A number that is no whole one: the shortest of half, single and double that is exact.
    pub(crate) fn real(number: f64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "compared with what it was")]
        let single = number as f32;
        if f64::from(single).to_bits() != number.to_bits() {
            return Self::of(&[0xFB]).and(&number.to_be_bytes());
        }
        match half(single) {
            Some(half) => Self::of(&[0xF9]).and(&half.to_be_bytes()),
            None => Self::of(&[0xFA]).and(&single.to_be_bytes()),
        }
    }

    fn of(bytes: &[u8]) -> Self {
        Self { bytes: [0; 9], used: 0 }.and(bytes)
    }

    fn and(mut self, more: &[u8]) -> Self {
        for byte in more {
            self.bytes[usize::from(self.used)] = *byte;
            self.used += 1;
        }
        self
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.used)]
    }
}

/// The bits of the same number with half precision (IEEE 754 binary16), if it has one.
fn half(number: f32) -> Option<u16> {
    let bits = number.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let (exponent, fraction) = (bits >> 23 & 0xFF, bits & 0x7F_FFFF);
    let half = match exponent {
        // Halves' exponents begin at -14, singles' at -126.
        113..=142 if fraction & 0x1FFF == 0 => sign | (exponent - 112) << 10 | fraction >> 13,
        // Below are multiples of 2^-24.
        103..=112 => {
            let whole = fraction | 0x80_0000;
            let shift = 126 - exponent;
            if whole & ((1 << shift) - 1) != 0 {
                return None;
            }
            sign | whole >> shift
        }
        0 if fraction == 0 => sign,
        255 if fraction == 0 => sign | 0x7C00,
        _ => return None,
    };
    u16::try_from(half).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(head: &Head) -> String {
        head.as_slice().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn whole_numbers_take_the_fewest_bytes() {
        // Values of cbor2 5.9.0, canonical.
        for (number, expected) in [
            (0, "00"),
            (23, "17"),
            (24, "1818"),
            (255, "18ff"),
            (256, "190100"),
            (65_536, "1a00010000"),
            (2_147_483_648, "1a80000000"),
            (4_294_967_296, "1b0000000100000000"),
            (-1, "20"),
            (-24, "37"),
            (-25, "3818"),
            (-2_147_483_649, "3a80000000"),
            (i64::MIN, "3b7fffffffffffffff"),
        ] {
            assert_eq!(hex(&Head::whole(number)), expected, "{number}");
        }
        assert_eq!(hex(&Head::new(Major::Unsigned, u64::MAX)), "1bffffffffffffffff");
    }

    #[test]
    fn real_numbers_take_the_fewest_bytes_that_are_exact() {
        // Values of cbor2 5.9.0, canonical.
        for (number, expected) in [
            (0.5, "f93800"),
            (1.5, "f93e00"),
            (-4.25, "f9c440"),
            (65_504.5, "fa477fe080"),
            (0.000_061_035_156_25, "f90400"),
            (5.960_464_477_539_063e-8, "f90001"),
            (8.940_696_716_308_594e-8, "fa33c00000"),
            (0.000_060_975_551_605_224_61, "f903ff"),
            (1.175_494_350_822_287_5e-38, "fa00800000"),
            (1.4e-45_f32.into(), "fa00000001"),
            (1.23, "fb3ff3ae147ae147ae"),
            (1e20, "fb4415af1d78b58c40"),
            (5e-324, "fb0000000000000001"),
        ] {
            assert_eq!(hex(&Head::real(number)), expected, "{number}");
        }
    }
}
