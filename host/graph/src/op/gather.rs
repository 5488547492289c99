//! Rows by index.

use super::{BinaryOp, Full, Iota, OpRule, arity};
use crate::autodiff::Backward;
use crate::interp::{Eval, Tensor};
use crate::{Dim, Error, Float, Graph, NodeId, Result, Shape, Type};

/// `out[i] = table[idx[i]]`: inputs `table [r, ...]`, `idx [k]`. A negative index gives zeros, one past the table is a run-time error.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GatherRows;

impl OpRule for GatherRows {
    fn name(&self) -> &'static str {
        "gather-rows"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 2)?;
        let (table, idx) = (&inputs[0], &inputs[1]);
        if table.shape.rank() == 0 || idx.shape.rank() != 1 || !idx.dtype.is_int() {
            return Err(Error::shape(self.name(), "takes a table [r, ...] and whole-number indices [k]", inputs));
        }
        let dims = std::iter::once(idx.shape[0].clone()).chain(table.shape[1..].iter().cloned());
        Ok(vec![Type::new(table.dtype, dims.collect::<Shape>())])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let table = cx.input(0);
        let d: usize = table.shape[1..].iter().product();
        let mut out = Vec::new();
        for row in cx.whole(1) {
            if row < 0 {
                out.resize(out.len() + d, 0.0);
            } else {
                let row = cx.index(row, table.shape[0], "row")?;
                out.extend_from_slice(&table.data[row * d..][..d]);
            }
        }
        cx.one(out)
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let d = cx.d_out()?;
        let zero = cx.zeros(cx.input(0))?;
        let table = cx.g.push(ScatterRows { accumulate: true }, &[zero, cx.input(1), d])?;
        cx.add(0, table)
    }
}

/// `base` with `rows` written (the last of equal indices wins) or added at `idx`: inputs `base [r, ...]`, `idx [k]`, `rows [k, ...]`.
/// A row with a negative index is skipped.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ScatterRows {
    /// Add instead of write.
    pub accumulate: bool,
}

impl OpRule for ScatterRows {
    fn name(&self) -> &'static str {
        "scatter-rows"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 3)?;
        let (base, idx, rows) = (&inputs[0], &inputs[1], &inputs[2]);
        let fits = base.shape.rank() > 0
            && idx.shape.rank() == 1
            && idx.dtype.is_int()
            && rows.dtype == base.dtype
            && rows.shape.rank() == base.shape.rank()
            && rows.shape[0] == idx.shape[0]
            && rows.shape[1..] == base.shape[1..];
        if !fits {
            return Err(Error::shape(self.name(), "takes base [r, ...], whole-number indices [k], rows [k, ...]", inputs));
        }
        Ok(vec![base.clone()])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let (mut out, rows) = (cx.input(0).clone(), cx.input(2));
        let d: usize = out.shape[1..].iter().product();
        for (i, row) in cx.whole(1).into_iter().enumerate().filter(|(_, row)| *row >= 0) {
            let row = cx.index(row, out.shape[0], "row")?;
            for j in 0..d {
                let old = if self.accumulate { out.data[row * d + j] } else { 0.0 };
                out.data[row * d + j] = old + rows.data[i * d + j];
            }
        }
        Ok(vec![out])
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let (d, idx) = (cx.d_out()?, cx.input(1));
        if cx.needs(2) {
            let mut rows = cx.g.push(GatherRows, &[d, idx])?;
            if !self.accumulate {
                let won = self.winners(cx)?;
                rows = cx.g.mul(rows, won)?;
            }
            cx.add(2, rows)?;
        }
        if !self.accumulate {
            let zero = cx.zeros(cx.input(2))?;
            let base = cx.g.push(ScatterRows { accumulate: false }, &[d, idx, zero])?;
            return cx.add(0, base);
        }
        cx.add(0, d)
    }
}

impl ScatterRows {
    /// `[k, 1, ...]`: 1 where a row is the one that stayed, 0 where a later row of the same index overwrote it. Found by scattering
    /// row numbers, which f32 holds exactly up to 2²⁴.
    fn winners(&self, cx: &mut Backward<'_>) -> Result<NodeId> {
        let (base, idx, rows) = (cx.input(0), cx.input(1), cx.input(2));
        let ty = cx.g.ty(rows).clone();
        let none = Type::f32(cx.g.ty(base).shape[..1].to_vec());
        let none = cx.g.push(Full { ty: none, value: Float(0.0) }, &[])?;
        let number = cx.g.push(Iota { ty: Type::f32(ty.shape[..1].to_vec()), axis: 0 }, &[])?;
        let last = cx.g.push(ScatterRows { accumulate: false }, &[none, idx, number])?;
        let last = cx.g.push(GatherRows, &[last, idx])?;
        let won = cx.g.binary(BinaryOp::Eq, last, number)?;
        let won = cx.g.cast(won, ty.dtype)?;
        let dims = ty.shape.iter().enumerate().map(|(i, d)| if i == 0 { d.clone() } else { Dim::fixed(1) });
        cx.g.reshape(won, dims.collect::<Shape>())
    }
}
