//! Standardisation of numeric features.

/// Parameters for the standardisation of one feature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standard {
    /// Subtracted from the (transformed) value.
    pub mean: f64,
    /// Divisor of the difference.
    pub std: f64,
    /// Bound of the result on both sides.
    pub clip: f64,
    /// True to standardise `sign(x) ln(1 + |x|)` instead of `x`.
    pub log1p: bool,
}

/// Counts of values that were replaced or clipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Anomalies {
    /// Values that are not a number.
    pub missing: usize,
    /// Infinite values, which are treated as missing too.
    pub infinite: usize,
    /// Values beyond the bound.
    pub clipped: usize,
}

/// Converts each value into (standardised value, 1), or (0, 0) if it is not finite. In double precision,
/// rounded once at the end.
///
/// # Panics
/// If `out` has another length.
pub fn standardise<T: Copy + Into<f64>>(
    values: &[T],
    by: &Standard,
    out: &mut [[f32; 2]],
) -> Anomalies {
    assert_eq!(values.len(), out.len());
    if by.log1p {
        each(values, by, out, |x| x.abs().ln_1p().copysign(x))
    } else {
        each(values, by, out, |x| x)
    }
}

fn each<T: Copy + Into<f64>>(
    values: &[T],
    by: &Standard,
    out: &mut [[f32; 2]],
    transformed: impl Fn(f64) -> f64,
) -> Anomalies {
    let mut absent = 0;
    let mut clipped = 0;
    for (value, out) in values.iter().zip(out) {
        let value: f64 = (*value).into();
        let there = value.is_finite();
        let standard = (transformed(value) - by.mean) / by.std;
        absent += usize::from(!there);
        clipped += usize::from(there && standard.abs() > by.clip);
        // NaN for a NaN value: `clamp` keeps it, and the selection replaces it.
        let standard = standard.clamp(-by.clip, by.clip) as f32;
        *out = if there { [standard, 1.0] } else { [0.0, 0.0] };
    }
    // Distinguished only where there are any: most columns have none.
    let infinite = match absent {
        0 => 0,
        _ => values
            .iter()
            .filter(|&&value| Into::<f64>::into(value).is_infinite())
            .count(),
    };
    Anomalies {
        missing: absent - infinite,
        infinite,
        clipped,
    }
}

#[cfg(all(test, not(aif_loom)))]
mod tests {
    use super::{Anomalies, Standard, standardise};
    use proptest::prelude::*;

    fn plainly(value: f64, by: &Standard, anomalies: &mut Anomalies) -> [f32; 2] {
        if value.is_nan() {
            anomalies.missing += 1;
            return [0.0, 0.0];
        }
        if value.is_infinite() {
            anomalies.infinite += 1;
            return [0.0, 0.0];
        }
        let sign = if value < 0.0 { -1.0 } else { 1.0 };
        let value = if by.log1p {
            sign * (sign * value).ln_1p()
        } else {
            value
        };
        let standard = (value - by.mean) / by.std;
        if standard > by.clip {
            anomalies.clipped += 1;
            return [by.clip as f32, 1.0];
        }
        if standard < -by.clip {
            anomalies.clipped += 1;
            return [-by.clip as f32, 1.0];
        }
        [standard as f32, 1.0]
    }

    proptest! {
        #[test]
        fn values_are_those_of_the_definition(
            values in prop::collection::vec(prop_oneof![4 => -50.0f64..50.0, 1 => any::<f64>()], 0..70),
            mean in -5.0f64..5.0,
            std in 0.01f64..20.0,
            clip in 0.1f64..10.0,
            log1p: bool,
        ) {
            let by = Standard { mean, std, clip, log1p };
            let mut expected = Anomalies::default();
            let plain: Vec<_> = values.iter().map(|v| plainly(*v, &by, &mut expected)).collect();
            let mut out = vec![[7.0; 2]; values.len()];
            prop_assert_eq!(standardise(&values, &by, &mut out), expected);
            prop_assert_eq!(&out, &plain);
            let single: Vec<f32> = values.iter().map(|v| *v as f32).collect();
            let double: Vec<f64> = single.iter().map(|v| f64::from(*v)).collect();
            let mut of_double = out.clone();
            prop_assert_eq!(standardise(&single, &by, &mut out), standardise(&double, &by, &mut of_double));
            prop_assert_eq!(out, of_double);
        }
    }
}
