//! AdamW: Adam (Kingma & Ba 2015, algorithm 1) with the weight decay of Loshchilov & Hutter 2019, "Decoupled Weight Decay
//! Regularization", algorithm 2, in the order of operations of `torch.optim.AdamW`; both moments in 8 bits (Dettmers et al. 2022, "8-bit
//! Optimizers via Block-wise Quantization") if so wished.

use swift_sdk::prelude::*;

config! {
    /// Adam with decoupled weight decay.
    pub struct AdamW {
        /// Decay rate of the gradient's mean.
        adam_beta1: f64 = 0.9,
        /// Decay rate of the squared gradient's mean.
        adam_beta2: f64 = 0.95,
        /// Added to the denominator.
        adam_epsilon: f64 = 1e-8,
        /// Decay norms and biases as well (parameters tagged `no-decay`).
        decay_all: bool = false,
        /// Keep both moments of large parameters in 8 bits.
        eight_bit: bool = false,
    }
}

impl Optimizer for AdamW {
    fn check(&self) -> Result<()> {
        for (name, beta) in [("adam_beta1", self.adam_beta1), ("adam_beta2", self.adam_beta2)] {
            if !(0.0..1.0).contains(&beta) {
                return Err(Error::config(format!("`{name}` is {beta}")).hint("it is at least 0 and below 1"));
            }
        }
        Ok(())
    }

    fn plan(&self, param: &ParamInfo) -> OptimizerPlan {
        let plan = OptimizerPlan::new();
        match self.eight_bit {
            false => plan.slot("exp_avg", &param.shape).slot("exp_avg_sq", &param.shape),
            true => plan.rounded_slot("exp_avg", &param.shape, false).rounded_slot("exp_avg_sq", &param.shape, true),
        }
    }

    fn trace(&self, _: &str, step: &Step) -> Option<Value> {
        let (beta1, beta2) = (self.adam_beta1, self.adam_beta2);
        let (g, t, lr) = (step.grad(), step.number(), step.lr());
        let decays = self.decay_all || !step.info().tags.iter().any(|tag| tag == "no-decay");
        let w = if decays { step.weight() * (1.0 - &lr * step.weight_decay()) } else { step.weight() };

        let (m, v) = (step.slot("exp_avg"), step.slot("exp_avg_sq"));
        let m = step.keep("exp_avg", &m + (&g - &m) * (1.0 - beta1));
        let v = step.keep("exp_avg_sq", v * beta2 + g.square() * (1.0 - beta2));

        let correction1 = 1.0 - Value::from(beta1).pow(&t);
        let correction2 = (1.0 - Value::from(beta2).pow(&t)).sqrt();
        Some(w - (m / (v.sqrt() / correction2 + self.adam_epsilon)) * (lr / correction1))
    }
}

plugin! { optimizer "adamw": AdamW }
