//! Product with a weight matrix, the op that most time goes into. The weight is a parameter's storage in any format (then the
//! device's quantized kernels run) or a computed dense value.
//!
//! `alpha`, the activation and the addend are the epilogue: `y = activation(alpha·x·Wᵀ + bias) + addend` in one pass, which is how LoRA
//! branches, activations, residual adds and gradient fan-in avoid a pass over memory of their own.

use super::{OpRule, UnaryOp, arity, count, floats};
use crate::autodiff::Backward;
use crate::interp::{Eval, Tensor, product};
use crate::{Dim, Error, Float, Graph, Result, Shape, Type};

/// Inputs `x [..., in]`, `w [out, in]`, then `bias [out]` and `addend [..., out]` as the flags say.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Linear {
    /// Factor of the product.
    pub alpha: Float,
    /// Whether there is a bias.
    pub bias: bool,
    /// What is applied before the addend. Made by [`crate::passes::patterns::activation`] after differentiation: gradients need what
    /// it was applied to.
    pub activation: Option<UnaryOp>,
    /// Whether there is an addend.
    pub addend: bool,
}

impl Linear {
    /// `x·Wᵀ`.
    pub fn plain() -> Linear {
        Linear { alpha: Float(1.0), bias: false, activation: None, addend: false }
    }
}

impl OpRule for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 2 + usize::from(self.bias) + usize::from(self.addend))?;
        floats(self.name(), inputs)?;
        let (x, w) = (&inputs[0].shape, &inputs[1].shape);
        if w.rank() != 2 || x.last() != w.last() {
            return Err(Error::shape(self.name(), "takes x [..., in] and a weight [out, in]", inputs));
        }
        let out: Shape = x[..x.rank() - 1].iter().cloned().chain([w[0].clone()]).collect();
        if self.bias && inputs[2].shape.dims() != &w[..1] {
            return Err(Error::shape(self.name(), format!("the bias must be [{}]", w[0]), inputs));
        }
        if self.addend && inputs[inputs.len() - 1].shape != out {
            return Err(Error::shape(self.name(), format!("the addend must be {out}"), inputs));
        }
        Ok(vec![Type::new(inputs[0].dtype, out)])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let (x, w) = (cx.input(0), cx.input(1));
        let (out, inner) = (w.shape[0], w.shape[1]);
        let rows = cx.shape(0)?.iter().product::<usize>() / out.max(1);
        let mut y = product([rows, inner, out], (&x.data, false), (&w.data, true));
        for (i, y) in y.iter_mut().enumerate() {
            *y *= self.alpha.0;
            if self.bias {
                *y += cx.input(2).data[i % out];
            }
            if let Some(f) = self.activation {
                *y = f.eval(*y);
            }
            if self.addend {
                *y += cx.input(cx.arity() - 1).data[i];
            }
        }
        cx.one(y)
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        if self.activation.is_some() {
            return cx.refuse();
        }
        let d = cx.d_out()?;
        if cx.needs(0) {
            let dx = cx.g.push(LinearDx { alpha: self.alpha, addend: false }, &[d, cx.input(1)])?;
            cx.add(0, dx)?;
        }
        if cx.needs(1) {
            let dw = cx.g.push(LinearDw { alpha: self.alpha }, &[d, cx.input(0)])?;
            cx.add(1, dw)?;
        }
        if self.bias && cx.needs(2) {
            cx.add_summed(2, d)?;
        }
        if self.addend {
            cx.add(cx.inputs().len() - 1, d)?;
        }
        Ok(())
    }

    fn flops(&self, inputs: &[Type], outputs: &[Type]) -> Result<Dim> {
        count(2, outputs[0].shape.iter().chain(&inputs[1].shape[1..]))
    }
}

/// `alpha·d_y·W (+ addend)`: inputs `d_y [..., out]`, `w [out, in]`, optional `addend [..., in]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LinearDx {
    /// Factor of the product.
    pub alpha: Float,
    /// Whether there is an addend.
    pub addend: bool,
}

impl OpRule for LinearDx {
    fn name(&self) -> &'static str {
        "linear-dx"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 2 + usize::from(self.addend))?;
        floats(self.name(), inputs)?;
        let (dy, w) = (&inputs[0].shape, &inputs[1].shape);
        if w.rank() != 2 || dy.last() != Some(&w[0]) {
            return Err(Error::shape(self.name(), "takes d_y [..., out] and a weight [out, in]", inputs));
        }
        let out: Shape = dy[..dy.rank() - 1].iter().cloned().chain([w[1].clone()]).collect();
        if self.addend && inputs[2].shape != out {
            return Err(Error::shape(self.name(), format!("the addend must be {out}"), inputs));
        }
        Ok(vec![Type::new(inputs[0].dtype, out)])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let (dy, w) = (cx.input(0), cx.input(1));
        let (out, inner) = (w.shape[0], w.shape[1]);
        let rows = cx.shape(0)?.iter().product::<usize>() / inner.max(1);
        let mut dx = product([rows, out, inner], (&dy.data, false), (&w.data, false));
        for (i, dx) in dx.iter_mut().enumerate() {
            *dx = *dx * self.alpha.0 + if self.addend { cx.input(2).data[i] } else { 0.0 };
        }
        cx.one(dx)
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        cx.refuse()
    }

    fn flops(&self, inputs: &[Type], outputs: &[Type]) -> Result<Dim> {
        count(2, outputs[0].shape.iter().chain(&inputs[1].shape[..1]))
    }
}

/// `alpha·d_yᵀ·x`: inputs `d_y [..., out]`, `x [..., in]`, output `[out, in]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LinearDw {
    /// Factor of the product.
    pub alpha: Float,
}

impl OpRule for LinearDw {
    fn name(&self) -> &'static str {
        "linear-dw"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 2)?;
        floats(self.name(), inputs)?;
        let (dy, x) = (&inputs[0].shape, &inputs[1].shape);
        if x.rank() == 0 || dy.rank() != x.rank() || dy[..dy.rank() - 1] != x[..x.rank() - 1] {
            return Err(Error::shape(self.name(), "takes d_y [..., out] and x [..., in]", inputs));
        }
        Ok(vec![Type::new(inputs[0].dtype, vec![dy[dy.rank() - 1].clone(), x[x.rank() - 1].clone()])])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let (dy, x) = (cx.input(0), cx.input(1));
        let (out, inner) = (dy.cols(), x.cols());
        let rows = dy.shape[..dy.shape.len() - 1].iter().product();
        let dw = product([out, rows, inner], (&dy.data, true), (&x.data, false));
        cx.one(dw.into_iter().map(|v| v * self.alpha.0).collect())
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        cx.refuse()
    }

    fn flops(&self, inputs: &[Type], outputs: &[Type]) -> Result<Dim> {
        count(2, outputs[0].shape[..1].iter().chain(inputs[1].shape.iter()))
    }
}
