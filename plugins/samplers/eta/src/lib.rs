//! Eta sampling, as in Hewitt et al. 2022, "Truncation Sampling as Language Model Desmoothing": tokens below a probability that falls
//! with the entropy of the distribution are dropped, the likeliest never.

use swift_sdk::prelude::*;

config! {
    /// Drops tokens that are unlikely for how open the place is.
    pub struct Eta {
        /// Probability that is always enough.
        epsilon: f64 = 0.0009,
    }
}

impl Sampler for Eta {
    fn check(&self) -> Result<()> {
        if self.epsilon > 0.0 && self.epsilon < 1.0 { Ok(()) } else { Err(Error::config("`epsilon` must be between 0 and 1")) }
    }

    fn transform(&self, logits: &Value) -> Value {
        let by_row = |x: Value| x.reshape((logits.dim(0), 1));
        let surprise = (by_row(logits.log_sum_exp(-1)) - logits).min(1000.0);
        let p = (-&surprise).exp();
        let entropy = by_row((&p * surprise).sum_axis(-1));
        let least = ((-entropy).exp() * self.epsilon.sqrt()).min(self.epsilon);
        let likeliest = by_row(p.max_axis(-1));
        p.ge(least.min(likeliest)).select(logits, f64::NEG_INFINITY)
    }
}

plugin! { sampler "eta": Eta }
