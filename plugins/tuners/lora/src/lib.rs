//! LoRA, as in Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1: a frozen weight W is
//! adapted by a product of two thin matrices, `h = W x + (α/r) · B A x`. The rank-stabilized scale α/√r is Kalajdzievski 2023.

use swift_sdk::hf_peft::{self, LoraInit, Targets};
use swift_sdk::prelude::*;

config! {
    /// Adds a trained low-rank product to frozen linear layers.
    pub struct Lora {
        /// Rank of the product.
        r: u64 = 8,
        /// The product is scaled by lora_alpha / r.
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

impl Lora {
    fn scale(&self) -> f64 {
        let r = self.r as f64;
        self.lora_alpha / if self.use_rslora { r.sqrt() } else { r }
    }
}

impl Tuner for Lora {
    fn check(&self) -> Result<()> {
        hf_peft::check(self.r, self.lora_dropout)
    }

    fn plan(&self, site: &SiteInfo) -> Option<SitePlan> {
        self.target_modules.take(site).then(|| {
            SitePlan::new().param("lora_A", [self.r, site.d_in], self.init_lora_weights.a(self.r)).param(
                "lora_B",
                [site.d_out, self.r],
                self.init_lora_weights.b(),
            )
        })
    }

    fn apply(&self, site: &Site, x: &Value) -> Value {
        let (a, b) = (site.param("lora_A"), site.param("lora_B"));
        site.base(x) + x.dropout(self.lora_dropout).linear(&a).linear(&b) * self.scale()
    }

    fn merge(&self, site: &Site) -> Option<Value> {
        let (a, b) = (site.param("lora_A"), site.param("lora_B"));
        Some(site.weight() + b.matmul(&a) * self.scale())
    }

    fn export(&self, layout: &str, sites: &[AdaptedSite]) -> Result<ExportPlan> {
        hf_peft::export(layout, sites, hf_peft::fields!(self: r, lora_alpha, lora_dropout, use_rslora, init_lora_weights))
    }
}

plugin! { tuner "lora": Lora }
