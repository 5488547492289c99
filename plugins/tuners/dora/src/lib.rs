//! DoRA, as in Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", section 4.1: the weight is split into a
//! magnitude m and a direction, and LoRA adapts the direction, `W' = m · V / ‖V‖` with `V = W + (α/r) · B A`, the norm taken by row
//! (one per output). No gradient flows through the norm (section 4.3).

use swift_sdk::hf_peft::{self, LoraInit, Targets};
use swift_sdk::prelude::*;

config! {
    /// Trains magnitude and low-rank direction of frozen linear layers.
    pub struct Dora {
        /// Rank of the direction's update.
        r: u64 = 8,
        /// The update is scaled by lora_alpha / r.
        lora_alpha: f64 = 32.0,
        /// Dropout of the adapter's input in training.
        lora_dropout: f64 = 0.05,
        /// Layers to adapt: "all-linear", a name or a list of names such as "q_proj".
        target_modules: Targets = Targets::AllLinear,
        /// Scale by lora_alpha / √r instead.
        use_rslora: bool = false,
        /// Start: true (A uniform, B zero), "gaussian", or false (both uniform).
        init_lora_weights: LoraInit = LoraInit::Standard,
    }
}

impl Dora {
    fn scale(&self) -> f64 {
        let r = self.r as f64;
        self.lora_alpha / if self.use_rslora { r.sqrt() } else { r }
    }

    /// V = W + s·BA.
    fn direction(&self, site: &Site) -> Value {
        site.weight() + site.param("lora_B").matmul(site.param("lora_A")) * self.scale()
    }

    /// m / ‖V‖, by output.
    fn gain(&self, site: &Site) -> Value {
        site.param("lora_magnitude_vector") / self.direction(site).row_norm().stop_grad()
    }
}

impl Tuner for Dora {
    fn check(&self) -> Result<()> {
        hf_peft::check(self.r, self.lora_dropout)
    }

    fn plan(&self, site: &SiteInfo) -> Option<SitePlan> {
        self.target_modules.take(site).then(|| {
            SitePlan::new()
                .param("lora_A", [self.r, site.d_in], self.init_lora_weights.a(self.r))
                .param("lora_B", [site.d_out, self.r], self.init_lora_weights.b())
                .param("lora_magnitude_vector", [site.d_out], Init::Ones)
        })
    }

    fn init(&self, site: &Site, param: &str) -> Option<Value> {
        // m starts at ‖V‖, so that W' = W where B is zero.
        (param == "lora_magnitude_vector").then(|| self.direction(site).row_norm())
    }

    fn apply(&self, site: &Site, x: &Value) -> Value {
        let (a, b) = (site.param("lora_A"), site.param("lora_B"));
        let v_x = site.project(x) + x.dropout(self.lora_dropout).linear(&a).linear(&b) * self.scale();
        site.with_bias(v_x * self.gain(site))
    }

    fn merge(&self, site: &Site) -> Option<Value> {
        Some(self.direction(site) * self.gain(site).reshape([site.info().d_out, 1]))
    }

    fn export(&self, layout: &str, sites: &[AdaptedSite]) -> Result<ExportPlan> {
        let mut fields = hf_peft::fields!(self: r, lora_alpha, lora_dropout, use_rslora, init_lora_weights);
        fields["use_dora"] = true.into();
        hf_peft::export(layout, sites, fields)
    }
}

plugin! { tuner "dora": Dora }
