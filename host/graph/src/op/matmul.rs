//! Batched matrix product of two computed values.

use super::{LinearDw, OpRule, Permute, arity, count, floats};
use crate::autodiff::Backward;
use crate::interp::{Eval, Tensor, product};
use crate::{Dim, Error, Float, Graph, Result, Shape, Type};

/// `a·b` over the last two axes, either transposed: `a [..., m, k]`, `b [..., k, n]`. Leading axes are equal, or absent in `b`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MatMul {
    /// `a` is stored `[..., k, m]`.
    pub transpose_a: bool,
    /// `b` is stored `[..., n, k]`.
    pub transpose_b: bool,
}

impl OpRule for MatMul {
    fn name(&self) -> &'static str {
        "matmul"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 2)?;
        floats(self.name(), inputs)?;
        let (a, b) = (&inputs[0].shape, &inputs[1].shape);
        if a.rank() < 2 || b.rank() < 2 {
            return Err(Error::shape(self.name(), "takes matrices", inputs));
        }
        let last = |s: &Shape, transposed: bool| {
            let (r, c) = (s[s.rank() - 2].clone(), s[s.rank() - 1].clone());
            if transposed { (c, r) } else { (r, c) }
        };
        let ((m, k), (k2, n)) = (last(a, self.transpose_a), last(b, self.transpose_b));
        let lead = &a[..a.rank() - 2];
        if k != k2 || (b.rank() > 2 && &b[..b.rank() - 2] != lead) {
            return Err(Error::shape(self.name(), format!("inner sizes {k} and {k2} and leading axes must agree"), inputs));
        }
        Ok(vec![Type::new(inputs[0].dtype, lead.iter().cloned().chain([m, n]).collect::<Shape>())])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let (a, b) = (cx.input(0), cx.input(1));
        let shape = cx.shape(0)?;
        let [m, n] = [shape[shape.len() - 2], shape[shape.len() - 1]];
        let k = a.shape[a.shape.len() - if self.transpose_a { 2 } else { 1 }];
        let mut out = Vec::with_capacity(shape.iter().product());
        for batch in 0..shape[..shape.len() - 2].iter().product() {
            let left = &a.data[batch * m * k..][..m * k];
            let right = if b.shape.len() > 2 { &b.data[batch * k * n..][..k * n] } else { &b.data[..] };
            out.extend(product([m, k, n], (left, self.transpose_a), (right, self.transpose_b)));
        }
        cx.one(out)
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let (d, a, b) = (cx.d_out()?, cx.input(0), cx.input(1));
        let (ta, tb) = (self.transpose_a, self.transpose_b);
        let (rank_a, rank_b) = (cx.g.ty(a).shape.rank(), cx.g.ty(b).shape.rank());
        let product =
            |cx: &mut Backward<'_>, x, transpose_a, y, transpose_b| cx.g.push(MatMul { transpose_a, transpose_b }, &[x, y]);
        // With A and B as multiplied: dA = dY·Bᵀ and dB = Aᵀ·dY, each stored as its operand was.
        if cx.needs(0) {
            let da = match ta {
                false => product(cx, d, false, b, !tb)?,
                true if rank_b == rank_a => product(cx, b, tb, d, true)?,
                true => {
                    let da = product(cx, d, false, b, !tb)?;
                    let axes = (0..rank_a - 2).chain([rank_a - 1, rank_a - 2]).collect();
                    cx.g.push(Permute { axes }, &[da])?
                }
            };
            cx.add(0, da)?;
        }
        if cx.needs(1) {
            let db = match tb {
                // A shared `b` collects over the leading axes, which the product over rows does by itself.
                _ if rank_b < rank_a && !ta => {
                    let pair = if tb { [d, a] } else { [a, d] };
                    cx.g.push(LinearDw { alpha: Float(1.0) }, &pair)?
                }
                false => product(cx, a, !ta, d, false)?,
                true => product(cx, d, true, a, ta)?,
            };
            cx.add_summed(1, db)?;
        }
        Ok(())
    }

    fn flops(&self, inputs: &[Type], outputs: &[Type]) -> Result<Dim> {
        let a = &inputs[0].shape;
        let k = &a[a.rank() - if self.transpose_a { 2 } else { 1 }];
        count(2, outputs[0].shape.iter().chain([k]))
    }
}
