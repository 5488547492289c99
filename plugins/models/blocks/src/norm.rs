//! Norms over the last axis.

use swift_sdk::model::{ModelPlan, Session};
use swift_sdk::{Init, Value};

/// A norm's kind, width and epsilon.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    kind: Kind,
    d: u64,
    eps: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Rms,
    RmsUnitOffset,
    Layer,
}

impl Norm {
    /// Root mean square (Zhang and Sennrich 2019): `x / rms(x) · w`.
    pub fn rms(d: u64, eps: f64) -> Norm {
        Norm { kind: Kind::Rms, d, eps }
    }

    /// The same with the factor `1 + w` (Gemma).
    pub fn rms_unit_offset(d: u64, eps: f64) -> Norm {
        Norm { kind: Kind::RmsUnitOffset, d, eps }
    }

    /// Layer norm (Ba et al. 2016) with weight and bias.
    pub fn layer(d: u64, eps: f64) -> Norm {
        Norm { kind: Kind::Layer, d, eps }
    }

    /// The same norm over another width.
    #[must_use]
    pub fn of_width(self, d: u64) -> Norm {
        Norm { d, ..self }
    }

    pub(crate) fn declare(self, plan: &mut ModelPlan, path: &str) {
        let tags = ["norm", "no-decay"];
        let init = if self.kind == Kind::RmsUnitOffset { Init::Zeros } else { Init::Ones };
        plan.param(format!("{path}.weight"), &[self.d], init, &tags);
        if self.kind == Kind::Layer {
            plan.param(format!("{path}.bias"), &[self.d], Init::Zeros, &tags);
        }
    }

    pub(crate) fn apply(self, s: &Session, path: &str, x: &Value) -> Value {
        let weight = s.param(&format!("{path}.weight"));
        match self.kind {
            Kind::Rms => x.rms_norm(&weight, self.eps),
            Kind::RmsUnitOffset => x.rms_norm_unit_offset(&weight, self.eps),
            Kind::Layer => x.layer_norm(Some(&weight), Some(&s.param(&format!("{path}.bias"))), self.eps),
        }
    }
}
