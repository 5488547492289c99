//! A step of Adam with decoupled weight decay, made from its elementwise spelling by [`crate::passes::patterns::adam`]; nothing else
//! makes it. One op, so that weight, gradient and both moments cross memory once, and so that moments in 8 bits are rounded where
//! they are.

use super::{OpRule, arity, count, floats};
use crate::autodiff::Backward;
use crate::interp::{Eval, Tensor};
use crate::{Dim, Error, Float, Graph, Result, Type};

/// Inputs `g`, `w`, `m`, `v` of one shape, then the scalars `clip`, `decay`, `correction`, `rate`; outputs `w`, `m`, `v`:
///
/// ```text
/// g = clip g
/// m = m + (1 - beta1)(g - m)
/// v = beta2 v + (1 - beta2) g²
/// w = decay w - rate m / (sqrt(v) / correction + epsilon)
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Adam {
    /// `1 - beta1`.
    pub one_minus_beta1: Float,
    /// Decay rate of the squared gradient's mean.
    pub beta2: Float,
    /// `1 - beta2`.
    pub one_minus_beta2: Float,
    /// Added to the denominator.
    pub epsilon: Float,
    /// Whether both moments are states in 8 bits, which the op reads and writes as they are stored.
    pub packed: bool,
}

impl Adam {
    /// Index of the input that output `output` takes the place of.
    pub const fn replaces(output: usize) -> usize {
        output + 1
    }
}

impl OpRule for Adam {
    fn name(&self) -> &'static str {
        "adam"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 8)?;
        floats(self.name(), inputs)?;
        let same = inputs[..4].windows(2).all(|w| w[0] == w[1]) && inputs[4..].iter().all(|t| t.shape.rank() == 0);
        if !same {
            return Err(Error::shape(self.name(), "takes four values of one type and four scalars", inputs));
        }
        Ok(vec![inputs[1].clone(), inputs[2].clone(), inputs[3].clone()])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let [clip, decay, correction, rate] = [4, 5, 6, 7].map(|i| cx.input(i).data[0]);
        let g = cx.input(0).map(|g| clip * g);
        let m = cx.input(2).zip(&g, |m, g| m + self.one_minus_beta1.0 * (g - m));
        let v = cx.input(3).zip(&g, |v, g| self.beta2.0 * v + self.one_minus_beta2.0 * g * g);
        let step = m.zip(&v, |m, v| m / (v.sqrt() / correction + self.epsilon.0));
        let w = cx.input(1).zip(&step, |w, step| decay * w - rate * step);
        Ok(vec![w, m, v])
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        cx.refuse()
    }

    fn flops(&self, _: &[Type], outputs: &[Type]) -> Result<Dim> {
        count(15, outputs[0].shape.iter())
    }
}
