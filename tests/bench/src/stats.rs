//! Medians and quartiles, of times and of ratios within a round.

use serde::Serialize;

/// A middle and its spread.
#[derive(Serialize, Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Half of the rounds lie below.
    pub median: f64,
    /// A quarter lies below.
    pub low: f64,
    /// A quarter lies above.
    pub high: f64,
}

impl Spread {
    /// Of these values.
    pub fn of(values: &[f64]) -> Spread {
        let [low, median, high] = [0.25, 0.5, 0.75].map(|q| quantile(values, q));
        Spread { median, low, high }
    }
    /// Of the ratios `a / b` of values from the same rounds: what disturbs a round disturbs both.
    pub fn of_ratios(a: &[f64], b: &[f64]) -> Spread {
        let ratios: Vec<f64> = a.iter().zip(b).map(|(a, b)| a / b).collect();
        Spread::of(&ratios)
    }
}

/// The value below which a part `q` of them lies, interpolated; 0 of none.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = q * last as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_are_interpolated() {
        assert_eq!(Spread::of(&[4.0, 1.0, 3.0, 2.0]), Spread { median: 2.5, low: 1.75, high: 3.25 });
        assert_eq!(Spread::of(&[7.0]), Spread { median: 7.0, low: 7.0, high: 7.0 });
    }

    #[test]
    fn a_disturbed_round_leaves_its_ratio_alone() {
        assert_eq!(Spread::of_ratios(&[1.0, 50.0, 1.0], &[2.0, 100.0, 2.0]).median, 0.5);
    }
}
