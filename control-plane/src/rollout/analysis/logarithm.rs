//! Sums of numbers that are known by their logarithms, because they are too large or too small themselves.

/// The logarithm of the mean of `exp` of these; they are not infinite upwards, and not all downwards.
pub(super) fn ln_mean_exp(logarithms: &[f64]) -> f64 {
    let highest = logarithms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logarithms.iter().map(|ln| (ln - highest).exp()).sum();
    highest + (sum / logarithms.len() as f64).ln()
}

/// The logarithm of `exp(a) + exp(b)`; `a` is finite.
pub(super) fn ln_add(a: f64, b: f64) -> f64 {
    a.max(b) + (-(a - b).abs()).exp().ln_1p()
}
