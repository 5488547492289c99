//! A product with a weight and one of low rank beside it, in one pass over the output: what LoRA's forward pass and the gradient in
//! its input come to. [`crate::passes::patterns::low_rank`] makes it of two products; nothing else does.

use super::{OpRule, UnaryOp, arity, count, floats};
use crate::autodiff::Backward;
use crate::interp::{Eval, Tensor, product};
use crate::{Dim, Error, Float, Graph, Result, Shape, Type};

/// Inputs `x [..., k]`, `w`, `h [..., r]`, `v`, then `bias` and `addend` as the flags say.
///
/// Forward: `activation(alpha·x·Wᵀ + factor·h·Vᵀ + bias) + addend` with `w [n, k]`, `v [n, r]`. Backward: `alpha·x·W + factor·h·V + addend` with `w [k, n]`,
/// `v [r, n]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LowRankLinear {
    /// Whether weights are used as they are, not transposed: the gradient in the input.
    pub backward: bool,
    /// Factor of the product with `w`.
    pub alpha: Float,
    /// Factor of the product with `v`.
    pub factor: Float,
    /// Whether there is a bias.
    pub bias: bool,
    /// What is applied before the addend, forward only. Made by [`crate::passes::patterns::activation`].
    pub activation: Option<UnaryOp>,
    /// Whether there is an addend.
    pub addend: bool,
}

impl OpRule for LowRankLinear {
    fn name(&self) -> &'static str {
        "low-rank-linear"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 4 + usize::from(self.bias) + usize::from(self.addend))?;
        floats(self.name(), inputs)?;
        let [x, w, h, v] = [0, 1, 2, 3].map(|i| &inputs[i].shape);
        let (inner, outer) = if self.backward { (0, 1) } else { (1, 0) };
        let matrices = w.rank() == 2 && v.rank() == 2;
        let fits = |x: &Shape, w: &Shape| x.rank() > 0 && x.last() == Some(&w[inner]);
        if !matrices || !fits(x, w) || !fits(h, v) || w[outer] != v[outer] || x[..x.rank() - 1] != h[..h.rank() - 1] {
            return Err(Error::shape(self.name(), "takes x and h of the same rows, and weights with the same outputs", inputs));
        }
        let out: Shape = x[..x.rank() - 1].iter().cloned().chain([w[outer].clone()]).collect();
        if self.bias && inputs[4].shape.dims() != &out[out.rank() - 1..] {
            return Err(Error::shape(self.name(), format!("the bias must be [{}]", w[outer]), inputs));
        }
        if self.backward && self.activation.is_some() {
            return Err(Error::shape(self.name(), "takes no activation backward", inputs));
        }
        if self.addend && inputs[inputs.len() - 1].shape != out {
            return Err(Error::shape(self.name(), format!("the addend must be {out}"), inputs));
        }
        Ok(vec![Type::new(inputs[0].dtype, out)])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let one = |x: &Tensor, w: &Tensor| {
            let (inner, out) = if self.backward { (w.shape[0], w.shape[1]) } else { (w.shape[1], w.shape[0]) };
            let rows = x.shape[..x.shape.len() - 1].iter().product();
            product([rows, inner, out], (&x.data, false), (&w.data, !self.backward))
        };
        let (y, low) = (one(cx.input(0), cx.input(1)), one(cx.input(2), cx.input(3)));
        let out = cx.shape(0)?.last().copied().unwrap_or(1);
        let sum = y.iter().zip(&low).enumerate().map(|(i, (y, low))| {
            let bias = if self.bias { cx.input(4).data[i % out] } else { 0.0 };
            let addend = if self.addend { cx.input(cx.arity() - 1).data[i] } else { 0.0 };
            let sum = self.alpha.0 * y + self.factor.0 * low + bias;
            self.activation.map_or(sum, |f| f.eval(sum)) + addend
        });
        cx.one(sum.collect())
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        cx.refuse()
    }

    fn flops(&self, inputs: &[Type], outputs: &[Type]) -> Result<Dim> {
        let inner = |x: &Type| count(2, outputs[0].shape.iter().chain(x.shape.last()));
        inner(&inputs[0])?.add(&inner(&inputs[2])?)
    }
}
