//! Products with one of several weight matrices, chosen by row: the experts of a mixture (Shazeer et al. 2017).
//!
//! Which rows an expert gets is data, so dispatch happens inside the op: a device sorts the (row, choice) pairs by expert and
//! multiplies each group at once. No capacity, no padding and no dropped tokens. A negative expert number takes no part: its output
//! rows are zero and it passes no gradient.

use super::{OpRule, arity, count, floats};
use crate::autodiff::Backward;
use crate::interp::{Eval, Tensor, product};
use crate::{Dim, Error, Graph, Result, Type};

/// `y[i, j] = w[experts[i, j]]·x[i]`: inputs `x [n, in]`, `w [e, out, in]` (a parameter of any format, or a dense value),
/// `experts [n, k]` (whole numbers below `e`), output `[n, k, out]`.
///
/// An expert's own rows (the second product of a mixture) are `k = 1` over `x [n·k, in]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GroupedLinear;

/// Whether `experts` is `[n, k]` of whole numbers and `w` a stack of matrices.
fn grouped(op: &'static str, w: &Type, experts: &Type, inputs: &[Type]) -> Result<()> {
    if w.shape.rank() == 3 && w.dtype.is_float() && experts.shape.rank() == 2 && experts.dtype.is_int() {
        return Ok(());
    }
    Err(Error::shape(op, "takes a weight [e, out, in] and whole-number experts [n, k]", inputs))
}

/// (row, choice, expert) of each pair that takes part; the pair's number is `row * k + choice`.
fn pairs(cx: &Eval<'_>, experts: usize, count: usize) -> Result<Vec<(usize, usize)>> {
    let numbers = cx.whole(experts).into_iter().enumerate().filter(|(_, e)| *e >= 0);
    numbers.map(|(pair, e)| Ok((pair, cx.index(e, count, "expert")?))).collect()
}

impl OpRule for GroupedLinear {
    fn name(&self) -> &'static str {
        "grouped-linear"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 3)?;
        let [x, w, experts] = inputs else { unreachable!("three inputs") };
        grouped(self.name(), w, experts, inputs)?;
        floats(self.name(), &inputs[..2])?;
        if x.shape.rank() != 2 || x.shape[1] != w.shape[2] || x.shape[0] != experts.shape[0] {
            return Err(Error::shape(self.name(), "takes x [n, in], a weight [e, out, in] and experts [n, k]", inputs));
        }
        Ok(vec![Type::new(x.dtype, vec![x.shape[0].clone(), experts.shape[1].clone(), w.shape[1].clone()])])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let (x, w) = (cx.input(0), cx.input(1));
        let mut y = Tensor::zeros(cx.shape(0)?);
        let (k, out, inner) = (y.shape[1], w.shape[1], w.shape[2]);
        for (pair, e) in pairs(cx, 2, w.shape[0])? {
            let (x, w) = (&x.data[pair / k * inner..][..inner], &w.data[e * out * inner..][..out * inner]);
            y.data[pair * out..][..out].copy_from_slice(&product([1, inner, out], (x, false), (w, true)));
        }
        Ok(vec![y])
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let (d, x, w, experts) = (cx.d_out()?, cx.input(0), cx.input(1), cx.input(2));
        if cx.needs(0) {
            let dx = cx.g.push(GroupedLinearDx, &[d, w, experts])?;
            cx.add(0, dx)?;
        }
        if cx.needs(1) {
            let count = cx.g.ty(w).shape[0].clone();
            let dw = cx.g.push(GroupedLinearDw { count }, &[d, x, experts])?;
            cx.add(1, dw)?;
        }
        Ok(())
    }

    fn flops(&self, inputs: &[Type], outputs: &[Type]) -> Result<Dim> {
        count(2, outputs[0].shape.iter().chain(&inputs[1].shape[2..]))
    }
}

/// `d_x[i] = Σⱼ d_y[i, j]·w[experts[i, j]]`: inputs `d_y [n, k, out]`, `w [e, out, in]`, `experts [n, k]`, output `[n, in]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GroupedLinearDx;

impl OpRule for GroupedLinearDx {
    fn name(&self) -> &'static str {
        "grouped-linear-dx"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 3)?;
        let [dy, w, experts] = inputs else { unreachable!("three inputs") };
        grouped(self.name(), w, experts, inputs)?;
        floats(self.name(), &inputs[..2])?;
        if dy.shape.rank() != 3 || dy.shape[2] != w.shape[1] || dy.shape[..2] != experts.shape[..] {
            return Err(Error::shape(self.name(), "takes d_y [n, k, out], a weight [e, out, in] and experts [n, k]", inputs));
        }
        Ok(vec![Type::new(dy.dtype, vec![dy.shape[0].clone(), w.shape[2].clone()])])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let (dy, w) = (cx.input(0), cx.input(1));
        let mut dx = Tensor::zeros(cx.shape(0)?);
        let (k, out, inner) = (dy.shape[1], w.shape[1], w.shape[2]);
        for (pair, e) in pairs(cx, 2, w.shape[0])? {
            let (dy, w) = (&dy.data[pair * out..][..out], &w.data[e * out * inner..][..out * inner]);
            let part = product([1, out, inner], (dy, false), (w, false));
            dx.data[pair / k * inner..][..inner].iter_mut().zip(part).for_each(|(dx, v)| *dx += v);
        }
        Ok(vec![dx])
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        cx.refuse()
    }

    fn flops(&self, inputs: &[Type], _: &[Type]) -> Result<Dim> {
        count(2, inputs[0].shape.iter().chain(&inputs[1].shape[2..]))
    }
}

/// `d_w[e] = Σ d_y[i, j]ᵀ·x[i]` over the pairs of expert `e`: inputs `d_y [n, k, out]`, `x [n, in]`, `experts [n, k]`, output
/// `[count, out, in]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GroupedLinearDw {
    /// Number of experts.
    pub count: Dim,
}

impl OpRule for GroupedLinearDw {
    fn name(&self) -> &'static str {
        "grouped-linear-dw"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 3)?;
        floats(self.name(), &inputs[..2])?;
        let [dy, x, experts] = inputs else { unreachable!("three inputs") };
        let fits = dy.shape.rank() == 3
            && x.shape.rank() == 2
            && experts.dtype.is_int()
            && dy.shape[..2] == experts.shape[..]
            && x.shape[0] == dy.shape[0];
        if !fits {
            return Err(Error::shape(self.name(), "takes d_y [n, k, out], x [n, in] and whole-number experts [n, k]", inputs));
        }
        Ok(vec![Type::new(dy.dtype, vec![self.count.clone(), dy.shape[2].clone(), x.shape[1].clone()])])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let (dy, x) = (cx.input(0), cx.input(1));
        let mut dw = Tensor::zeros(cx.shape(0)?);
        let (k, out, inner) = (dy.shape[1], dw.shape[1], dw.shape[2]);
        for (pair, e) in pairs(cx, 2, dw.shape[0])? {
            let (dy, x) = (&dy.data[pair * out..][..out], &x.data[pair / k * inner..][..inner]);
            let part = product([out, 1, inner], (dy, true), (x, false));
            dw.data[e * out * inner..][..out * inner].iter_mut().zip(part).for_each(|(dw, v)| *dw += v);
        }
        Ok(vec![dw])
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        cx.refuse()
    }

    fn flops(&self, inputs: &[Type], _: &[Type]) -> Result<Dim> {
        count(2, inputs[0].shape.iter().chain(&inputs[1].shape[1..]))
    }
}
