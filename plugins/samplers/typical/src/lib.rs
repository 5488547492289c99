//! Locally typical sampling, as in Meister et al. 2023, "Locally Typical Sampling": tokens whose surprise is closest to the expected
//! one, until their probabilities reach `mass`.
//!
//! No sorting: how far from the expected surprise a token may lie is found by halving an interval, which ends between two floats.

use swift_sdk::prelude::*;

config! {
    /// Keeps the tokens that are about as surprising as expected.
    pub struct Typical {
        /// Probability that the kept tokens reach together.
        mass: f64 = 0.9,
    }
}

/// Widest distance that is told apart; a token this unlikely weighs nothing.
const WIDEST: f64 = 1000.0;
/// Halvings, after which the interval is no wider than a float's last bit.
const HALVINGS: usize = 36;

impl Sampler for Typical {
    fn check(&self) -> Result<()> {
        if self.mass > 0.0 && self.mass < 1.0 { Ok(()) } else { Err(Error::config("`mass` must be between 0 and 1")) }
    }

    fn transform(&self, logits: &Value) -> Value {
        let by_row = |x: Value| x.reshape((logits.dim(0), 1));
        let surprise = (by_row(logits.log_sum_exp(-1)) - logits).min(WIDEST);
        let p = (-&surprise).exp();
        let expected = by_row((&p * &surprise).sum_axis(-1));
        // Within `narrow` there is too little, within `wide` enough; both have a row's shape, which a zero of that shape gives them.
        let zero = &expected * 0.0;
        let distance = (surprise - expected).abs();
        let (mut narrow, mut wide) = (&zero - 1.0, zero + WIDEST);
        for _ in 0..HALVINGS {
            let middle = (&narrow + &wide) * 0.5;
            let enough = by_row((distance.le(&middle).to_f32() * &p).sum_axis(-1)).ge(self.mass);
            (narrow, wide) = (enough.select(narrow, &middle), enough.select(&middle, wide));
        }
        distance.le(wide).select(logits, f64::NEG_INFINITY)
    }
}

plugin! { sampler "typical": Typical }
