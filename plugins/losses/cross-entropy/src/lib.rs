//! Next-token cross-entropy: `Σ w_t · -log p(y_t | y_<t) / N`, with N the step's number of trained tokens over all micro-batches, so that
//! accumulation changes nothing. Label smoothing is Szegedy et al. 2016, section 7.

use swift_sdk::prelude::*;

config! {
    /// Mean negative log-likelihood of the trained tokens.
    pub struct CrossEntropy {
        /// Share of each target's probability that is spread over the vocabulary.
        label_smoothing: f64 = 0.0,
    }
}

impl Loss for CrossEntropy {
    fn check(&self) -> Result<()> {
        if (0.0..1.0).contains(&self.label_smoothing) {
            return Ok(());
        }
        Err(Error::config(format!("`label_smoothing` is {}", self.label_smoothing)).hint("it is at least 0 and below 1"))
    }

    fn trace(&self, batch: &Batch) -> LossOutput {
        let spec = CrossEntropySpec { label_smoothing: self.label_smoothing, ..Default::default() };
        let per_token = batch.policy().cross_entropy(&batch.targets(), spec) * batch.loss_weights();
        LossOutput::new(per_token.sum() / batch.total("tokens"))
    }
}

plugin! { loss "cross-entropy": CrossEntropy }
