//! `bfloat16` numbers, the upper halves of 32-bit floats.

/// Number of 8 exponent and 8 significant bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bf16(pub u16);

impl Bf16 {
    /// Widens the number; exact.
    #[inline]
    #[must_use]
    pub const fn widen(self) -> f32 {
        f32::from_bits((self.0 as u32) << 16)
    }

    /// Rounds to the nearest number, ties to even; a NaN stays one.
    #[inline]
    #[must_use]
    pub const fn round(value: f32) -> Self {
        let bits = value.to_bits();
        if value.is_nan() {
            return Self((bits >> 16) as u16 | 0x40);
        }
        Self((bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16)
    }
}

impl From<Bf16> for f32 {
    #[inline]
    fn from(number: Bf16) -> Self {
        number.widen()
    }
}

/// Floats in either precision.
#[derive(Clone, Copy, Debug)]
pub enum Matrix<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// Upper halves of 32-bit floats.
    Bf16(&'a [Bf16]),
}

impl Matrix<'_> {
    /// Returns `len` elements from `start` on.
    #[must_use]
    pub fn part(&self, start: usize, len: usize) -> Self {
        match self {
            Self::F32(values) => Self::F32(&values[start..][..len]),
            Self::Bf16(values) => Self::Bf16(&values[start..][..len]),
        }
    }

    /// Returns the number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// Returns whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns one element, widened.
    #[must_use]
    pub fn at(&self, index: usize) -> f32 {
        match self {
            Self::F32(values) => values[index],
            Self::Bf16(values) => values[index].widen(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_goes_to_the_nearest_and_then_to_the_even() {
        for (value, expected) in [
            (1.0, 1.0),
            (1.0 + 1.0 / 256.0, 1.0),
            (1.0 + 3.0 / 256.0, 1.0 + 4.0 / 256.0),
            (1.0 + 1.1 / 256.0, 1.0 + 2.0 / 256.0),
            (-0.1, -0.100_097_656),
            (f32::INFINITY, f32::INFINITY),
            (f32::MAX, f32::INFINITY),
            (0.0, 0.0_f32),
        ] {
            assert_eq!(
                Bf16::round(value).widen().to_bits(),
                f32::to_bits(expected),
                "{value}"
            );
        }
        assert!(Bf16::round(f32::NAN).widen().is_nan());
        assert!(Bf16::round(f32::from_bits(0x7f80_0001)).widen().is_nan());
        for bits in (0..=u16::MAX).filter(|&bits| !Bf16(bits).widen().is_nan()) {
            assert_eq!(Bf16::round(Bf16(bits).widen()), Bf16(bits));
        }
    }
}
