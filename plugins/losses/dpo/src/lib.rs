//! DPO, as in Rafailov et al. 2023, "Direct Preference Optimization", equation 7, for a prompt x with a chosen answer w and a rejected l:
//!
//! `L = -log σ( β·log π(w|x)/π_ref(w|x) - β·log π(l|x)/π_ref(l|x) )`
//!
//! Label smoothing is cDPO (Mitchell 2023), hinge is SLiC (Zhao et al. 2023), IPO is Azar et al. 2023, equation 17, on
//! log-probabilities averaged over tokens.

use swift_sdk::prelude::*;

config! {
    /// Function of the margin.
    pub enum LossType {
        /// The paper's.
        Sigmoid = "sigmoid",
        /// Of SLiC.
        Hinge = "hinge",
        /// Squared distance to a fixed margin.
        Ipo = "ipo",
    }
}

config! {
    /// Raises chosen over rejected answers, held near a reference model.
    pub struct Dpo {
        /// Strength of the hold.
        beta: f64 = 0.1,
        /// Share of pairs taken to be labelled the wrong way round.
        label_smoothing: f64 = 0.0,
        /// Function of the margin.
        loss_type: LossType = LossType::Sigmoid,
    }
}

impl Dpo {
    /// log π(answer | prompt) of the chosen and of the rejected answers, each `[pairs]`.
    fn log_pi(&self, batch: &Batch, pi: &Head) -> (Value, Value) {
        let per_token = pi.token_logprobs(&batch.targets()) * batch.loss_weights();
        let mut log_pi = batch.sum_by_sequence(&per_token);
        if self.loss_type == LossType::Ipo {
            log_pi = log_pi / batch.sum_by_sequence(&batch.loss_weights()).max(1.0);
        }
        (log_pi.gather(&batch.field("chosen")), log_pi.gather(&batch.field("rejected")))
    }
}

impl Loss for Dpo {
    fn needs(&self) -> Needs {
        Needs::new().reference().pairs()
    }

    fn trace(&self, batch: &Batch) -> LossOutput {
        let (pi_w, pi_l) = self.log_pi(batch, &batch.policy());
        let (ref_w, ref_l) = self.log_pi(batch, &batch.reference());
        let (reward_w, reward_l) = ((pi_w - ref_w) * self.beta, (pi_l - ref_l) * self.beta);
        let margin = &reward_w - &reward_l;
        let loss = match self.loss_type {
            LossType::Sigmoid => {
                -(margin.log_sigmoid() * (1.0 - self.label_smoothing)) - (-&margin).log_sigmoid() * self.label_smoothing
            }
            LossType::Hinge => (1.0 - &margin).relu(),
            LossType::Ipo => (&margin / self.beta - 1.0 / (2.0 * self.beta)).square(),
        };
        let pairs = batch.total("sequences") / 2.0;
        let mean = |per_pair: &Value| per_pair.sum() / &pairs;
        LossOutput::new(mean(&loss))
            .metric("rewards/chosen", mean(&reward_w))
            .metric("rewards/rejected", mean(&reward_l))
            .metric("rewards/accuracies", mean(&reward_w.gt(&reward_l).to_f32()))
            .metric("rewards/margins", mean(&margin))
    }
}

plugin! { loss "dpo": Dpo }
