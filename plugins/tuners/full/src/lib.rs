//! Full fine-tuning: every weight of the model trains.

use swift_sdk::prelude::*;

config! {
    /// Trains the model's own weights.
    pub struct Full {
        /// Train only weights whose path starts with one of these, such as "model.layers.3."; empty: all.
        trainable: Vec<String> = Vec::new(),
        /// Keep weights whose path starts with one of these frozen.
        freeze: Vec<String> = Vec::new(),
    }
}

impl Tuner for Full {
    fn plan(&self, site: &SiteInfo) -> Option<SitePlan> {
        let starts = |prefixes: &[String]| prefixes.iter().any(|p| site.path.starts_with(p.as_str()));
        let train = (self.trainable.is_empty() || starts(&self.trainable)) && !starts(&self.freeze);
        train.then(|| SitePlan::new().train_base())
    }

    fn apply(&self, site: &Site, x: &Value) -> Value {
        site.base(x)
    }

    fn merge(&self, site: &Site) -> Option<Value> {
        Some(site.weight())
    }
}

plugin! { tuner "full": Full }
